"""Random cases, and the smallest possible a_max by another road: maximum flow and a search on a_max."""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow


def random_slots(rng, E, G, C, empty=0.3):
    """Slots [G, C]: every expert once where there is room, then more replicas by a skewed popularity."""
    assert G * C >= E
    slots = [[] for _ in range(G)]
    for e in rng.permutation(E):
        open_instances = [g for g in range(G) if len(slots[g]) < C]
        slots[rng.choice(open_instances)].append(int(e))
    weight = rng.random(E) ** 3 + 1e-9
    for g in range(G):
        spare = rng.binomial(C - len(slots[g]), 1 - empty) if rng.random() < 0.8 else C - len(slots[g])
        left = np.setdiff1d(np.arange(E), slots[g])
        take = min(spare, len(left))
        if take:
            slots[g] += rng.choice(left, size=take, replace=False, p=weight[left] / weight[left].sum()).tolist()
    padded = np.full((G, C), -1)
    for g in range(G):
        padded[g, rng.permutation(C)[: len(slots[g])]] = slots[g]
    return padded


def random_ids(rng, E, T, K):
    """Ids [T, K]: a skewed popularity, duplicates within a row, and a few -1."""
    weight = rng.random(E) ** rng.choice([0.5, 2.0, 6.0])
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


def _fits(active, slots, a_max):
    G, n = len(slots), len(active)
    source, sink, number = n + G, n + G + 1, {e: i for i, e in enumerate(active)}
    edges = [(source, i, 1) for i in range(n)] + [(n + g, sink, a_max) for g in range(G)]
    edges += [(number[e], n + g, 1) for g, row in enumerate(slots.tolist()) for e in row if e in number]
    tails, heads, capacity = zip(*edges, strict=True)
    graph = csr_matrix((np.array(capacity, dtype=np.int32), (tails, heads)), shape=(n + G + 2, n + G + 2))
    return maximum_flow(graph, source, sink).flow_value == n
