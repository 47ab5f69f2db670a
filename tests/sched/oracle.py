"""Random cases, and the smallest possible a_max by another road: maximum flow and a search on a_max."""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow


def random_slots(rng, E, G, C, kinds=("even", "skewed", "ring")):
    """Slots [G, C]: even, skewed, or in a ring, where only long chains of changes help."""
    assert G * C >= E
    slots = [[] for _ in range(G)]
    FILLS[rng.choice(kinds)](rng, slots, E, C)
    padded = np.full((G, C), -1)
    for row, experts in zip(padded, slots, strict=True):
        row[rng.permutation(C)[: len(experts)]] = experts
    return padded


def _fill_skewed(rng, slots, E, C):
    """Every expert on a random instance with room, then more replicas by a skewed popularity, some slots empty."""
    for e in rng.permutation(E):
        slots[rng.choice([g for g, row in enumerate(slots) if len(row) < C])].append(int(e))
    weight = rng.random(E) ** 3 + 1e-9
    for row in slots:
        left = np.setdiff1d(np.arange(E), row)
        take = min(rng.binomial(C - len(row), 0.7), len(left))
        if take:
            row += rng.choice(left, size=take, replace=False, p=weight[left] / weight[left].sum()).tolist()


def _fill_even(rng, slots, E, C):
    """Round after round of all experts, each on one of the instances with most room."""
    rounds = rng.integers(1, 5)
    for e in np.concatenate([rng.permutation(E) for _ in range(rounds)]):
        room = [C - len(row) if e not in row else 0 for row in slots]
        if max(room) > 0:
            slots[rng.choice(np.flatnonzero(np.array(room) == max(room)))].append(int(e))


def _fill_ring(rng, slots, E, C):
    """Expert after expert on the first instance with most room, and on its next neighbours while they have spare room."""
    G, spare, rounds = len(slots), len(slots) * C - E, rng.integers(1, 3)
    for e in rng.permutation(E).tolist():
        room = [C - len(row) for row in slots]
        first = int(np.argmax(room))
        slots[first].append(e)
        for g in {(first + step) % G for step in range(1, 1 + rounds)} - {first}:
            if len(slots[g]) < C and spare > 0:
                slots[g].append(e)
                spare -= 1


FILLS = {"even": _fill_even, "skewed": _fill_skewed, "ring": _fill_ring}


def hard_case(rng, most_instances=32):
    """Ids and slots where the greedy start often misses the optimum: even replicas and m * G activated experts."""
    G = int(rng.integers(6, most_instances + 1))
    E = G * int(rng.integers(2, 6))
    slots = random_slots(rng, E, G, 2 * E // G, kinds=("even", "ring"))
    ids = rng.permutation(E)[: G * rng.integers(2, 4)]
    return np.resize(ids, (len(ids), rng.integers(1, 4))), slots


def crossing_case(seed):
    """A case for `CROSSINGS`: few experts, uneven replicas."""
    rng = np.random.default_rng(seed)
    E, G = int(rng.integers(4, 24)), int(rng.integers(3, 8))
    slots = random_slots(rng, E, G, -(-E // G) + int(rng.integers(1, 5)))
    return random_ids(rng, E, int(rng.integers(1, 20)), int(rng.integers(1, 4)), G), slots


# The few seeds below 30,000 where the least-loaded target is not the one with the lowest id.
CROSSINGS = (3560, 4055, 25232, 18212, 14787)


def random_ids(rng, E, T, K, G=1):
    """Ids [T, K] with duplicates within a row; half of them activate m * G experts, where the search has most to do."""
    if rng.random() < 0.5:
        active = rng.permutation(E)[: G * rng.integers(1, 4)]
        return rng.permutation(np.resize(active, T * K)).reshape(T, K)
    weight = rng.random(E) ** rng.choice([0.0, 0.5, 2.0, 6.0])
    ids = rng.choice(E, size=(T, K), p=weight / weight.sum())
    return np.where(rng.random((T, K)) < rng.choice([0.0, 0.1]), -1, ids)


def optimum(ids, slots):
    """Smallest a_max of any map that uses one replica per activated expert."""
    active = np.unique(ids[ids >= 0]).tolist()
    if not active:
        return 0
    low, high = 1, len(active)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(active, slots, middle) else (middle + 1, high)
    return low


def is_optimum(ids, slots, a_max):
    """Whether `a_max` is what `optimum` returns, with two flows instead of a search: it is possible, one less is not."""
    active = np.unique(ids[ids >= 0]).tolist()
    if not active or a_max < 1:
        return not active and a_max == 0
    return _fits(active, slots, a_max) and not _fits(active, slots, a_max - 1)


def _fits(active, slots, a_max):
    G, n = len(slots), len(active)
    source, sink, number = n + G, n + G + 1, {e: i for i, e in enumerate(active)}
    edges = [(source, i, 1) for i in range(n)] + [(n + g, sink, a_max) for g in range(G)]
    edges += [(number[e], n + g, 1) for g, row in enumerate(slots.tolist()) for e in row if e in number]
    tails, heads, capacity = zip(*edges, strict=True)
    graph = csr_matrix((np.array(capacity, dtype=np.int32), (tails, heads)), shape=(n + G + 2, n + G + 2))
    return maximum_flow(graph, source, sink).flow_value == n
