"""Method `"cost"` in plain Python loops: the specification of the compiled one.

The steps carry the names they have in docs/sched.md. All times are whole picoseconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from janus.sched import reference
from janus.sched.tables import LayerTables

# The search for a limit ends when it is known to 1/2**TOLERANCE, and after SEARCHES * R searches in any case.
TOLERANCE = 7
SEARCHES = 4
ANY = 2**62  # more tokens than there are


class Step(NamedTuple):
    """How the search came to an instance: one expert's tokens, all or some, from the instance before it.

    Attributes:
        leaves: slot that they leave, -1 at the source.
        takes: slot that serves them then.
        amount: tokens that move.
        short: tokens by which every amount before this step must shrink for it to do.
        over: picoseconds by which the instance is then over its limit.
        spare: tokens by which all amounts up to here can still shrink, each by that many.
    """

    leaves: int
    takes: int
    amount: int
    short: int
    over: int
    spare: int


def balance_cost(entries: list[int], tokens: list[int], bound: int, tables: LayerTables) -> list[int]:
    """The physical id of every entry."""
    replica = reference.start(tokens, tables, tie_by_tokens=True)
    while reference.shift(replica, bound, tables):
        pass
    a_max = max(np.bincount([r // tables.slots_per_instance for r in replica if r >= 0], minlength=1).tolist())
    served = _served(replica, tokens, tables)
    lower = lower_cost(tokens, a_max, tables)
    if max(costs(served, tables)) > lower:
        spread = spread_start(served, tokens, tables)
        served = cheaper_start(served, tokens, tables)
        improve(served, lower, tables)
        if not close(max(costs(served, tables)), lower):
            improve(spread, lower, tables)
            served = min(served, spread, key=lambda tokens_R: max(costs(tokens_R, tables)))  # ties: the first
    return deal(entries, served, tables)


def slot_cost(tokens: int, tables: LayerTables) -> int:
    """Picoseconds of a slot that serves so many tokens."""
    assert tables.cost is not None
    read, token = tables.cost
    return max(read, token * tokens) if tokens else 0


def costs(served: list[int], tables: LayerTables) -> list[int]:
    """Picoseconds of each instance; `served` holds the tokens of each slot."""
    C = tables.slots_per_instance
    return [sum(slot_cost(n, tables) for n in served[r : r + C]) for r in range(0, len(served), C)]


def lower_cost(tokens: list[int], a_max: int, tables: LayerTables) -> int:
    """No assignment costs less: a_max reads, the mean, and what experts with one replica cost their instance."""
    assert tables.cost is not None
    forced = [0] * tables.num_instances
    for e, n in enumerate(tokens):
        if tables.logcnt[e] == 1:
            forced[reference._host(tables.log2phy[e][0], tables)] += slot_cost(n, tables)
    total = sum(slot_cost(n, tables) for n in tokens)
    return max(tables.cost[0] * a_max, -(-total // tables.num_instances), *forced)


def cheaper_start(served: list[int], tokens: list[int], tables: LayerTables) -> list[int]:
    """The assignment of the greedy method where its costliest instance costs less, else `served`."""
    order = np.argsort(np.minimum(tables.logcnt, 2), kind="stable")
    greedy = reference.start(tokens, replace(tables, order=order), tie_by_tokens=False)
    other = _served(greedy, tokens, tables)
    return other if max(costs(other, tables)) < max(costs(served, tables)) else served


def close(top: int, lower: int) -> bool:
    """Whether more search would be about less than 1/128."""
    return top - lower <= max(1, top >> TOLERANCE)


def spread_start(served: list[int], tokens: list[int], tables: LayerTables) -> list[int]:
    """The exact assignment, but experts of two reads and more in equal parts over their cheapest hosts."""
    assert tables.cost is not None
    served, cost = list(served), costs(served, tables)
    for e, n in enumerate(tokens):
        slots = reference._slots(e, tables)
        parts = min(len(slots), slot_cost(n, tables) // tables.cost[0])
        if parts < 2:
            continue
        chosen = next(r for r in slots if served[r])
        cost[reference._host(chosen, tables)] -= slot_cost(n, tables)
        served[chosen] = 0
        for part in range(parts):
            free = [r for r in slots if not served[r]]
            r = min(free, key=lambda r: cost[reference._host(r, tables)])  # ties: the lower id
            served[r] = n // parts + (part < n % parts)
            cost[reference._host(r, tables)] += slot_cost(served[r], tables)
    return served


def improve(served: list[int], lower: int, tables: LayerTables) -> None:
    """Search for the smallest limit that `relieve` can bring the costliest instance under, by halving."""
    limit = lower
    for _ in range(SEARCHES * tables.num_slots):
        if relieve(served, limit, tables):
            continue
        top = max(costs(served, tables))
        if top > limit:
            lower = limit
        if close(top, lower):
            return
        limit = lower + (top - lower) // 2


def relieve(served: list[int], limit: int, tables: LayerTables) -> bool:
    """Take cost off the first costliest instance along one chain of moves; no other one ends above the limit.

    False when there is no such chain, or no instance above the limit.
    """
    assert tables.cost is not None
    token, C, cost = tables.cost[1], tables.slots_per_instance, costs(served, tables)
    source = cost.index(max(cost))
    over = cost[source] - limit
    if over <= 0:
        return False
    steps = {source: Step(-1, -1, 0, 0, over, ANY)}
    queue = [source]
    for g in queue:  # grows while it is read: breadth first
        for leaves in range(g * C, (g + 1) * C):
            e = int(tables.phy2log[leaves])
            # the expert that has just come to g does not go on from there
            if not served[leaves] or (g != source and e == tables.phy2log[steps[g].takes]):
                continue
            for takes in reference._slots(e, tables):
                h = reference._host(takes, tables)
                if h in steps:
                    continue
                room = max(0, limit - cost[h])
                options = (_whole(leaves, takes, steps[g], room, served, tables),
                           _part(leaves, takes, steps[g], room, served, tables))  # fmt: skip
                possible = [step for step in options if step is not None]
                if not possible:
                    continue
                steps[h] = min(possible, key=lambda step: step.over)  # ties: the whole expert
                if steps[h].over <= steps[h].spare * token:
                    _walk_back(h, source, steps, served, tables)
                    return True
                queue.append(h)
    return False


def _whole(leaves: int, takes: int, before: Step, room: int, served: list[int], tables: LayerTables) -> Step | None:
    """Move all tokens of the slot; from the source even when that is not enough, else only when it is."""
    amount = served[leaves]
    if before.leaves >= 0 and slot_cost(amount, tables) < before.over:
        return None
    added = slot_cost(served[takes] + amount, tables) - slot_cost(served[takes], tables)
    return Step(leaves, takes, amount, 0, added - room, 0)


def _part(leaves: int, takes: int, before: Step, room: int, served: list[int], tables: LayerTables) -> Step | None:
    """Move as many tokens as are too much, at most those beyond what the slot can compute while it reads."""
    assert tables.cost is not None
    read, token = tables.cost
    beyond = token * served[leaves] - read
    if beyond <= 0:
        return None
    amount = -(-min(before.over, beyond) // token)
    short = -(-max(0, before.over - beyond) // token)
    if short > before.spare:
        return None
    after, already = token * (served[takes] + amount), slot_cost(served[takes], tables)
    # the tokens that come beyond what the read pays for can stay away, and save their full time
    spare = min(before.spare - short, amount - 1, max(0, after - max(read, already)) // token)
    return Step(leaves, takes, amount, short, max(read, after) - already - room, spare)


def _walk_back(h: int, source: int, steps: dict[int, Step], served: list[int], tables: LayerTables) -> None:
    assert tables.cost is not None
    cut = -(-steps[h].over // tables.cost[1]) if steps[h].over > 0 else 0
    while h != source:
        leaves, takes, amount, short, _, _ = steps[h]
        served[leaves] -= amount - cut
        served[takes] += amount - cut
        cut += short
        h = reference._host(leaves, tables)


def deal(entries: list[int], served: list[int], tables: LayerTables) -> list[int]:
    """Entries of one expert, in order of position, fill its slots one after the other in ascending physical id."""
    left = list(served)
    physical = []
    for e in entries:
        r = -1 if e < 0 else next(r for r in reference._slots(e, tables) if left[r])
        if r >= 0:
            left[r] -= 1
        physical.append(r)
    return physical


def _served(replica: list[int], tokens: list[int], tables: LayerTables) -> list[int]:
    served = [0] * tables.num_slots
    for e, r in enumerate(replica):
        if r >= 0:
            served[r] = tokens[e]
    return served
