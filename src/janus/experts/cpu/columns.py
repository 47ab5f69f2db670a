"""The two products of an expert over all activated slots, for matrices stored [in, out].

As `rows`, with panels of columns in place of blocks of rows.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np

from janus.experts.cpu.inner import GROUP
from janus.experts.cpu.jobs import DONE, JOB, TOKENS, bound, by_tokens, c_function, entries_of, inlined
from janus.experts.cpu.outer import outer
from janus.experts.cpu.vectors import SCALED, SIZES, carray, fetch_and_add, loaded, pointer, stored

ROWS = 4  # of a tile: sums are read and written once for so many
TOGETHER = 16  # tokens whose sums stay in the cache while a panel's rows go by
PANEL = 1024  # most columns
# Bound for each kind of weights: what a tile computes, with all its rows or one.
wide = one = entries = load = store = single = add_rows = panel = cast("Any", outer)
bias_size = out_size = weight = 0
factor = 0.0


def _panel(d: Any, slot: Any, column: Any, columns: Any, rows: Any, many: Any, x: Any, sums: Any, parts: Any) -> None:
    """sums[j, i] = matrix[:, column + i] . row j, for `many` rows at the addresses `rows`."""
    sums[:many, :columns] = 0
    matrix = d.matrix + slot * d.slot_stride + column * weight
    if factor == 0:
        add_rows(matrix, d.row_stride, 0, d.n, columns, rows, many, x, sums)
        return
    for group in range(-(-d.n // GROUP)):
        parts[:many, :columns] = 0
        first, last = group * GROUP, min(d.n, (group + 1) * GROUP)
        add_rows(matrix, d.row_stride, first, last, columns, rows, many, x, parts)
        for i in range(columns):
            at = (column + i) // d.scale_rows * d.scale_row_stride + 4 * group
            scale = factor * single(d.scales + slot * d.scale_slot_stride + at)
            for j in range(many):
                sums[j, i] += scale * parts[j, i]


def _add(
    matrix: Any, stride: Any, first: Any, last: Any, columns: Any, rows: Any, many: Any, x: Any, sums: Any
) -> None:
    """Add the products of matrix rows `first` to `last` to the sums."""
    row = first
    while row < last:
        some = ROWS if last - row >= ROWS else 1
        for token in range(0, many, TOKENS):
            tokens = min(TOKENS, many - token)
            for j in range(tokens):
                x[j] = rows[token + j] + 4 * row
            at, to = matrix + row * stride, sums[token:].ctypes.data
            if some == ROWS:
                wide(tokens, at, stride, x.ctypes.data, columns, to, 4 * PANEL)
            else:
                one(tokens, at, stride, x.ctypes.data, columns, to, 4 * PANEL)
        row += some


def _up(job: Any) -> None:
    d = carray(pointer(job), (1,), JOB)[0]
    slots, starts, tokens, _ = entries(d)
    x, rows = np.empty(TOKENS, np.int64), np.empty(TOGETHER, np.int64)
    sums, parts = np.empty((TOGETHER, PANEL), np.float32), np.empty((TOGETHER, PANEL), np.float32)
    while True:
        item = fetch_and_add(job)
        if item >= d.items:
            break
        a, column = item // d.blocks, item % d.blocks * d.block_rows
        columns = min(d.block_rows, d.rows - column)
        bias = d.bias + slots[a] * d.bias_stride
        for first in range(starts[a], starts[a + 1], TOGETHER):
            many = min(TOGETHER, starts[a + 1] - first)
            for j in range(many):
                rows[j] = d.x + tokens[first + j] * d.x_stride
            panel(d, slots[a], column, columns, rows, many, x, sums, parts)
            for i in range(columns):
                shift = load(bias + (column + i) * bias_size) if d.bias else np.float32(0)
                for j in range(many):
                    store(d.out + (first + j) * d.out_stride + (column + i) * out_size, sums[j, i] + shift)
        fetch_and_add(job + DONE)


def _down(job: Any) -> None:
    d = carray(pointer(job), (1,), JOB)[0]
    slots, starts, tokens, factors = entries(d)
    x, rows = np.empty(TOKENS, np.int64), np.empty(TOGETHER, np.int64)
    sums, parts = np.empty((TOGETHER, PANEL), np.float32), np.empty((TOGETHER, PANEL), np.float32)
    while True:
        block = fetch_and_add(job)
        if block >= d.items:
            break
        column = block * d.block_rows
        columns = min(d.block_rows, d.rows - column)
        for a in range(d.active):
            bias = d.bias + slots[a] * d.bias_stride
            for first in range(starts[a], starts[a + 1], TOGETHER):
                many = min(TOGETHER, starts[a + 1] - first)
                for j in range(many):
                    rows[j] = d.x + (first + j) * d.x_stride
                panel(d, slots[a], column, columns, rows, many, x, sums, parts)
                for j in range(many):
                    y = carray(pointer(d.out + tokens[first + j] * d.out_stride), (d.rows,), np.float32)
                    for i in range(columns):
                        shift = load(bias + (column + i) * bias_size) if d.bias else np.float32(0)
                        y[column + i] += factors[first + j] * (sums[j, i] + shift)
        fetch_and_add(job + DONE)


def up(kind: str, biases: str, results: str) -> Any:
    """As `rows.up`."""
    return _made(_up, kind, biases, results)


def down(kind: str, biases: str) -> Any:
    """As `rows.down`."""
    return _made(_down, kind, biases, "float32")


@functools.cache
def _made(function: Any, kind: str, biases: str, results: str) -> Any:
    names = {"entries": entries_of(), "panel": _panel_of(kind), "load": loaded(biases), "bias_size": SIZES[biases]}
    names |= {"store": stored(results), "out_size": SIZES[results]}
    return c_function(bound(function, f"{kind}_{biases}_{results}", **names))


@functools.cache
def _panel_of(kind: str) -> Any:
    names: dict[str, Any] = {"wide": by_tokens(outer, kind, ROWS), "one": by_tokens(outer, kind, 1)}
    names |= {"weight": SIZES[kind], "factor": np.float32(SCALED.get(kind, 0)), "single": loaded("float32")}
    names["add_rows"] = inlined(_add, kind, **names)
    return inlined(_panel, kind, **names)
