"""The local search of `place` on one layer, in integers: compiled where numba can be imported, else run as it is.

One source for both, so both give the same map. A batch is only the set of experts it activates. Every batch keeps an
optimal assignment, a change of the map is repaired batch by batch with the shortest paths of docs/sched.md, and what
is counted is therefore always the exact a_max. Imported on first use, because numba takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from janus.sched.search_state import MASK, State

try:
    import numba
except ImportError:
    numba = None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit` that releases the interpreter's lock, kept on disk where that is possible; without numba nothing."""
    if numba is None:
        return function
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder for the compiled code can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def random_below(rng: Any, n: int) -> int:
    """Xorshift with 32 bits of state: the next number in 0..n-1."""
    x = rng[0]
    x ^= (x << 13) & MASK
    x ^= x >> 17
    x ^= (x << 5) & MASK
    rng[0] = x
    return (x * n) >> 32


@compiled
def begin(s: State, order: Any) -> None:
    """Fill the tables of the map, and assign every batch: greedy start, then paths."""
    G, C = s.slots.shape
    for g in range(G):
        for c in range(C):
            e = s.slots[g, c]
            if e >= 0:
                s.hosts[e, s.replicas[e]] = g
                s.replicas[e] += 1
    for g in range(G):
        list_shared(s, g)
    home, load, hosts, replicas = s.home, s.load, s.hosts, s.replicas
    for e in order:
        for i in range(len(s.top)):
            if s.active[e, i]:
                settle(i, e, home, load, hosts, replicas)
                s.floor[i] += 1
    for i in range(len(s.top)):
        s.floor[i] = (s.floor[i] + G - 1) // G
        s.top[i] = improve(i, home, load, s.shared, s.num_shared, hosts, replicas, s.floor[i], s.trail)


@compiled
def list_shared(s: State, g: int) -> None:
    """The experts on g that can be served elsewhere too: all that a path can use."""
    k = 0
    for c in range(s.slots.shape[1]):
        e = s.slots[g, c]
        if e >= 0 and s.replicas[e] >= 2:
            s.shared[g, k] = e
            k += 1
    s.num_shared[g] = k


# The three functions below run a thousand times per change. They take whole arrays and the batch i: a row, or a field
# of a tuple, taken where they run would cost as much as the work (numba counts references to it).


@compiled
def settle(i: int, e: int, home: Any, load: Any, hosts: Any, replicas: Any) -> None:
    """Expert e of batch i to its least-loaded host, ties to the first listed."""
    best = hosts[e, 0]
    for x in range(1, replicas[e]):
        if load[i, hosts[e, x]] < load[i, best]:
            best = hosts[e, x]
    home[i, e] = best
    load[i, best] += 1


@compiled
def improve(
    i: int, home: Any, load: Any, shared: Any, num_shared: Any, hosts: Any, replicas: Any, floor: int, trail: Any
) -> int:
    """Shift experts of batch i along shortest paths until a_max is the smallest possible; returns it.

    Where it is above `floor`, `trail[2]` marks with >= 0 the instances that the last, failed search reached.
    """
    while True:
        source = 0
        for g in range(1, load.shape[1]):
            if load[i, g] > load[i, source]:
                source = g
        top = load[i, source]
        if top <= floor:
            return top
        h = reach(i, source, home, load, shared, num_shared, hosts, replicas, trail)
        if h < 0:
            return top
        load[i, h] += 1
        load[i, source] -= 1
        while h != source:
            home[i, trail[1, h]] = h
            h = trail[2, h]


@compiled
def reach(
    i: int, source: int, home: Any, load: Any, shared: Any, num_shared: Any, hosts: Any, replicas: Any, trail: Any
) -> int:
    """Breadth first from `source` to the first instance with load two below its own, or -1.

    `trail[0]` is the queue; for an instance h, `trail[1, h]` is the expert that leads to it, from `trail[2, h]`.
    """
    room = load[i, source] - 2
    for g in range(load.shape[1]):
        trail[2, g] = -1
    trail[2, source] = source
    trail[0, 0] = source
    head, tail = 0, 1
    while head < tail:
        g = trail[0, head]
        head += 1
        for c in range(num_shared[g]):
            e = shared[g, c]
            if home[i, e] != g:
                continue
            for x in range(replicas[e]):
                h = hosts[e, x]
                if trail[2, h] >= 0:
                    continue
                trail[1, h], trail[2, h] = e, g
                if load[i, h] <= room:
                    return h
                trail[0, tail] = h
                tail += 1
    return -1


@compiled
def search(s: State, steps: int, patience: int, price: int, checkpoint: int) -> None:
    """Try up to `steps` changes of the map and keep those that lower sum(top) + price * slots changed from `held`.

    Ends early after `patience` changes in a row that did not, or when every batch is at its floor.
    """
    num_loose = list_loose(s)
    failures = 0
    for _ in range(steps):
        if num_loose == 0 or failures > patience:
            break
        failures += 1
        e, f, g, h, swap = propose(s, s.loose[random_below(s.rng, num_loose)])
        if e < 0:
            continue
        cost = price * slots_changed(s, e, f, g, h, swap)
        change(s, e, f, g, h, swap)
        delta, num_touched = judge(s, e, f, g, h, swap, cost, checkpoint)
        if delta < 0:
            keep_draft(s, num_touched)
            num_loose = list_loose(s)
            failures = 0
        else:
            change(s, f, e, g, h, swap)  # the change is its own reverse with e and f exchanged


@compiled
def list_loose(s: State) -> int:
    """Fill `loose`; returns how many batches are above their floor."""
    k = 0
    for i in range(len(s.top)):
        if s.top[i] > s.floor[i]:
            s.loose[k] = i
            k += 1
    return k


@compiled
def propose(s: State, i: int) -> Any:
    """A change that takes one expert out of the instances that hold batch i up: (e, f, g, h, swap); e = -1: none.

    Expert e of instance g gets a slot of f on h, where batch i has room; f moves to g (swap) or loses the replica.
    """
    # the trail of the search that fails marks these instances
    improve(i, s.home, s.load, s.shared, s.num_shared, s.hosts, s.replicas, s.floor[i], s.trail)
    g, h, inside, outside = -1, -1, 0, 0
    for j in range(len(s.num_shared)):
        if s.trail[2, j] >= 0:
            inside += 1
            if random_below(s.rng, inside) == 0:
                g = j
        elif s.load[i, j] <= s.top[i] - 2:
            outside += 1
            if random_below(s.rng, outside) == 0:
                h = j
    swap = random_below(s.rng, 2) == 0
    home = s.home[i]
    e = pick_expert(s, home, g, h, swap)
    f = pick_partner(s, home, g, h, swap) if e >= 0 else -2
    return (e, f, g, h, swap) if f > -2 else (-1, -1, g, h, swap)


@compiled
def pick_expert(s: State, home: Any, g: int, h: int, swap: bool) -> int:
    """An expert that g serves in the batch and that may come to h, or -1."""
    e, seen = -1, 0
    for c in range(s.slots.shape[1]):
        x = s.slots[g, c]
        if x >= 0 and home[x] == g and may_change(s, x, g if swap else -1, h):
            seen += 1
            if random_below(s.rng, seen) == 0:
                e = x
    return e


@compiled
def pick_partner(s: State, home: Any, g: int, h: int, swap: bool) -> int:
    """What leaves h: an expert that h does not serve in the batch, or a replica too many; -1 an empty slot; -2 none."""
    f, seen = -2, 0
    for c in range(s.slots.shape[1]):
        x = s.slots[h, c]
        if x >= 0:
            if swap and (home[x] == h or not may_change(s, x, h, g)):
                continue
            if not swap and (s.replicas[x] <= s.least or not may_change(s, x, h, -1)):
                continue
        seen += 1
        if random_below(s.rng, seen) == 0:
            f = x
    return f


@compiled
def may_change(s: State, e: int, loses: int, gains: int) -> bool:
    """Whether e may leave instance `loses` and come to `gains` (-1: none): never twice on one, and on enough nodes."""
    count, nodes = 0, 0
    for x in range(s.replicas[e] + 1):
        g = s.hosts[e, x] if x < s.replicas[e] else gains
        if g < 0 or g == loses:
            continue
        if x < s.replicas[e] and g == gains:
            return False
        count += 1
        nodes += first_on_node(s, e, x, g, loses)
    return nodes >= min(count, s.slots.shape[0] // s.node_size)


@compiled
def first_on_node(s: State, e: int, x: int, g: int, loses: int) -> int:
    """1 when none of the hosts of e before the x-th, `loses` aside, is on the node of g."""
    for y in range(x):
        h = s.hosts[e, y]
        if h != loses and h // s.node_size == g // s.node_size:
            return 0
    return 1


@compiled
def slots_changed(s: State, e: int, f: int, g: int, h: int, swap: bool) -> int:
    """By how much the change raises the number of slots that hold what their instance did not hold before."""
    more = is_new(s, e, h) - is_new(s, f, h)
    return more + is_new(s, f, g) - is_new(s, e, g) if swap else more


@compiled
def is_new(s: State, e: int, g: int) -> int:
    """1 when instance g did not hold e."""
    return 1 if e >= 0 and not s.held[g, e] else 0


@compiled
def change(s: State, e: int, f: int, g: int, h: int, swap: bool) -> None:
    """On h, e takes the slot of f; with `swap`, on g, f takes the slot of e. -1 is an empty slot."""
    replace(s, h, f, e)
    if swap:
        replace(s, g, e, f)
        list_shared(s, g)
        list_shared(s, h)
        return
    # numbers of replicas changed: so did what can be served elsewhere
    list_shared(s, h)
    if e >= 0:
        for x in range(s.replicas[e]):
            list_shared(s, s.hosts[e, x])
    if f >= 0:
        for x in range(s.replicas[f]):
            list_shared(s, s.hosts[f, x])


@compiled
def replace(s: State, g: int, old: int, new: int) -> None:
    """The slot of `old` on g gets `new`."""
    for c in range(s.slots.shape[1]):
        if s.slots[g, c] == old:
            s.slots[g, c] = new
            break
    if old >= 0:
        s.replicas[old] -= 1
        for x in range(s.replicas[old]):
            if s.hosts[old, x] == g:
                s.hosts[old, x] = s.hosts[old, s.replicas[old]]
                break
    if new >= 0:
        s.hosts[new, s.replicas[new]] = g
        s.replicas[new] += 1


@compiled
def judge(s: State, e: int, f: int, g: int, h: int, swap: bool, cost: int, checkpoint: int) -> Any:
    """(change of the sum of a_max, plus `cost`; batches in `touched`), on drafts.

    Given up as soon as, at a checkpoint (each twice the last), it is worse by more than half its standard error: most
    changes are, and a few batches show it.
    """
    delta, changed, k, n = 0, 0, 0, len(s.top)
    active, home, load, top, floor, draft_top = s.active, s.home, s.load, s.top, s.floor, s.draft_top
    draft_home, draft_load, hosts, replicas = s.draft_home, s.draft_load, s.hosts, s.replicas
    shared, num_shared, trail, touched = s.shared, s.num_shared, s.trail, s.touched
    for i in range(n):
        if i == checkpoint:
            checkpoint *= 2
            worse = delta + cost * i // n
            if worse > 0 and 4 * worse * worse > changed:
                return 1, 0
        uses_e, uses_f = active[e, i], f >= 0 and active[f, i]
        leaves_g = swap and uses_e and home[i, e] == g
        leaves_h = uses_f and home[i, f] == h
        # at its floor a batch can only lose
        if leaves_g or leaves_h or ((uses_e or uses_f) and top[i] > floor[i]):
            copy_row(i, home, draft_home)
            copy_row(i, load, draft_load)
            if leaves_g:
                draft_load[i, g] -= 1
                settle(i, e, draft_home, draft_load, hosts, replicas)
            if leaves_h:
                draft_load[i, h] -= 1
                settle(i, f, draft_home, draft_load, hosts, replicas)
            draft_top[i] = improve(i, draft_home, draft_load, shared, num_shared, hosts, replicas, floor[i], trail)
            touched[k] = i
            k += 1
            delta += draft_top[i] - top[i]
            changed += abs(draft_top[i] - top[i])
    return delta + cost, k


@compiled
def copy_row(i: int, source: Any, target: Any) -> None:
    """Row i of `source` to `target`."""
    for x in range(source.shape[1]):
        target[i, x] = source[i, x]


@compiled
def keep_draft(s: State, num_touched: int) -> None:
    """The drafts become the assignments."""
    for k in range(num_touched):
        i = s.touched[k]
        s.home[i] = s.draft_home[i]
        s.load[i] = s.draft_load[i]
        s.top[i] = s.draft_top[i]
