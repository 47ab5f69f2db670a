"""The two products of an expert over all activated slots, for matrices stored [out, in].

Threads take blocks of weight rows from a counter. No two write the same numbers, and each sum is made in one order, so
results do not depend on how many threads there are.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np

from janus.experts.cpu.inner import inner
from janus.experts.cpu.jobs import DONE, JOB, TOKENS, bound, by_tokens, c_function, entries_of, inlined
from janus.experts.cpu.vectors import LINE, SIZES, carray, fetch_and_add, loaded, pointer, stored, tile

AHEAD = 2048  # bytes in a long run of memory that are asked for in advance
LONG = {"float32": 4}  # tokens of a slot up to which its rows are read one after the other, by kind; 1 elsewhere
# Bound for each kind of weights: what a tile computes, with all its rows or one.
wide = one = entries = load = store = products = cast("Any", inner)
bias_size = out_size = most = few = 0


def _products(
    matrix: Any, stride: Any, scales: Any, scale_stride: Any, rows: Any, x: Any, many: Any, n: Any, out: Any, long: Any,
    part: Any, parts: Any,
) -> None:  # fmt: skip
    """float32 [rows, many] at `out`: up to a tile of weight rows times up to a tile of tokens.

    long: row by row, because one long run of memory is read faster than several side by side.
    part: of `parts` tiles of tokens over these rows. Each asks for its share of the rows that come next: memory would
    else have nothing to do while all tiles but the first compute.
    """
    step = LINE // parts
    if rows == most and not long:
        wide(many, matrix, stride, scales, scale_stride, x, n, out, most * stride + part * stride // parts, step)
        return
    for i in range(rows):
        at, at_scales, to = matrix + i * stride, scales + i * scale_stride, out + 4 * i * many
        one(many, at, stride, at_scales, scale_stride, x, n, to, AHEAD, LINE)


def _up(job: Any) -> None:
    d = carray(pointer(job), (1,), JOB)[0]
    slots, starts, tokens, _ = entries(d)
    x, out = np.empty(TOKENS, np.int64), np.empty(TOKENS * most, np.float32)
    while True:
        item = fetch_and_add(job)
        if item >= d.items:
            break
        a, block = item // d.blocks, item % d.blocks
        here = starts[a + 1] - starts[a]
        long, parts = here <= few, -(-here // TOKENS)
        bias = d.bias + slots[a] * d.bias_stride
        last = min(d.rows, (block + 1) * d.block_rows)
        for row in range(block * d.block_rows, last, most):
            rows = min(most, last - row)
            matrix = d.matrix + slots[a] * d.slot_stride + row * d.row_stride
            scales = d.scales + slots[a] * d.scale_slot_stride + row // d.scale_rows * d.scale_row_stride
            step = d.scale_row_stride if d.scale_rows == 1 else 0
            for first in range(starts[a], starts[a + 1], TOKENS):
                many = min(TOKENS, starts[a + 1] - first)
                for j in range(many):
                    x[j] = d.x + tokens[first + j] * d.x_stride
                products(
                    matrix, d.row_stride, scales, step, rows, x.ctypes.data, many, d.n, out.ctypes.data, long,
                    (first - starts[a]) // TOKENS, parts,
                )  # fmt: skip
                for i in range(rows):
                    shift = load(bias + (row + i) * bias_size) if d.bias else np.float32(0)
                    for j in range(many):
                        store(d.out + (first + j) * d.out_stride + (row + i) * out_size, out[i * many + j] + shift)
        fetch_and_add(job + DONE)


def _down(job: Any) -> None:
    d = carray(pointer(job), (1,), JOB)[0]
    slots, starts, tokens, factors = entries(d)
    x, out = np.empty(TOKENS, np.int64), np.empty(TOKENS * most, np.float32)
    while True:
        block = fetch_and_add(job)
        if block >= d.items:
            break
        begin, last = block * d.block_rows, min(d.rows, (block + 1) * d.block_rows)
        for a in range(d.active):
            here = starts[a + 1] - starts[a]
            long, parts = here <= few, -(-here // TOKENS)
            bias = d.bias + slots[a] * d.bias_stride
            for row in range(begin, last, most):
                rows = min(most, last - row)
                matrix = d.matrix + slots[a] * d.slot_stride + row * d.row_stride
                scales = d.scales + slots[a] * d.scale_slot_stride + row // d.scale_rows * d.scale_row_stride
                step = d.scale_row_stride if d.scale_rows == 1 else 0
                for first in range(starts[a], starts[a + 1], TOKENS):
                    many = min(TOKENS, starts[a + 1] - first)
                    for j in range(many):
                        x[j] = d.x + (first + j) * d.x_stride
                    products(
                        matrix, d.row_stride, scales, step, rows, x.ctypes.data, many, d.n, out.ctypes.data, long,
                        (first - starts[a]) // TOKENS, parts,
                    )  # fmt: skip
                    for i in range(rows):
                        shift = load(bias + (row + i) * bias_size) if d.bias else np.float32(0)
                        for j in range(many):
                            y = carray(pointer(d.out + tokens[first + j] * d.out_stride), (d.rows,), np.float32)
                            y[row + i] += factors[first + j] * (out[i * many + j] + shift)
        fetch_and_add(job + DONE)


def up(kind: str, biases: str, results: str) -> Any:
    """C function of a job: out[entry, row] = matrix[slot, row] . x[token of entry] + bias[slot, row].

    Args:
        kind: of the matrix.
        biases: kind of the bias.
        results: kind of `out`.
    """
    return _made(_up, kind, biases, results)


def down(kind: str, biases: str) -> Any:
    """C function of a job: out[token, row] += factor[entry] * (matrix[slot, row] . x[entry] + bias[slot, row]), in float32.

    A block of rows goes through all slots in their order: each sum is made by one thread, in one order.

    Args:
        kind: of the matrix.
        biases: kind of the bias.
    """
    return _made(_down, kind, biases, "float32")


@functools.cache
def _made(function: Any, kind: str, biases: str, results: str) -> Any:
    names = {"entries": entries_of(), "products": _products_of(kind), "few": LONG.get(kind, 1), "most": tile()[1]}
    names |= {"load": loaded(biases), "bias_size": SIZES[biases], "store": stored(results), "out_size": SIZES[results]}
    return c_function(bound(function, f"{kind}_{biases}_{results}".replace(" ", "_"), **names))


@functools.cache
def _products_of(kind: str) -> Any:
    rows = tile()[1]
    tiles = {"wide": by_tokens(inner, kind, rows), "one": by_tokens(inner, kind, 1)}
    return inlined(_products, kind.replace(" ", "_"), most=rows, **tiles)
