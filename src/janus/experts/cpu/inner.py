"""Inner products of a few weight rows with a few token rows: the tile of matrices stored [out, in].

Each product sums the same terms in the same order whatever tile it is part of: lane i of V takes elements i, i + V, ...,
then the lanes are summed, then the rest. So a token's result does not depend on the batch it came in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from janus.experts.cpu.vectors import (
    F32,
    I16,
    I64,
    LINE,
    SCALED,
    SIZES,
    add_pairs,
    declared,
    load,
    multiply_add,
    number,
    prefetch,
    splat,
    spread,
    tile,
    vector,
    weights,
)  # fmt: skip

PAIRS = "bfloat16 pairs"
GROUP = 128  # elements of a row that share a scale


@functools.cache
def inner(kind: str, rows: int, tokens: int) -> Callable[..., None]:
    """A function (weights, stride, scales, scale_stride, x, n, out, ahead, step): `rows` x `tokens` products.

    For compiled code. All int64: address of the first weight row and bytes to the next, the same of its float32 scales, one
    per `GROUP` (int8, fp8; ignored otherwise), address of `tokens` addresses of float32 token rows, elements n of a row,
    address of float32 [rows, tokens] to write; bytes from each row to what is asked for in advance beside its first cache
    line, and bytes that this moves on with each line.
    """

    def codegen(context: Any, b: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        _Tile(b, kind, rows, tokens, arguments).write()
        return context.get_dummy_value()

    @intrinsic
    def products(
        _typing: Any, weights: Any, stride: Any, scales: Any, scale_stride: Any, x: Any, n: Any, out: Any, ahead: Any,
        step: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 9), codegen

    return products


class _Tile:
    """Writes the code of one `inner`."""

    def __init__(self, b: Any, kind: str, rows: int, tokens: int, arguments: Sequence[Any]) -> None:
        matrix, stride, scales, scale_stride, x, self.n, self.out, self.ahead, self.step = arguments
        self.b, self.kind = b, kind
        self.rows = [b.add(matrix, b.mul(stride, number(i))) for i in range(rows)]
        self.scales = [b.add(scales, b.mul(scale_stride, number(i))) for i in range(rows)]
        self.tokens = [load(b, I64, 1, b.add(x, number(8 * j))) for j in range(tokens)]

    def write(self) -> None:
        b, lanes = self.b, tile()[0]
        sums, rest = self._zeros(lanes), self._zeros(1)
        step = 2 * lanes if self.kind == PAIRS else lanes
        whole = b.mul(b.sdiv(self.n, number(step)), number(step))
        if self.kind in SCALED:
            groups = b.sdiv(b.add(whole, number(GROUP - 1)), number(GROUP))
            with cgutils.for_range_slice(b, number(0), groups, number(1), inc=True) as (group, _):
                first, end = b.mul(group, number(GROUP)), b.mul(b.add(group, number(1)), number(GROUP))
                last = b.select(b.icmp_signed("<", end, whole), end, whole)
                self._loop(sums, lanes, first, last, self._scales(group))
        else:
            self._loop(sums, lanes, number(0), whole, None)
        add = declared(b.module, f"llvm.vector.reduce.fadd.v{lanes}f32", F32, [F32, vector(F32, lanes)])
        for total, one in zip(sums, rest, strict=True):
            b.store(b.call(add, [ir.Constant(F32, 0.0), b.load(total)], fastmath=("reassoc",)), one)
        with cgutils.for_range_slice(b, whole, self.n, number(1), inc=True) as (element, _):
            scales = self._scales(b.sdiv(element, number(GROUP))) if self.kind in SCALED else None
            self._step(rest, 1, element, scales)
        for i, one in enumerate(rest):
            b.store(b.load(one), b.inttoptr(b.add(self.out, number(4 * i)), F32.as_pointer()))

    def _zeros(self, lanes: int) -> list[Any]:
        zero = splat(F32, lanes, 0.0)
        made = [cgutils.alloca_once(self.b, zero.type) for _ in range(len(self.rows) * len(self.tokens))]
        for each in made:
            self.b.store(zero, each)
        return made

    def _scales(self, group: Any) -> list[Any]:
        b, at = self.b, self.b.mul(group, number(4))
        factor = ir.Constant(F32, SCALED[self.kind])
        return [b.fmul(load(b, F32, 1, b.add(each, at)), factor) for each in self.scales]

    def _loop(self, sums: list[Any], lanes: int, first: Any, last: Any, scales: list[Any] | None) -> None:
        """Cache line by cache line, then vector by vector."""
        b, line = self.b, max(lanes, LINE // SIZES[self.kind])
        if self.kind == PAIRS:
            self._pairs(sums, first, last)
            return
        lines = b.add(first, b.mul(b.sdiv(b.sub(last, first), number(line)), number(line)))
        with cgutils.for_range_slice(b, first, lines, number(line), inc=True) as (element, _):
            self._prefetch(b.sdiv(element, number(line)))
            for vector_at in range(0, line, lanes):
                self._step(sums, lanes, b.add(element, number(vector_at)), scales)
        with cgutils.for_range_slice(b, lines, last, number(lanes), inc=True) as (element, _):
            self._step(sums, lanes, element, scales)

    def _pairs(self, sums: list[Any], first: Any, last: Any) -> None:
        b = self.b
        with cgutils.for_range_slice(b, first, last, number(32), inc=True) as (element, _):
            at = b.mul(element, number(2))
            self._prefetch(b.sdiv(element, number(32)))
            made = [load(b, I16, 32, b.add(row, at)) for row in self.rows]
            for j, token in enumerate(self.tokens):
                x = load(b, I16, 32, b.add(token, at))
                for i, w in enumerate(made):
                    where = sums[i * len(self.tokens) + j]
                    b.store(add_pairs(b, w, x, b.load(where)), where)

    def _prefetch(self, line: Any) -> None:
        at = self.b.add(self.ahead, self.b.mul(line, self.step))
        for row in self.rows:
            prefetch(self.b, self.b.add(row, at))

    def _step(self, sums: list[Any], lanes: int, element: Any, scales: list[Any] | None) -> None:
        """Add the products of `lanes` elements from number `element` on."""
        b = self.b
        x_kind = "bfloat16" if self.kind == PAIRS else "float32"
        at, at_x = b.mul(element, number(SIZES[self.kind])), b.mul(element, number(SIZES[x_kind]))
        made = [weights(b, self.kind, lanes, b.add(row, at)) for row in self.rows]
        if scales is not None:
            made = [b.fmul(w, spread(b, scale, lanes)) for w, scale in zip(made, scales, strict=True)]
        for j, token in enumerate(self.tokens):
            x = weights(b, x_kind, lanes, b.add(token, at_x))
            for i, w in enumerate(made):
                where = sums[i * len(self.tokens) + j]
                b.store(multiply_add(b, lanes, w, x, b.load(where)), where)
