"""The balancers compiled by numba: the same steps as `reference`, the same integers, no allocation.

All compiled functions live in this one file, because numba's cache notices changes of one file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from janus.sched.tables import LayerTables, Workspace

SPLITS = {"tokens": 0, "random": 1, "round_robin": 2}
MASK = 0xFFFFFFFF


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit`, with the compiled code kept on disk where some folder for it can be written.

    numba tries NUMBA_CACHE_DIR, then beside the source, then the user's cache folder, and raises RuntimeError where
    all are read-only; then each process compiles anew (seconds).
    """
    try:
        return numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.njit(error_model="numpy")(function)


def fill(
    method: str, ids: npt.NDArray[np.integer], out: npt.NDArray[np.integer], tables: LayerTables, work: Workspace
) -> int:
    """Same contract as `reference.fill`; `ids` and `out` int32 or int64, C-contiguous and writeable."""
    t = tables
    if method == "cost":
        from janus.sched import cost_numba  # uses this file

        return cost_numba.fill(ids, out, tables, work)
    if method in SPLITS:
        return split(ids, out, t.log2phy, t.logcnt, t.num_instances, work.flat, t.num_slots, SPLITS[method])
    return choose(ids, out, t.phy2log, t.log2phy, t.order, t.num_instances, work.flat, method == "exact")


def tally(tables: LayerTables, work: Workspace, sums: npt.NDArray[np.int64], seen: npt.NDArray[np.int64]) -> None:
    """Same contract as `reference.tally`."""
    add(work.flat, tables.num_experts, tables.num_instances, tables.num_slots, sums, seen)


@compiled
def add(flat: Any, E: int, G: int, R: int, sums: Any, seen: Any) -> None:
    """Sums in the order of `stats.SUMS`; ids out of range never come this far."""
    tokens, _, per_slot, bound, load, _, _, _ = carve(flat, E, G, R)
    most, entries, experts, slots, a_max = 0, 0, 0, 0, 0
    for g in range(G):
        spent = 0
        for r in range(g * (R // G), (g + 1) * (R // G)):
            spent += per_slot[r]
        entries += spent
        slots += load[g]
        most = max(most, spent)
        a_max = max(a_max, load[g])
    for e in range(E):
        experts += tokens[e] > 0
    for e in range(len(seen)):
        seen[e] += tokens[e]
    sums[0] += 1
    sums[1] += entries
    sums[2] += experts
    sums[3] += slots
    sums[4] += a_max
    sums[5] += bound[0]
    sums[6] += most


@compiled
def carve(flat: Any, E: int, G: int, R: int) -> Any:
    """The parts of `Workspace.flat`, in its order."""
    s = flat[2 * E + R + 3 :]
    return (flat[: E + 1], flat[E + 1 : 2 * E + 2], flat[2 * E + 2 : 2 * E + 2 + R], flat[2 * E + 2 + R : 2 * E + 3 + R],
            s[:G], s[G : 2 * G], s[2 * G : 3 * G], s[3 * G :])  # fmt: skip


@compiled
def choose(ids: Any, out: Any, phy2log: Any, log2phy: Any, order: Any, G: int, flat: Any, exact: bool) -> int:
    """One replica for every activated expert."""
    bad = settle(ids, phy2log, log2phy, order, G, flat, exact)
    if bad < 0:
        rewrite(ids, out, flat[len(order) + 1 : 2 * len(order) + 2])
    return bad


@compiled
def settle(ids: Any, phy2log: Any, log2phy: Any, order: Any, G: int, flat: Any, exact: bool) -> int:
    """`choose` up to the assignment: everything but the ids."""
    E, R = len(order), len(phy2log)
    tokens, replica, per_slot, bound, load, spent, queue, level = carve(flat, E, G, R)
    bad = count(ids, tokens, E)
    if bad >= 0:
        return bad
    start(tokens, replica, per_slot, bound, load, spent, log2phy, order, R // G, exact)
    if exact:
        while shift(replica, per_slot, bound[0], load, queue, level, phy2log, log2phy):
            pass
    return -1


@compiled
def count(ids: Any, tokens: Any, E: int) -> int:
    """Entries of each expert; -1 lands in the extra last place. Returns the first bad position or -1."""
    tokens[:] = 0
    flat_ids = ids.reshape(-1)
    for i in range(len(flat_ids)):
        e = flat_ids[i]
        if e < -1 or e >= E:
            return i
        tokens[e] += 1
    return -1


@compiled
def rewrite(ids: Any, out: Any, replica: Any) -> None:
    """Logical to physical ids; -1 finds -1 in the extra last place."""
    flat_ids, flat_out = ids.reshape(-1), out.reshape(-1)
    for i in range(len(flat_ids)):
        flat_out[i] = replica[flat_ids[i]]


@compiled
def start(
    tokens: Any, replica: Any, per_slot: Any, bound: Any, load: Any, spent: Any, log2phy: Any, order: Any, C: int,
    tie_by_tokens: bool,
) -> None:  # fmt: skip
    """Greedy start; also the lower bound: when the experts with one replica are done, load is what they force."""
    G, X = len(load), log2phy.shape[1]
    replica[:] = -1
    per_slot[:] = 0
    load[:] = 0
    spent[:] = 0
    active, forced, single = 0, 0, True
    for i in range(len(order)):
        e = order[i]
        n = tokens[e]
        if n == 0:
            continue
        active += 1
        # the least-loaded host; a strict comparison leaves ties to the lower id
        best = log2phy[e, 0]
        g = best // C
        if X > 1 and log2phy[e, 1] >= 0:
            single = False
            for x in range(1, X):
                r = log2phy[e, x]
                if r < 0:
                    break
                h = r // C
                if load[h] < load[g] or (load[h] == load[g] and spent[h] < spent[g]):
                    best, g = r, h
        replica[e] = best
        per_slot[best] = n
        load[g] += 1
        if single:
            forced = max(forced, load[g])
        if tie_by_tokens:
            spent[g] += n
    bound[0] = max(forced, (active + G - 1) // G)


@compiled
def shift(
    replica: Any, per_slot: Any, bound: int, load: Any, queue: Any, level: Any, phy2log: Any, log2phy: Any
) -> bool:
    """One cost-reducing path from the first most-loaded instance, level by level; False when there is none."""
    G = len(load)
    C, X = len(phy2log) // G, log2phy.shape[1]
    # the first most-loaded instance
    source = 0
    for g in range(1, G):
        if load[g] > load[source]:
            source = g
    top = load[source]
    if top <= bound:
        return False
    # breadth first, a whole level at a time; level[h] < 0: not reached
    level[:] = -1
    level[source] = 0
    queue[0] = source
    head, tail, depth = 0, 1, 0
    while head < tail:
        depth, end, target = depth + 1, tail, -1
        for at in range(head, end):
            g = queue[at]
            for r in range(g * C, (g + 1) * C):
                if per_slot[r] == 0:  # not in use: empty, not activated, or another replica serves
                    continue
                e = phy2log[r]
                for x in range(X):
                    s = log2phy[e, x]
                    if s < 0:
                        break
                    h = s // C
                    if level[h] >= 0:
                        continue
                    level[h] = depth
                    queue[tail] = h
                    tail += 1
                    # at top - 1 the expert would only make its new host the most loaded
                    if load[h] <= top - 2 and (
                        target < 0 or load[h] < load[target] or (load[h] == load[target] and h < target)
                    ):
                        target = h
        if target >= 0:
            load[target] += 1
            load[source] -= 1
            walk_back(target, depth, replica, per_slot, level, phy2log, C)
            return True
        head = end
    return False


@compiled
def walk_back(h: int, depth: int, replica: Any, per_slot: Any, level: Any, phy2log: Any, C: int) -> None:
    """Hand `h` the lowest expert that the level before it can give, then do the same for the giver, to the source."""
    for step in range(depth - 1, -1, -1):
        given = len(replica)
        slot = -1
        for s in range(h * C, (h + 1) * C):
            e = phy2log[s]
            if 0 <= e < given and replica[e] >= 0 and level[replica[e] // C] == step:
                given, slot = e, s
        r = replica[given]
        replica[given] = slot
        per_slot[slot] = per_slot[r]
        per_slot[r] = 0
        h = r // C


@compiled
def split(ids: Any, out: Any, log2phy: Any, logcnt: Any, G: int, flat: Any, R: int, kind: int) -> int:
    """The baselines that may split an expert's tokens over its replicas, entry by entry."""
    E = len(logcnt)
    C = R // G
    tokens, replica, per_slot, bound, load, spent, _, _ = carve(flat, E, G, R)
    bad = count(ids, tokens, E)
    if bad >= 0:
        return bad
    # count, lower bound
    bound[0] = forced_bound(tokens, load, log2phy, logcnt, C)
    tokens[:] = 0  # from here on: entries of each expert seen so far
    replica[:] = -1
    per_slot[:] = 0
    load[:] = 0
    spent[:] = 0
    flat_ids, flat_out = ids.reshape(-1), out.reshape(-1)
    # entry by entry
    salt = batch_salt(flat_ids) if kind == 1 else 0
    for i in range(len(flat_ids)):
        e = flat_ids[i]
        if e < 0:
            flat_out[i] = -1
            continue
        r = pick(kind, i, salt, tokens[e], log2phy[e], logcnt[e], spent, C)
        flat_out[i] = r
        g = r // C
        tokens[e] += 1
        spent[g] += 1
        if replica[e] < 0:
            replica[e] = r
        if per_slot[r] == 0:
            load[g] += 1
        per_slot[r] += 1
    return -1


@compiled
def forced_bound(tokens: Any, load: Any, log2phy: Any, logcnt: Any, C: int) -> int:
    """The lower bound of a_max: the mean, rounded up, and what experts with one replica force."""
    load[:] = 0
    active, forced = 0, 0
    for e in range(len(logcnt)):
        if tokens[e] > 0:
            active += 1
            if logcnt[e] == 1:
                g = log2phy[e, 0] // C
                load[g] += 1
                forced = max(forced, load[g])
    return max(forced, (active + len(load) - 1) // len(load))


@compiled
def pick(kind: int, i: int, salt: int, seen: int, slots: Any, replicas: int, spent: Any, C: int) -> int:
    """The slot of one entry: `kind` as in SPLITS."""
    if kind == 1:
        return slots[mix(i ^ salt) % replicas]
    if kind == 2:
        return slots[seen % replicas]
    best = slots[0]
    for x in range(1, replicas):
        if spent[slots[x] // C] < spent[best // C]:
            best = slots[x]
    return best


@compiled
def batch_salt(flat_ids: Any) -> int:
    """32 bits that depend on every entry and its position; int64 wraps, its low 32 bits stay right."""
    salt = 0
    for i in range(len(flat_ids)):
        salt += (i + 1) * (flat_ids[i] + 1)
    return salt & MASK


@compiled
def mix(x: int) -> int:
    """As `reference.mix`."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


@compiled
def busiest(
    counts_nE: Any, phy2log: Any, log2phy: Any, order: Any, G: int, exact: bool, flat: Any, out_n2: Any
) -> None:
    """(a_max, most routing entries of an instance) of n batches, of which only the entries per expert are given.

    Which replica serves an expert depends on nothing else in the methods "exact" and "greedy".
    """
    E, R = len(order), len(phy2log)
    tokens, replica, per_slot, bound, load, spent, queue, level = carve(flat, E, G, R)
    C = R // G
    for i in range(len(counts_nE)):
        tokens[:E] = counts_nE[i]
        start(tokens, replica, per_slot, bound, load, spent, log2phy, order, C, exact)
        if exact:
            while shift(replica, per_slot, bound[0], load, queue, level, phy2log, log2phy):
                pass
        a_max, most = 0, 0
        for g in range(G):
            a_max = max(a_max, load[g])
            entries = 0
            for r in range(g * C, (g + 1) * C):
                entries += per_slot[r]
            most = max(most, entries)
        out_n2[i, 0], out_n2[i, 1] = a_max, most
