"""The balancers in plain Python loops: slow, readable, and the specification of every other backend.

The steps carry the names they have in docs/sched.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from janus.sched.tables import LayerTables, Workspace

MASK = 0xFFFFFFFF


def fill(
    method: str, ids: npt.NDArray[np.integer], out: npt.NDArray[np.integer], tables: LayerTables, work: Workspace
) -> int:
    """Write the physical ids of `ids` [T, K] to `out` and the tallies to `work`.

    Returns:
        The flat position of the first id outside -1..E-1, or -1 when all is well.
    """
    entries = [int(e) for e in ids.ravel()]
    for position, e in enumerate(entries):
        if not -1 <= e < tables.num_experts:
            return position
    # count, lower bound
    tokens = _count(entries, tables)
    bound = lower_bound(tokens, tables)
    if method in ("exact", "greedy"):
        # one replica per expert: start, then shift until it is optimal
        replica = start(tokens, tables, tie_by_tokens=method == "exact")
        if method == "exact":
            while shift(replica, bound, tables):
                pass
        # rewrite
        physical = [replica[e] if e >= 0 else -1 for e in entries]
    elif method == "cost":
        from janus.sched.cost_reference import balance_cost  # uses this file

        physical = balance_cost(entries, tokens, bound, tables)
    else:  # baselines: entry by entry
        physical = SPLITS[method](entries, tables)
    _describe(entries, physical, tables, work)
    work.tokens[:] = tokens
    work.bound[0] = bound
    out[...] = np.array(physical, dtype=np.int64).reshape(out.shape)
    return -1


def tally(tables: LayerTables, work: Workspace, sums: npt.NDArray[np.int64], seen: npt.NDArray[np.int64]) -> None:
    """Add the batch that `work` describes to `sums` (see `stats.SUMS`) and, unless it is empty, its tokens to `seen`."""
    spent_G = work.tokens_per_slot.reshape(tables.num_instances, -1).sum(axis=1)
    entries, experts = int(work.tokens.sum()), int((work.tokens > 0).sum())
    slots, a_max, bound = int(work.load.sum()), int(work.load.max()), int(work.bound[0])
    sums += np.array([1, entries, experts, slots, a_max, bound, int(spent_G.max()), 0])
    if len(seen):
        seen += work.tokens


def _count(entries: list[int], tables: LayerTables) -> list[int]:
    tokens = [0] * tables.num_experts
    for e in entries:
        if e >= 0:
            tokens[e] += 1
    return tokens


def lower_bound(tokens: list[int], tables: LayerTables) -> int:
    """No assignment has a smaller a_max: the mean, rounded up, and what experts with one replica force."""
    active = [e for e, n in enumerate(tokens) if n]
    forced = [0] * tables.num_instances
    for e in active:
        if tables.logcnt[e] == 1:
            forced[_host(tables.log2phy[e][0], tables)] += 1
    return max(-(-len(active) // tables.num_instances), *forced, 0)


def start(tokens: list[int], tables: LayerTables, *, tie_by_tokens: bool) -> list[int]:
    """Give every activated expert the least-loaded of its hosts, in the order of the tables.

    Ties go to the instance with fewer tokens so far (`tie_by_tokens`), then to the lower instance id.
    """
    load = [0] * tables.num_instances
    spent = [0] * tables.num_instances
    replica = [-1] * tables.num_experts
    for e in tables.order.tolist():
        if tokens[e]:
            slots = _slots(e, tables)
            hosts = [_host(r, tables) for r in slots]
            g, r = min(zip(hosts, slots, strict=True), key=lambda p: (load[p[0]], spent[p[0]], p[0]))
            replica[e] = r
            load[g] += 1
            spent[g] += tokens[e] if tie_by_tokens else 0
    return replica


def shift(replica: list[int], bound: int, tables: LayerTables) -> bool:
    """Take one expert off the first most-loaded instance by a shortest chain of replica changes; False: optimal."""
    load = [0] * tables.num_instances
    for r in replica:
        if r >= 0:
            load[_host(r, tables)] += 1
    top = max(load)
    if top <= bound:
        return False
    source = load.index(top)  # one source without a path is proof enough: see docs/sched.md
    level = {source: 0}
    frontier = {source}
    while frontier:
        reached = {_host(r, tables) for e in _served(frontier, replica, tables) for r in _slots(e, tables)}
        frontier = reached - level.keys()
        # at top - 1 the expert would only make its new host the most loaded
        low = [h for h in frontier if load[h] <= top - 2]
        if low:
            _walk_back(min(low, key=lambda h: (load[h], h)), level, replica, tables)
            return True
        level.update(dict.fromkeys(frontier, max(level.values()) + 1))
    return False


def _walk_back(h: int, level: dict[int, int], replica: list[int], tables: LayerTables) -> None:
    """Hand `h` the lowest expert that the level before it can give, then do the same for the giver, to the source."""
    for step in range(max(level.values()), -1, -1):
        givers = {g for g, at in level.items() if at == step}
        e, takes = min(
            (e, r) for e in _served(givers, replica, tables) for r in _slots(e, tables) if _host(r, tables) == h
        )
        h, replica[e] = _host(replica[e], tables), takes


def _served(instances: set[int], replica: list[int], tables: LayerTables) -> list[int]:
    """Experts that the assignment so far serves on one of `instances`."""
    return [e for e, r in enumerate(replica) if r >= 0 and _host(r, tables) in instances]


def spread_tokens(entries: list[int], tables: LayerTables) -> list[int]:
    """Every entry to the host of its expert that has the fewest entries so far, ties to the lower instance id."""
    spent = [0] * tables.num_instances
    physical = []
    for e in entries:
        r = -1
        if e >= 0:
            r = min(_slots(e, tables), key=lambda slot: spent[_host(slot, tables)])
            spent[_host(r, tables)] += 1
        physical.append(r)
    return physical


def spread_random(entries: list[int], tables: LayerTables) -> list[int]:
    """Every entry to a replica picked by a hash of the whole batch and the entry's position."""
    salt = sum((i + 1) * (e + 1) for i, e in enumerate(entries)) & MASK
    return [_slots(e, tables)[mix(i ^ salt) % len(_slots(e, tables))] if e >= 0 else -1 for i, e in enumerate(entries)]


def spread_round_robin(entries: list[int], tables: LayerTables) -> list[int]:
    """The j-th entry of an expert to its replica j mod (number of replicas)."""
    seen = [0] * tables.num_experts
    physical = []
    for e in entries:
        physical.append(_slots(e, tables)[seen[e] % len(_slots(e, tables))] if e >= 0 else -1)
        if e >= 0:
            seen[e] += 1
    return physical


SPLITS = {"tokens": spread_tokens, "random": spread_random, "round_robin": spread_round_robin}


def mix(x: int) -> int:
    """Scramble 32 bits (the finisher of MurmurHash3).

    Example:
        >>> mix(0), mix(1)
        (0, 1364076727)
    """
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def _describe(entries: list[int], physical: list[int], tables: LayerTables, work: Workspace) -> None:
    work.replica[:] = -1
    work.load[:] = 0
    work.tokens_per_slot[:] = 0
    for e, r in zip(entries, physical, strict=True):
        if e < 0:
            continue
        if work.replica[e] < 0:
            work.replica[e] = r
        if work.tokens_per_slot[r] == 0:
            work.load[_host(r, tables)] += 1
        work.tokens_per_slot[r] += 1


def _slots(e: int, tables: LayerTables) -> list[int]:
    return [int(r) for r in tables.log2phy[e] if r >= 0]


def _host(r: int, tables: LayerTables) -> int:
    return int(r) // tables.slots_per_instance
