"""Products of token rows with a matrix stored [in, out]: some columns of it, a few rows at a time.

Each result is the sum over rows in their order, one fused multiply-add each, whatever the tile: it does not depend on
the batch a token came in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from janus.experts.cpu.vectors import (
    F32,
    I64,
    SIZES,
    add_product,
    load,
    number,
    prefetch,
    spread,
    tile,
    vector,
    weights,
)

AHEAD = 16  # rows: the next one is a page away, where the hardware's prefetcher does not look


@functools.cache
def outer(kind: str, vectors: int, tokens: int) -> Callable[..., None]:
    """A function (matrix, stride, x, n, sums, sums_stride) for compiled code: adds to `tokens` rows of sums.

    As many columns as `vectors` hold, or one for 0. All int64: address of the first row's columns and bytes to the next
    row, address of `tokens` addresses of float32 token rows, rows n, address of the first token's float32 sums and bytes
    to the next token's.
    """
    lanes = tile()[0] if vectors else 1

    def codegen(context: Any, b: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        matrix, stride, x, n, sums, sums_stride = arguments
        each_token = [load(b, I64, 1, b.add(x, number(8 * j))) for j in range(tokens)]
        offsets = range(max(1, vectors))
        places = [
            b.inttoptr(b.add(b.add(sums, b.mul(sums_stride, number(j))), number(4 * lanes * i)), _pointer(lanes))
            for j in range(tokens)
            for i in offsets
        ]
        totals = [cgutils.alloca_once(b, vector(F32, lanes)) for _ in places]
        for place, total in zip(places, totals, strict=True):
            b.store(b.load(place, align=4), total)
        with cgutils.for_range_slice(b, number(0), n, number(1), inc=True) as (row, _):
            at = b.add(matrix, b.mul(row, stride))
            size = number(SIZES[kind] * lanes)
            made = [weights(b, kind, lanes, b.add(at, b.mul(number(i), size))) for i in offsets]
            for line in range(0, SIZES[kind] * lanes * len(offsets), 64) if vectors else ():
                prefetch(b, b.add(b.add(at, b.mul(stride, number(AHEAD))), number(line)))
            for j, token in enumerate(each_token):
                value = spread(b, load(b, F32, 1, b.add(token, b.mul(row, number(4)))), lanes)
                for i, w in enumerate(made):
                    add_product(b, lanes, w, value, totals[j * len(made) + i])
        for place, total in zip(places, totals, strict=True):
            b.store(b.load(total), place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def products(_typing: Any, matrix: Any, stride: Any, x: Any, n: Any, sums: Any, sums_stride: Any) -> Any:
        return types.void(*[types.int64] * 6), codegen

    return products


def _pointer(lanes: int) -> Any:
    return vector(F32, lanes).as_pointer()
