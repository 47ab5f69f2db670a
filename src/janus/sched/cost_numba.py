"""Method `"cost"` compiled by numba: the same steps as `cost_reference`, the same integers, no allocation.

Nothing compiled here calls a compiled function of another file: numba's cache would not notice that one changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from janus.sched.cost_reference import SEARCHES, TOLERANCE
from janus.sched.numba_backend import compiled, settle
from janus.sched.tables import LayerTables, Workspace

ANY = 2**62  # more tokens than there are


def fill(ids: npt.NDArray[np.integer], out: npt.NDArray[np.integer], tables: LayerTables, work: Workspace) -> int:
    """Same contract as `reference.fill` with method `"cost"`."""
    t, w = tables, work
    assert t.cost is not None
    # the exact assignment; slots of each instance and tokens of each slot come with it
    bad = settle(ids, t.phy2log, t.log2phy, t.order, t.num_instances, w.flat, True)
    if bad < 0:
        read, token = t.cost
        limits = SEARCHES * t.num_slots, TOLERANCE
        balance_cost(ids, out, t.phy2log, t.log2phy, w.replica, w.load, w.tokens_per_slot, w.wide, read, token, *limits)
    return bad


@compiled
def balance_cost(
    ids: Any, out: Any, phy2log: Any, log2phy: Any, replica: Any, load: Any, served: Any, wide: Any, read: int,
    token: int, searches: int, tolerance: int,
) -> None:  # fmt: skip
    """From the exact assignment to the cheaper one; the ids of every entry."""
    E, G = len(replica), len(load)
    by_instance, by_expert = wide[: 8 * G].reshape(8, G), wide[8 * G : 8 * G + 2 * E + 2].reshape(2, E + 1)
    cost, tokens, kept = by_instance[0], by_expert[1], wide[8 * G + 2 * E + 2 :]
    costs(cost, served, read, token)
    lower = lower_cost(replica, load, served, log2phy, by_instance[1], read, token)
    if highest(cost) > lower:
        for e in range(E):
            tokens[e] = served[replica[e]] if replica[e] >= 0 else 0
        cheaper_start(replica, load, served, cost, by_instance[1], by_expert[0], log2phy, read, token)
        improve(served, lower, by_instance, phy2log, log2phy, read, token, searches, tolerance)
        first = highest(cost)
        if first - lower > max(1, first >> tolerance):
            kept[:] = served
            spread_start(replica, tokens, served, cost, log2phy, read, token)
            improve(served, lower, by_instance, phy2log, log2phy, read, token, searches, tolerance)
            if highest(cost) >= first:
                served[:] = kept
    deal(ids, out, log2phy, replica, load, served, by_expert)


@compiled
def slot_cost(tokens: int, read: int, token: int) -> int:
    """Picoseconds of a slot that serves so many tokens."""
    return max(read, token * tokens) if tokens > 0 else 0


@compiled
def highest(values: Any) -> int:
    """`max`, without the array machinery."""
    top = values[0]
    for i in range(1, len(values)):
        top = max(top, values[i])
    return top


@compiled
def costs(cost: Any, served: Any, read: int, token: int) -> None:
    """Picoseconds of each instance."""
    C = len(served) // len(cost)
    for g in range(len(cost)):
        cost[g] = 0
        for r in range(g * C, (g + 1) * C):
            cost[g] += slot_cost(np.int64(served[r]), read, token)


@compiled
def lower_cost(replica: Any, load: Any, served: Any, log2phy: Any, forced: Any, read: int, token: int) -> int:
    """No assignment costs less: a_max reads, the mean, and what experts with one replica cost their instance."""
    G, X = len(load), log2phy.shape[1]
    C = len(served) // G
    total = 0
    forced[:] = 0
    for e in range(len(replica)):
        r = replica[e]
        if r >= 0:
            cost = slot_cost(np.int64(served[r]), read, token)
            total += cost
            if X == 1 or log2phy[e, 1] < 0:
                forced[r // C] += cost
    return max(highest(load) * read, (total + G - 1) // G, highest(forced))


@compiled
def cheaper_start(
    replica: Any, load: Any, served: Any, cost: Any, other: Any, chosen: Any, log2phy: Any, read: int, token: int
) -> None:
    """Take the assignment of the greedy method where its costliest instance costs less."""
    E, X = log2phy.shape
    C = len(served) // len(load)
    load[:] = 0
    other[:] = 0
    for single in (True, False):  # experts with one replica first, then the others in ascending id
        for e in range(E):
            if replica[e] < 0 or (X == 1 or log2phy[e, 1] < 0) != single:
                continue
            best = log2phy[e, 0]
            for x in range(1, X):
                r = log2phy[e, x]
                if r < 0:
                    break
                if load[r // C] < load[best // C]:
                    best = r
            chosen[e] = best
            load[best // C] += 1
            other[best // C] += slot_cost(np.int64(served[replica[e]]), read, token)
    if highest(other) >= highest(cost):
        return
    cost[:] = other
    for e in range(E):
        if replica[e] >= 0 and replica[e] != chosen[e]:
            served[chosen[e]] = served[replica[e]]
            served[replica[e]] = 0


@compiled
def spread_start(replica: Any, tokens: Any, served: Any, cost: Any, log2phy: Any, read: int, token: int) -> None:
    """The exact assignment, but experts of two reads and more in equal parts over their cheapest hosts."""
    E, X = log2phy.shape
    C = len(served) // len(cost)
    served[:] = 0
    for e in range(E):
        if tokens[e] > 0:
            served[replica[e]] = tokens[e]
    costs(cost, served, read, token)
    for e in range(E):
        n = tokens[e]
        if token * n < 2 * read:
            continue
        replicas = 0
        while replicas < X and log2phy[e, replicas] >= 0:
            replicas += 1
        parts = min(replicas, token * n // read)
        if parts < 2:
            continue
        cost[replica[e] // C] -= token * n
        served[replica[e]] = 0
        for part in range(parts):
            best = -1
            for x in range(replicas):
                r = log2phy[e, x]
                if served[r] == 0 and (best < 0 or cost[r // C] < cost[best // C]):
                    best = r
            share = n // parts + (1 if part < n % parts else 0)
            served[best] = share
            cost[best // C] += slot_cost(share, read, token)


@compiled
def improve(
    served: Any, lower: int, by_instance: Any, phy2log: Any, log2phy: Any, read: int, token: int, searches: int,
    tolerance: int,
) -> None:  # fmt: skip
    """Search for the smallest limit that `relieve` can bring the costliest instance under, by halving."""
    limit, cost = lower, by_instance[0]
    for _ in range(searches):
        if relieve(served, limit, by_instance, phy2log, log2phy, read, token):
            continue
        top = highest(cost)
        if top > limit:
            lower = limit
        if top - lower <= max(1, top >> tolerance):
            return
        limit = lower + (top - lower) // 2


@compiled
def relieve(served: Any, limit: int, by_instance: Any, phy2log: Any, log2phy: Any, read: int, token: int) -> bool:
    """Take cost off the first costliest instance along one chain of moves; no other one ends above the limit."""
    cost, over, spare = by_instance[0], by_instance[1], by_instance[2]
    queue, leaves, takes = by_instance[5], by_instance[6], by_instance[7]
    G, C, X = len(cost), len(served) // len(cost), log2phy.shape[1]
    source = 0
    for g in range(1, G):
        if cost[g] > cost[source]:
            source = g
    if cost[source] <= limit:
        return False
    # breadth first; takes[h] >= 0 marks h as reached
    takes[:] = -1
    takes[source] = len(served)  # no slot
    over[source] = cost[source] - limit
    spare[source] = ANY
    queue[0] = source
    head, tail = 0, 1
    while head < tail:
        g = queue[head]
        head += 1
        came = -1 if g == source else phy2log[takes[g]]
        for r in range(g * C, (g + 1) * C):
            e = phy2log[r]
            if served[r] == 0 or e == came:
                continue
            for x in range(X):
                s = log2phy[e, x]
                if s < 0:
                    break
                h = s // C
                if takes[h] >= 0 or not step(served, limit, by_instance, g, h, r, s, g == source, read, token):
                    continue
                leaves[h] = r
                takes[h] = s
                if over[h] <= spare[h] * token:
                    walk_back(served, by_instance, h, source, C, read, token)
                    return True
                queue[tail] = h
                tail += 1
    return False


@compiled
def step(
    served: Any, limit: int, by_instance: Any, g: int, h: int, r: int, s: int, first: bool, read: int, token: int
) -> bool:
    """The better of moving all tokens of slot r to slot s and moving a part; False when neither does."""
    cost, over, spare, amount, short = by_instance[0], by_instance[1], by_instance[2], by_instance[3], by_instance[4]
    here, there = np.int64(served[r]), np.int64(served[s])
    already = slot_cost(there, read, token)
    room = max(0, limit - cost[h])
    found = False
    # whole
    if first or slot_cost(here, read, token) >= over[g]:
        found = True
        amount[h], short[h], spare[h] = here, 0, 0
        over[h] = slot_cost(there + here, read, token) - already - room
    # part
    beyond = token * here - read
    if beyond <= 0:
        return found
    part = (min(over[g], beyond) + token - 1) // token
    lacks = (max(0, over[g] - beyond) + token - 1) // token
    if lacks > spare[g]:
        return found
    after = token * (there + part)
    excess = max(read, after) - already - room
    if not found or excess < over[h]:
        found = True
        amount[h], short[h], over[h] = part, lacks, excess
        spare[h] = min(spare[g] - lacks, part - 1, max(0, after - max(read, already)) // token)
    return found


@compiled
def walk_back(served: Any, by_instance: Any, h: int, source: int, C: int, read: int, token: int) -> None:
    """Make the moves of the chain that ends at h, each cut by what those after it leave undone."""
    cost, over, amount, short = by_instance[0], by_instance[1], by_instance[3], by_instance[4]
    leaves, takes = by_instance[6], by_instance[7]
    cut = (over[h] + token - 1) // token if over[h] > 0 else 0
    while h != source:
        r, s = leaves[h], takes[h]
        g, tokens = r // C, amount[h] - cut
        here, there = np.int64(served[r]), np.int64(served[s])
        cost[g] += slot_cost(here - tokens, read, token) - slot_cost(here, read, token)
        cost[h] += slot_cost(there + tokens, read, token) - slot_cost(there, read, token)
        served[r] = here - tokens
        served[s] = there + tokens
        cut += short[h]
        h = g


@compiled
def deal(ids: Any, out: Any, log2phy: Any, replica: Any, load: Any, served: Any, by_expert: Any) -> None:
    """Entries of one expert fill its slots one after the other in ascending physical id; also the tallies."""
    E, X = log2phy.shape
    C = len(served) // len(load)
    slot, left = by_expert[0], by_expert[1]
    load[:] = 0
    split = False
    for e in range(E):
        first, uses = -1, 0
        for x in range(X):
            r = log2phy[e, x]
            if r < 0:
                break
            if served[r] > 0:
                load[r // C] += 1
                first = r if uses == 0 else first
                uses += 1
        replica[e] = first
        slot[e] = first
        # an expert that is not split never comes to the end of its slot
        left[e] = ANY if uses < 2 else np.int64(served[first])
        split |= uses > 1
    slot[E] = -1
    left[E] = ANY
    flat_ids, flat_out = ids.reshape(-1), out.reshape(-1)
    for i in range(len(flat_ids)):
        e = flat_ids[i]
        at = np.uint64(e if e >= 0 else E)  # unsigned: no check for a negative index, a fifth faster
        flat_out[i] = slot[at]
        rest = left[at] - 1
        left[at] = rest
        if rest == 0:
            next_slot(e, slot, left, log2phy, served)


@compiled
def next_slot(e: int, slot: Any, left: Any, log2phy: Any, served: Any) -> None:
    """Go on to the next slot that serves the expert."""
    for x in range(log2phy.shape[1]):
        r = log2phy[e, x]
        if r > slot[e] and served[r] > 0:
            slot[e] = r
            left[e] = np.int64(served[r])
            return
