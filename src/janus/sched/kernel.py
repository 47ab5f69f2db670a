"""The balancers as two Triton kernels: `count` (entries per expert), then `solve` (one replica each, ids rewritten).

Every program of `solve` works the whole assignment out again, redundantly, in one warp, and then rewrites its own part
of the ids: no program waits for another, and nothing comes back to the host. The steps and their names are those of
`reference`; docs/sched.md tells why a warp can take them. Only this file imports triton.

Letters with a P are padded to a power of two: EP >= E lanes of experts, GP >= G lanes of instances.
"""

# Inside @triton.jit this is Triton's language, whose types and calls are not those of Python:
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportReturnType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _or(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return a | b


@triton.jit
def _has(low: tl.tensor, high: tl.tensor, g: tl.tensor, WORD: tl.constexpr, WIDE: tl.constexpr) -> tl.tensor:
    """Is instance g in the set? `low` holds instances 0..63 (0..31 in a 32-bit word), `high` 64..127."""
    word = low
    if WIDE:
        word = tl.where(g < 64, low, high)
        return (word >> (g & 63).to(WORD)) & 1 != 0
    return (word >> g.to(WORD)) & 1 != 0


@triton.jit
def _bit(g: tl.tensor, first: tl.constexpr, bits: tl.constexpr, WORD: tl.constexpr) -> tl.tensor:
    """The word of instances first .. first + bits - 1 that holds g alone; 0 when g is not one of them."""
    inside = (g >= first) & (g < first + bits)
    return tl.where(inside, tl.full([], 1, WORD) << (g & (bits - 1)).to(WORD), 0).to(WORD)


@triton.jit(do_not_specialize=["n", "share"], do_not_specialize_on_alignment=["ids"])
def count(
    ids: tl.tensor,
    partial: tl.tensor,
    wrong: tl.tensor,
    n: tl.tensor,
    share: tl.tensor,
    E: tl.constexpr,
    EP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Entries of each expert among `share` of the `n` ids: one row of `partial` [programs, EP], and how many are bad."""
    program = tl.program_id(0)
    tokens = tl.zeros([EP], tl.int32)
    bad = tl.zeros([BLOCK], tl.int32)
    end = tl.minimum(program * share + share, n)
    for at in range(program * share, end, BLOCK):
        i = at + tl.arange(0, BLOCK)
        e = tl.load(ids + i, mask=i < end, other=0).to(tl.int64)
        here = i < end
        tokens += tl.histogram(e.to(tl.int32), EP, mask=here & (e >= 0) & (e < E))
        bad += (here & ((e < -1) | (e >= E))).to(tl.int32)
    tl.store(partial + program * EP + tl.arange(0, EP), tokens)
    tl.store(wrong + program, tl.sum(bad, 0))


@triton.jit
def _start(
    state: tl.tensor, listed: tl.tensor, tokens: tl.tensor, hosts: tl.tensor, masks: tl.tensor, n: tl.tensor, lanes: tl.tensor,
    EP: tl.constexpr, SHIFT: tl.constexpr, ID: tl.constexpr, TOP: tl.constexpr, EXACT: tl.constexpr, WORD: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Give each of the `n` listed experts the host with the smallest (load, spent, g): one min over packed keys.

    `state` holds load << SHIFT | spent << ID | g in lane g: ties are broken by the key itself.
    """
    e = tl.load(listed)
    e_next = tl.load(listed + 1, mask=n > 1, other=0)
    low = tl.load(masks + e)
    high = tl.load(masks + EP + e) if WIDE else low
    share = tl.load(tokens + e)
    for i in range(n):
        # fetch ahead, ids by two: what the next expert needs does not depend on this one's choice
        e_after = tl.load(listed + i + 2, mask=i + 2 < n, other=0)
        low_next = tl.load(masks + e_next)
        high_next = tl.load(masks + EP + e_next) if WIDE else low_next
        share_next = tl.load(tokens + e_next)
        # the sets of hosts stay in the first-level cache; rows of slots would each be waited for
        key = tl.where(_has(low, high, lanes, WORD, WIDE), state, TOP)
        best = tl.min(key, 0)
        step = tl.full([], 1, state.dtype) << SHIFT
        if EXACT:
            step += share.to(state.dtype) << ID
        state = tl.where(key == best, state + step, state)
        tl.store(hosts + e, (best & ((1 << ID) - 1)).to(tl.int32))
        e, e_next, low, high, share = e_next, e_after, low_next, high_next, share_next
    return state


@triton.jit
def _search(
    source: tl.tensor, top: tl.tensor, load: tl.tensor, host: tl.tensor, active: tl.tensor, mask_low: tl.tensor, mask_high: tl.tensor, lanes: tl.tensor,
    WORD: tl.constexpr, BITS: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Breadth first from `source`, a level at a time: (target or -1, its level, the level of each expert's host)."""
    low = _bit(source, 0, BITS, WORD)
    high = _bit(source, 64, 64, WORD) if WIDE else low
    seen_low, seen_high = low, high
    level = tl.full(host.shape, -1, tl.int32)
    NONE: tl.constexpr = 1 << 30
    target = tl.full([], NONE, tl.int32)
    depth = tl.full([], 0, tl.int32)
    going = top > 0
    while going:
        served = active & _has(low, high, host, WORD, WIDE)
        level = tl.where(served, depth, level)
        low = tl.reduce(tl.where(served, mask_low, 0), 0, _or) & ~seen_low
        seen_low |= low
        more = low != 0
        if WIDE:
            high = tl.reduce(tl.where(served, mask_high, 0), 0, _or) & ~seen_high
            seen_high |= high
            more = more | (high != 0)
        depth += 1
        # at top - 1 the expert would only make its new host the most loaded
        free = _has(low, high, lanes, WORD, WIDE) & (load <= top - 2)
        target = tl.min(tl.where(free, (load << 8) | lanes, NONE), 0)
        going = more & (target == NONE)
    return tl.where(target == NONE, -1, target & 255), depth, level


@triton.jit
def _walk_back(
    h: tl.tensor, depth: tl.tensor, level: tl.tensor, host: tl.tensor, mask_low: tl.tensor, mask_high: tl.tensor, e: tl.tensor,
    WORD: tl.constexpr, WIDE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Hand h the lowest expert that the level before it can give, then do the same for the giver, to the source."""
    for back in range(depth):
        # which experts have a replica on h: bit h of their masks
        word = mask_low
        if WIDE:
            word = tl.where(h < 64, mask_low, mask_high)
        holds = (word >> (h & (63 if WIDE else 127)).to(WORD)) & 1 != 0
        given = tl.min(tl.where(holds & (level == depth - 1 - back), (e << 8) | host, 1 << 30), 0)
        host = tl.where(e == (given >> 8), h, host)
        h = given & 255
    return host


@triton.jit
def _per_instance(
    slots: tl.tensor,
    C: tl.tensor,
    tokens: tl.tensor,
    replica: tl.tensor,
    lanes: tl.tensor,
    CB: tl.constexpr,
    GP: tl.constexpr,
    SINGLES: tl.constexpr,
) -> tl.tensor:
    """(activated slots, entries) of each instance: of experts with one replica, or of the replicas chosen.

    `slots` [C, GP] holds e where e has one replica, -2 - e where it has more, -1 where the slot is empty.
    """
    load = tl.zeros([GP], tl.int32)
    spent = tl.zeros([GP], tl.int32)
    for first in range(0, C, CB):
        # a row of slots at a time: sums of a tile would cross the lanes
        for c in tl.static_range(CB):
            row = first + c + lanes * 0
            entry = tl.load(slots + row * GP + lanes, mask=row < C, other=-1)
            if SINGLES:
                n = tl.load(tokens + entry, mask=entry >= 0, other=0)
            else:
                e = tl.where(entry >= 0, entry, -2 - entry)
                chosen = tl.load(replica + e, mask=entry != -1, other=-1)
                mine = (entry != -1) & (chosen == row + lanes * C)
                n = tl.load(tokens + e, mask=mine, other=0)
            load += (n > 0).to(tl.int32)
            spent += n
    return load, spent


@triton.jit(do_not_specialize=["n", "parts", "C", "singles"], do_not_specialize_on_alignment=["ids"])
def solve(
    ids: tl.tensor, out: tl.tensor, partial: tl.tensor, wrong: tl.tensor, table: tl.tensor, masks: tl.tensor, scratch: tl.tensor, last: tl.tensor, stats: tl.tensor,
    seen: tl.tensor, n: tl.tensor, parts: tl.tensor, C: tl.tensor, singles: tl.tensor,
    E: tl.constexpr, EP: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, ID: tl.constexpr, SHIFT: tl.constexpr,
    NARROW: tl.constexpr, EXACT: tl.constexpr, RECORD: tl.constexpr, PARTS: tl.constexpr, CB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One replica for every activated expert, and the physical ids of this program's part of the `n` entries.

    `table` int32: order [EP], first host [EP], slot of each expert on each instance [EP, GP], slots [C, GP].
    `scratch` int32 [programs, 4, EP]; `last` int32: replica [EP], tokens [EP], load [GP], a_max, bound, bad ids.
    """
    KEY: tl.constexpr = tl.int32 if NARROW else tl.int64
    TOP: tl.constexpr = 0x7FFFFFFF if NARROW else 0x7FFFFFFFFFFFFFFF
    WORD: tl.constexpr = tl.int32 if GP <= 32 else tl.int64
    BITS: tl.constexpr = 32 if GP <= 32 else 64
    WIDE: tl.constexpr = GP > 64
    program = tl.program_id(0)
    e, lanes = tl.arange(0, EP), tl.arange(0, GP)
    slot_of, slots = table + 2 * EP, table + 2 * EP + EP * GP
    mine = scratch + program * 4 * EP
    listed, hosts, replica = mine + EP, mine + 2 * EP, mine + 3 * EP
    # count: the parts of all programs of `count`
    tokens = tl.zeros([EP], tl.int32)
    bad = tl.full([], 0, tl.int32)
    for first in range(0, parts, PARTS):
        p = first + tl.arange(0, PARTS)
        tokens += tl.sum(tl.load(partial + p[:, None] * EP + e[None, :], mask=p[:, None] < parts, other=0), 0)
        bad += tl.sum(tl.load(wrong + p, mask=p < parts, other=0), 0)
    active = tokens > 0
    tl.store(mine + e, tokens)
    tl.store(hosts + e, tl.load(table + EP + e))
    tl.debug_barrier()
    # the active experts that have a choice, in order, without gaps
    order = tl.load(table + e)
    chooses = (e >= singles) & (e < E) & (tl.load(mine + order) > 0)
    tl.store(listed + tl.cumsum(chooses.to(tl.int32), 0) - 1, order, mask=chooses)
    choices = tl.sum(chooses.to(tl.int32), 0)
    # lower bound: the mean, rounded up, and what experts with one replica force
    load, spent = _per_instance(slots, C, mine, replica, lanes, CB, GP, True)
    bound = tl.maximum(tl.max(load, 0), (tl.sum(active.to(tl.int32), 0) + G - 1) // G)
    tl.debug_barrier()
    # start
    state = (load.to(KEY) << SHIFT) | lanes.to(KEY)
    if EXACT:
        state += spent.to(KEY) << ID
    if choices > 0:
        state = _start(state, listed, mine, hosts, masks, choices, lanes, EP, SHIFT, ID, TOP, EXACT, WORD, WIDE)
    load = (state >> SHIFT).to(tl.int32)
    tl.debug_barrier()
    host = tl.load(hosts + e)
    # shift, until the bound is met or no path is left
    top = tl.max(load, 0)
    if EXACT:
        mask_low = tl.load(masks + e)
        mask_high = tl.load(masks + EP + e) if WIDE else mask_low
        going = top > bound
        while going:
            source = tl.min(tl.where(load == top, lanes, GP), 0)
            h, depth, level = _search(
                source, top, load, host, active, mask_low, mask_high, lanes, WORD, BITS, WIDE
            )  # fmt: skip
            going = h >= 0
            if going:
                load += (lanes == h).to(tl.int32) - (lanes == source).to(tl.int32)
                host = _walk_back(h, depth, level, host, mask_low, mask_high, e, WORD, WIDE)
                top = tl.max(load, 0)
                going = top > bound
    # rewrite
    chosen = tl.load(slot_of + e * GP + host, mask=active, other=-1)
    tl.store(replica + e, chosen)
    tl.debug_barrier()
    for at in range(program * BLOCK, n, tl.num_programs(0) * BLOCK):
        i = at + tl.arange(0, BLOCK)
        entry = tl.load(ids + i, mask=i < n, other=-1).to(tl.int64)
        r = tl.load(replica + entry, mask=(entry >= 0) & (entry < E), other=-1)
        tl.store(out + i, r.to(out.dtype.element_ty), mask=i < n)
    # what the host may ask for later: one program tells
    if program == 0:
        tl.store(last + e, chosen)
        tl.store(last + EP + e, tokens)
        tl.store(last + 2 * EP + lanes, load)
        tl.store(last + 2 * EP + GP, top)
        tl.store(last + 2 * EP + GP + 1, bound)
        tl.store(last + 2 * EP + GP + 2, bad)
        _, spent = _per_instance(slots, C, mine, replica, lanes, CB, GP, False)
        field = tl.arange(0, 8)  # in the order of `stats.SUMS`
        fresh = tl.where(field == 0, 1, 0) + tl.where(field == 1, tl.sum(tokens, 0), 0)
        fresh += tl.where(field == 2, tl.sum(active.to(tl.int32), 0), 0) + tl.where(field == 3, tl.sum(load, 0), 0)
        fresh += tl.where(field == 4, top, 0) + tl.where(field == 5, bound, 0)
        fresh += tl.where(field == 6, tl.max(spent, 0), 0) + tl.where(field == 7, bad, 0)
        tl.store(stats + field, tl.load(stats + field) + fresh)
        if RECORD:
            tl.store(seen + e, tl.load(seen + e, mask=e < E, other=0) + tokens, mask=e < E)
