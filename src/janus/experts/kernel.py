"""Chosen experts as Triton kernels: `sort`, then `up` (with the activation), then `down` and the sum over choices.

Work is cut into items: a tile (up to BM entries of one slot) times a block of columns. An entry is one choice of one
token, number t * K + k. Tiles are found on the device: by `sort` where entries are many, by every program for itself
(`_find`) where they are few, which saves a launch. Programs walk the items from their own number on, columns of one
tile next to each other, so a grid of any size does all of them, and the host never reads an id. Sums run in float32 and
in one order. Only this file and `device` import triton.

Weights lie [S, out, in], or [S, in, out] where TRANSPOSED; quantized ones carry float32 scales [S, out / BO, in / 128].
"""

# Inside @triton.jit this is Triton's language, whose types and calls are not those of Python:
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportReturnType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

COUNTS = ["n", "S"]  # differ from call to call: code that depends on them would be compiled again and again


@triton.jit
def _in_turn(EARLY: tl.constexpr) -> None:
    """Where kernels are launched early: wait for what the one before wrote, then let the next one come."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _slots_of(ids: tl.tensor, i: tl.tensor, n: tl.tensor, S: tl.tensor) -> tl.tensor:
    """Slots of entries `i`; -1 for what is served elsewhere, lies past the end or is no slot."""
    slot = tl.load(ids + i, mask=i < n, other=-1)
    return tl.where((slot >= 0) & (slot < S), slot, -1).to(tl.int32)


# The interpreter multiplies the bit patterns of bfloat16; products of 16-bit numbers are exact in float32 either way.
INTERPRETED = tl.constexpr(not isinstance(_slots_of, triton.JITFunction))


@triton.jit(do_not_specialize=[*COUNTS, "cap"], do_not_specialize_on_alignment=["ids"])
def sort(
    ids: tl.tensor, plan: tl.tensor, order: tl.tensor, n: tl.tensor, S: tl.tensor, cap: tl.tensor,
    SP: tl.constexpr, BM: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
) -> None:  # fmt: skip
    """Entries by slot, in order within each: a counting sort. Program p places the p-th active slot, and so on.

    `plan` int32: number of tiles, then [3, cap] slot, first and end of each tile in `order` int32 [n]. Every program
    counts all entries: no program waits for another.
    """
    _in_turn(EARLY)
    counts = tl.zeros([SP], tl.int32)
    for at in range(0, n, BLOCK):
        slot = _slots_of(ids, at + tl.arange(0, BLOCK), n, S)
        counts += tl.histogram(tl.maximum(slot, 0), SP, mask=slot >= 0)
    tiles = (counts + BM - 1) // BM
    active = (counts > 0).to(tl.int32)
    rank, firsts, first_tiles = tl.cumsum(active, 0) - 1, tl.cumsum(counts, 0) - counts, tl.cumsum(tiles, 0) - tiles
    lanes = tl.arange(0, SP)
    if tl.program_id(0) == 0:
        tl.store(plan, tl.sum(tiles, 0))
    for a in range(tl.program_id(0), tl.sum(active, 0), tl.num_programs(0)):
        mine = (active > 0) & (rank == a)
        s, first = tl.sum(tl.where(mine, lanes, 0), 0), tl.sum(tl.where(mine, firsts, 0), 0)
        end, tile = first + tl.sum(tl.where(mine, counts, 0), 0), tl.sum(tl.where(mine, first_tiles, 0), 0)
        for begin in range(first, end, BM):
            tl.store(plan + 1 + tile, s)
            tl.store(plan + 1 + cap + tile, begin)
            tl.store(plan + 1 + 2 * cap + tile, tl.minimum(begin + BM, end))
            tile += 1
        placed = first
        for at in range(0, n, BLOCK):
            i = at + tl.arange(0, BLOCK)
            here = _slots_of(ids, i, n, S) == s
            tl.store(order + placed + tl.cumsum(here.to(tl.int32), 0) - 1, i, mask=here)
            placed += tl.sum(here.to(tl.int32), 0)


@triton.jit
def _find(ids: tl.tensor, n: tl.tensor, S: tl.tensor, BM: tl.constexpr, NP: tl.constexpr) -> tl.tensor:
    """Tiles of at most NP entries: (slot, rank within it, number of the tile that each entry opens or -1, how many)."""
    i = tl.arange(0, NP)
    slot = _slots_of(ids, i, n, S)
    earlier = (slot[:, None] == slot[None, :]) & (i[None, :] < i[:, None])
    rank = tl.sum(earlier.to(tl.int32), 1)
    opens = (slot >= 0) & (rank % BM == 0)
    number = tl.where(opens, tl.cumsum(opens.to(tl.int32), 0) - 1, -1)
    return slot, rank, number, tl.sum(opens.to(tl.int32), 0)


@triton.jit
def _tile_found(
    slot: tl.tensor, rank: tl.tensor, number: tl.tensor, tile: tl.tensor, BM: tl.constexpr, NP: tl.constexpr
) -> tl.tensor:
    """(slot, entries [BM], -1 where there is none) of a tile that `_find` found."""
    opens = number == tile
    s = tl.sum(tl.where(opens, slot, 0), 0)
    row = tl.where(slot == s, rank - tl.sum(tl.where(opens, rank, 0), 0), -1)
    at = row[None, :] == tl.arange(0, BM)[:, None]
    return s, tl.sum(tl.where(at, tl.arange(0, NP)[None, :] + 1, 0), 1) - 1


@triton.jit
def _tile_sorted(plan: tl.tensor, order: tl.tensor, cap: tl.tensor, tile: tl.tensor, BM: tl.constexpr) -> tl.tensor:
    """(slot, entries [BM], -1 where there is none) of a tile that `sort` made."""
    i = tl.load(plan + 1 + cap + tile) + tl.arange(0, BM)
    return tl.load(plan + 1 + tile), tl.load(order + i, mask=i < tl.load(plan + 1 + 2 * cap + tile), other=-1)


@triton.jit
def _item(work: tl.tensor, tiles: tl.tensor, BLOCKS: tl.constexpr, GROUP: tl.constexpr) -> tl.tensor:
    """(tile, block) of a work item: all blocks of GROUP tiles, block by block, then the next GROUP tiles."""
    if GROUP == 1:
        return work // BLOCKS, work % BLOCKS
    first = work // (GROUP * BLOCKS) * GROUP
    width = tl.minimum(tiles - first, GROUP)
    rest = work % (GROUP * BLOCKS)
    return first + rest % width, rest // width


@triton.jit
def _gemm(
    x: tl.tensor, row: tl.tensor, have: tl.tensor, w: tl.tensor, scale: tl.tensor, col: tl.tensor, in_range: tl.tensor,
    begin: tl.tensor, end: tl.tensor,
    IN: tl.constexpr, OUT: tl.constexpr, TRANSPOSED: tl.constexpr, BO: tl.constexpr, EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Rows `row` of x [., IN] times columns `col` of one slot's weights, over begin..end of IN: float32 [BM, BN]."""
    acc = tl.zeros([BM, BN], tl.float32)
    k = tl.arange(0, BK)
    from_x = x + row[:, None] * IN + k[None, :]
    from_w = w + k[:, None] * OUT + col[None, :] if TRANSPOSED else w + k[:, None] + col[None, :] * IN
    for at in tl.range(begin, end, BK, num_stages=STAGES):
        if EVEN_K:
            a = tl.load(from_x + at, mask=have[:, None], other=0.0)
        else:
            a = tl.load(from_x + at, mask=have[:, None] & (k[None, :] + at < end), other=0.0)
        step = at * OUT if TRANSPOSED else at
        if EVEN_K and EVEN_N:
            b = tl.load(from_w + step)
        elif EVEN_K:
            b = tl.load(from_w + step, mask=in_range[None, :], other=0.0)
        else:
            b = tl.load(from_w + step, mask=in_range[None, :] & (k[:, None] + at < end), other=0.0)
        if INTERPRETED:
            a, b = a.to(tl.float32), b.to(tl.float32)
        if BO == 0:
            acc = tl.dot(a, b, acc, input_precision="ieee")
        else:  # whole numbers and 8-bit floats are exact in the 16-bit types: scale the sums, not the weights
            to_column = tl.load(scale + col // BO * ((IN + 127) // 128) + at // 128, mask=in_range, other=0.0)
            acc += tl.dot(a, b.to(a.dtype), input_precision="ieee") * to_column[None, :]
    return acc


@triton.jit
def _curve(x: tl.tensor, KIND: tl.constexpr, ALPHA: tl.constexpr) -> tl.tensor:
    """The activation of one number."""
    if KIND == "silu":
        return x * tl.sigmoid(ALPHA * x)
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":  # (1 + tanh z) / 2 is the sigmoid of 2 z
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "relu":
        return tl.maximum(x, 0.0)
    elif KIND == "relu2":
        return tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    else:
        return x


@triton.jit
def _formula(
    acc: tl.tensor, GATED: tl.constexpr, INTERLEAVED: tl.constexpr, KIND: tl.constexpr, ALPHA: tl.constexpr,
    CLAMP: tl.constexpr, LIMIT: tl.constexpr, SHIFT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What stands between the projections, of BN columns with their gates: `janus.experts.activation.Activation`."""
    if GATED:
        if INTERLEAVED:
            gate, other = tl.split(tl.reshape(acc, [BM, BN, 2]))
        else:
            gate, other = tl.split(tl.permute(tl.reshape(acc, [BM, 2, BN]), [0, 2, 1]))
        if CLAMP != "":
            other = tl.minimum(tl.maximum(other, -LIMIT), LIMIT)
        if CLAMP == "before":
            gate = tl.minimum(gate, LIMIT)
        hidden = _curve(gate, KIND, ALPHA)
        if CLAMP == "after":
            hidden = tl.minimum(hidden, LIMIT)
        return hidden * (other + SHIFT)
    else:  # not after an early return: the compiler would go on into what needs a gate
        return _curve(acc, KIND, ALPHA)


@triton.jit(do_not_specialize=[*COUNTS, "cap"], do_not_specialize_on_alignment=["ids"])
def up(
    x: tl.tensor, w: tl.tensor, scale: tl.tensor, bias: tl.tensor, out: tl.tensor, ids: tl.tensor, plan: tl.tensor, order: tl.tensor,
    n: tl.tensor, S: tl.tensor, cap: tl.tensor,
    K: tl.constexpr, H: tl.constexpr, F: tl.constexpr, GATED: tl.constexpr, INTERLEAVED: tl.constexpr,
    TRANSPOSED: tl.constexpr, BIAS: tl.constexpr, BO: tl.constexpr,
    KIND: tl.constexpr, ALPHA: tl.constexpr, CLAMP: tl.constexpr, LIMIT: tl.constexpr, SHIFT: tl.constexpr,
    NP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:  # fmt: skip
    """x [T, H] -> out [n, F], activated: one row per entry; without a KIND the bare projection [n, 2F or F].

    A block is BN columns of `out`: as many gates and as many ups beside them in one product.
    """
    _in_turn(EARLY)
    PAIR: tl.constexpr = 2 if GATED else 1
    BLOCKS: tl.constexpr = (F + BN - 1) // BN
    if NP:
        slot_of, rank, number, tiles = _find(ids, n, S, BM, NP)
    else:
        tiles = tl.load(plan)
    j = tl.arange(0, PAIR * BN)
    for work in range(tl.program_id(0), tiles * BLOCKS, tl.num_programs(0)):
        tile, block = _item(work, tiles, BLOCKS, GROUP)
        if NP:
            s, entry = _tile_found(slot_of, rank, number, tile, BM, NP)
        else:
            s, entry = _tile_sorted(plan, order, cap, tile, BM)
        have, slot = entry >= 0, s.to(tl.int64)
        if GATED and INTERLEAVED:
            col, in_range = block * 2 * BN + j, block * 2 * BN + j < 2 * F
        else:
            col, in_range = j // BN * F + block * BN + j % BN, block * BN + j % BN < F
        acc = _gemm(
            x, (tl.maximum(entry, 0) // K).to(tl.int64), have, w + slot * (PAIR * F * H),
            scale + slot * (((PAIR * F + BO - 1) // BO if BO else 0) * ((H + 127) // 128)), col, in_range, 0, H,
            H, PAIR * F, TRANSPOSED, BO, F % BN == 0, H % BK == 0, BM, PAIR * BN, BK, STAGES,
        )  # fmt: skip
        if BIAS:
            acc += tl.load(bias + slot * (PAIR * F) + col, mask=in_range, other=0.0).to(tl.float32)[None, :]
        to = entry.to(tl.int64)[:, None]
        if KIND == "":
            value = acc.to(out.dtype.element_ty)
            tl.store(out + to * (PAIR * F) + col[None, :], value, mask=have[:, None] & in_range[None, :])
        else:
            hidden = _formula(acc, GATED, INTERLEAVED, KIND, ALPHA, CLAMP, LIMIT, SHIFT, BM, BN)
            f = (block * BN + tl.arange(0, BN))[None, :]
            tl.store(out + to * F + f, hidden.to(out.dtype.element_ty), mask=have[:, None] & (f < F))


@triton.jit
def _sum_choices(
    partial: tl.tensor, ids: tl.tensor, y: tl.tensor, t: tl.tensor, h: tl.tensor, n: tl.tensor, S: tl.tensor,
    K: tl.constexpr, H: tl.constexpr, SPLIT: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
) -> None:  # fmt: skip
    """Tokens `t`, columns `h` of y: the parts of all choices, choice by choice, from the second-level cache."""
    total = tl.zeros([BT, BN], tl.float32)
    columns = h[None, :]
    for choice in tl.static_range(K):
        entry = t * K + choice
        here = (_slots_of(ids, entry, n, S) >= 0)[:, None] & (columns < H)
        for part in tl.static_range(SPLIT):
            at = (entry.to(tl.int64) + part * n)[:, None] * H + columns
            total += tl.load(partial + at, mask=here, other=0.0, cache_modifier=".cg")
    to = y + t.to(tl.int64)[:, None] * H + columns
    tl.store(to, total.to(y.dtype.element_ty), mask=(t * K < n)[:, None] & (columns < H))


@triton.jit(do_not_specialize=[*COUNTS, "cap"], do_not_specialize_on_alignment=["ids", "weights", "y"])
def down(
    hidden: tl.tensor, w: tl.tensor, scale: tl.tensor, bias: tl.tensor, weights: tl.tensor, partial: tl.tensor, y: tl.tensor, arrived: tl.tensor,
    ids: tl.tensor, plan: tl.tensor, order: tl.tensor, n: tl.tensor, S: tl.tensor, cap: tl.tensor,
    K: tl.constexpr, H: tl.constexpr, F: tl.constexpr, TRANSPOSED: tl.constexpr, BIAS: tl.constexpr, BO: tl.constexpr,
    NP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
    SPLIT: tl.constexpr, SUMS: tl.constexpr, BT: tl.constexpr, EARLY: tl.constexpr,
) -> None:  # fmt: skip
    """hidden [n, F] -> partial float32 [SPLIT, n, H], times the routing weight; where SUMS also y [T, H].

    SPLIT programs share the length F of a block. Where SUMS, who is the last of a block of columns to arrive adds up the
    parts of all: the order of the sum is that of the choices, whoever it is. `arrived` int32 [blocks] is left at 0.
    """
    _in_turn(EARLY)
    BLOCKS: tl.constexpr = (H + BN - 1) // BN
    SHARE: tl.constexpr = ((F + BK - 1) // BK + SPLIT - 1) // SPLIT * BK
    if NP:
        slot_of, rank, number, tiles = _find(ids, n, S, BM, NP)
    else:
        tiles = tl.load(plan)
    # with no tile at all, one item per block is left to write the zeros of y
    parts = tl.maximum(tiles, 1) if SUMS else tiles
    for work in range(tl.program_id(0), parts * (BLOCKS * SPLIT), tl.num_programs(0)):
        tile, block = _item(work, parts, BLOCKS * SPLIT, GROUP)
        part, block = block % SPLIT, block // SPLIT
        col = block * BN + tl.arange(0, BN)
        in_range = col < H
        if tile < tiles:
            if NP:
                s, entry = _tile_found(slot_of, rank, number, tile, BM, NP)
            else:
                s, entry = _tile_sorted(plan, order, cap, tile, BM)
            have, slot, row = entry >= 0, s.to(tl.int64), tl.maximum(entry, 0).to(tl.int64)
            acc = _gemm(
                hidden, row, have, w + slot * (H * F),
                scale + slot * (((H + BO - 1) // BO if BO else 0) * ((F + 127) // 128)), col, in_range,
                part * SHARE, tl.minimum(part * SHARE + SHARE, F),
                F, H, TRANSPOSED, BO, H % BN == 0, F % BK == 0, BM, BN, BK, STAGES,
            )  # fmt: skip
            if BIAS:
                added = tl.load(bias + slot * H + col, mask=in_range & (part == 0), other=0.0)
                acc += added.to(tl.float32)[None, :]
            acc *= tl.load(weights + row, mask=have, other=0.0).to(tl.float32)[:, None]
            to = partial + (row + part * n)[:, None] * H + col[None, :]
            tl.store(to, acc, mask=have[:, None] & in_range[None, :])
        if SUMS:
            tl.debug_barrier()  # every thread's part is written before this program says that it has arrived
            before = tl.atomic_add(arrived + block, 1, sem="acq_rel", scope="gpu")
            if before == parts * SPLIT - 1:
                for first in range(0, n // K, BT):
                    t = first + tl.arange(0, BT)
                    _sum_choices(partial, ids, y, t, col, n, S, K, H, SPLIT, BT, BN)
                tl.store(arrived + block, 0)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=["ids", "y"])
def combine(
    partial: tl.tensor, ids: tl.tensor, y: tl.tensor, n: tl.tensor, S: tl.tensor,
    K: tl.constexpr, H: tl.constexpr, SPLIT: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, EARLY: tl.constexpr,
) -> None:  # fmt: skip
    """partial [SPLIT, n, H] -> y [T, H]: the sum over choices as a kernel of its own, for many tokens."""
    _in_turn(EARLY)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    h = tl.program_id(1) * BN + tl.arange(0, BN)
    _sum_choices(partial, ids, y, t, h, n, S, K, H, SPLIT, BT, BN)
