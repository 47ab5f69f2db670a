"""Before the phases of a call: entries sorted by slot, and every job told its part, in one compiled step."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
from numba.core import types

from janus.experts.cpu.jobs import (
    ACTIVATE,
    DOWN,
    JOB,
    JOB_BYTES,
    NARROW,
    NUM_PHASES,
    UP,
    WIDEN,
    bound,
    c_function,
    inlined,
)
from janus.experts.cpu.sorting import counting_sort
from janus.experts.cpu.vectors import carray, pointer

ALIGNED = 64  # bytes; every part of the workspace starts at a cache line
PARTS = 8  # of the workspace


def workspace_bytes(T: int, K: int, S: int, row_bytes: tuple[int, int, int, int]) -> int:
    """Bytes that a call of T tokens needs beside the slots.

    Args:
        T: tokens.
        K: experts per token.
        S: slots.
        row_bytes: of a token as the products take it and as they sum it (0 where it is taken or given as it is), of an
            entry's results of the first product, and of the activation.
    """
    x, y, up, h = row_bytes
    sorting = 8 * (3 * (S + 1) + T * K) + 4 * T * K
    return NUM_PHASES * JOB_BYTES + sorting + T * (x + y) + T * K * (up + h) + ALIGNED * (PARTS + 2)


def _prepare(
    template: Any, work: Any, order: Any, S: Any, ids: Any, wide: Any, factors: Any, T: Any, K: Any,
    x: Any, x_stride: Any, out: Any, out_stride: Any, x_row: Any, y_row: Any, threads: Any,
) -> Any:  # fmt: skip
    given, jobs = carray(pointer(template), (NUM_PHASES,), JOB), carray(pointer(work), (NUM_PHASES,), JOB)
    for phase in range(NUM_PHASES):
        jobs[phase] = given[phase]
    # the parts of the workspace
    counts_at = _next(work + NUM_PHASES * JOB_BYTES)
    slots_at = _next(counts_at + 8 * (S + 1))
    starts_at = _next(slots_at + 8 * (S + 1))
    tokens_at = _next(starts_at + 8 * (S + 1))
    factors_at = _next(tokens_at + 8 * T * K)
    x_at = _next(factors_at + 4 * T * K)
    y_at = _next(x_at + T * x_row)
    up_at = _next(y_at + T * y_row)
    h_at = _next(up_at + T * K * given[UP].out_stride)
    # sort
    counts, slots = carray(pointer(counts_at), (S + 1,), np.int64), carray(pointer(slots_at), (S + 1,), np.int64)
    starts, order_S = carray(pointer(starts_at), (S + 1,), np.int64), carray(pointer(order), (S,), np.int64)
    tokens, sorted_N = carray(pointer(tokens_at), (T * K,), np.int64), carray(pointer(factors_at), (T * K,), np.float32)
    factor_N = carray(pointer(factors), (T * K,), np.float32)
    if wide:
        active = counting_sort(carray(pointer(ids), (T * K,), np.int64), order_S, counts, slots, starts, tokens)
    else:
        active = counting_sort(carray(pointer(ids), (T * K,), np.int32), order_S, counts, slots, starts, tokens)
    for n in range(starts[active]):  # entry t * K + k
        sorted_N[n], tokens[n] = factor_N[tokens[n]], tokens[n] // K
    # tell
    w, u, a, d, r = jobs[WIDEN], jobs[UP], jobs[ACTIVATE], jobs[DOWN], jobs[NARROW]
    y = y_at if y_row else out
    w.items, w.x, w.x_stride, w.cleared = T, x, x_stride, y
    w.out, w.out_stride = (x_at, x_row) if x_row else (0, 0)
    for job in (u, d):
        job.active, job.slots, job.starts, job.tokens, job.factors = active, slots_at, starts_at, tokens_at, factors_at
    u.x, u.x_stride, u.out = (x_at, x_row, up_at) if x_row else (x, x_stride, up_at)
    u.blocks, u.block_rows = _cut(u.rows, u.block_rows, u.blocks, threads * u.items, max(1, active))
    u.items = u.blocks * active
    entries = starts[active]
    a.x, a.out, a.rows = up_at, h_at, entries
    a.items = -(-entries // a.block_rows) if a.items else 0
    d.x, d.out = h_at, y
    d.blocks, d.block_rows = _cut(d.rows, d.block_rows, d.blocks, threads * d.items, 1)
    d.items = d.blocks if active else 0
    r.items, r.x, r.out, r.out_stride = (T, y, out, out_stride) if y_row else (0, 0, 0, 0)
    return active


def _next_line(address: Any) -> Any:
    return (address + ALIGNED - 1) // ALIGNED * ALIGNED


def _cut_rows(rows: Any, least: Any, most: Any, wanted: Any, sharing: Any) -> Any:
    """Blocks, and rows of each: about `wanted` items over `sharing` slots, in steps of `least` rows, at most `most`."""
    share = max(1, -(-wanted // sharing))
    size = min(most, max(least, -(-rows // share) // least * least))
    return -(-rows // size), size


_next = _cut = cast("Any", _next_line)  # bound by `prepare`


@functools.cache
def prepare() -> Any:
    """A C function that returns the number of activated slots; its arguments are those of `_prepare`."""
    names = {"_next": inlined(_next_line, "all"), "_cut": inlined(_cut_rows, "all")}
    return c_function(bound(_prepare, "all", **names), types.int64, 16)
