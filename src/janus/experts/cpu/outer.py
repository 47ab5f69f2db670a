"""Products of token rows with a few rows of a matrix stored [in, out]: the tile of that layout.

A result is the sum over rows in their order, one fused multiply-add each, whatever the tile: it does not depend on the
batch a token came in. Rows are read side by side and sums are kept in the nearest cache, because a walk down a few
columns would open a page of memory for every row.
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
    LINE,
    SIZES,
    load,
    multiply_add,
    number,
    prefetch,
    spread,
    tile,
    vector,
    weights,
)


@functools.cache
def outer(kind: str, rows: int, tokens: int) -> Callable[..., None]:
    """A function (matrix, stride, x, columns, sums, sums_stride) for compiled code: adds to `tokens` rows of sums.

    All int64: address of the first of `rows` matrix rows and bytes to the next, address of `tokens` addresses of the
    float32 numbers that they are multiplied with, columns, address of the first token's float32 sums and bytes to the
    next token's.
    """

    def codegen(context: Any, b: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        _Tile(b, kind, rows, tokens, arguments).write()
        return context.get_dummy_value()

    @intrinsic
    def products(_typing: Any, matrix: Any, stride: Any, x: Any, columns: Any, sums: Any, sums_stride: Any) -> Any:
        return types.void(*[types.int64] * 6), codegen

    return products


class _Tile:
    """Writes the code of one `outer`."""

    def __init__(self, b: Any, kind: str, rows: int, tokens: int, arguments: Sequence[Any]) -> None:
        matrix, stride, x, self.columns, sums, sums_stride = arguments
        self.b, self.kind = b, kind
        self.rows = [b.add(matrix, b.mul(stride, number(i))) for i in range(rows)]
        self.ahead = b.mul(stride, number(rows))  # the same columns of the tile that comes next
        self.sums = [b.add(sums, b.mul(sums_stride, number(j))) for j in range(tokens)]
        addresses = [load(b, I64, 1, b.add(x, number(8 * j))) for j in range(tokens)]
        self.x = [[load(b, F32, 1, b.add(each, number(4 * i))) for i in range(rows)] for each in addresses]

    def write(self) -> None:
        """Cache line by cache line, vector by vector, then the rest one by one."""
        b, lanes = self.b, tile()[0]
        line = max(lanes, LINE // SIZES[self.kind])
        whole, wholes = (b.mul(b.sdiv(self.columns, number(n)), number(n)) for n in (line, lanes))
        wide = [[spread(b, value, lanes) for value in values] for values in self.x]
        with cgutils.for_range_slice(b, number(0), whole, number(line), inc=True) as (column, _):
            at = b.add(b.mul(column, number(SIZES[self.kind])), self.ahead)
            for row in self.rows:
                prefetch(b, b.add(row, at))
            for vector_at in range(0, line, lanes):
                self._step(lanes, b.add(column, number(vector_at)), wide)
        with cgutils.for_range_slice(b, whole, wholes, number(lanes), inc=True) as (column, _):
            self._step(lanes, column, wide)
        with cgutils.for_range_slice(b, wholes, self.columns, number(1), inc=True) as (column, _):
            self._step(1, column, self.x)

    def _step(self, lanes: int, column: Any, x: list[list[Any]]) -> None:
        b = self.b
        at, at4 = b.mul(column, number(SIZES[self.kind])), b.mul(column, number(4))
        made = [weights(b, self.kind, lanes, b.add(row, at)) for row in self.rows]
        for sums, values in zip(self.sums, x, strict=True):
            where = b.inttoptr(b.add(sums, at4), vector(F32, lanes).as_pointer())
            total = b.load(where, align=4)
            for w, value in zip(made, values, strict=True):
                total = multiply_add(b, lanes, w, value, total)
            b.store(total, where, align=4)
