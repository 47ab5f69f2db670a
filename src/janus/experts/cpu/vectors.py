"""Weights as vectors of float32 in LLVM's own language, which numba's loops cannot say: halves, bytes, prefetching."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numba
from llvmlite import binding, ir
from numba.core import types
from numba.extending import intrinsic

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
ALIGNED = {I8: 1, I16: 2, F16: 2, I32: 4, F32: 4, I64: 8}  # bytes
SIZES = {
    "float32": 4,
    "bfloat16": 2,
    "bfloat16 pairs": 2,
    "float16": 2,
    "int8": 1,
    "fp8": 1,
}  # bytes of a weight, by kind
LINE = 64  # bytes of a cache line
SCALED = {
    "int8": 1.0,
    "fp8": 256.0,
}  # what the number that `weights` makes of a byte falls short of it, beside its scale


@functools.cache
def tile() -> tuple[int, int]:
    """Lanes V of a vector, and weight rows of a tile of 4 tokens: what the registers of this machine hold.

    The accumulators, a vector per row and one for the token: 4 x 4 + 5 of 32 registers with AVX-512 and on ARM, 2 x 4 + 3
    of 16 with AVX2.
    """
    if binding.get_host_cpu_features().get("avx512f"):
        return 16, 4
    if binding.get_default_triple().startswith(("aarch64", "arm64")):
        return 4, 4
    return 8, 2


@functools.cache
def has_pairs() -> bool:
    """Whether this machine multiplies pairs of bfloat16 and adds both products in one instruction (AVX512_BF16)."""
    features = binding.get_host_cpu_features()
    return bool(features.get("avx512f") and features.get("avx512bf16"))


def vector(element: ir.Type, lanes: int) -> ir.Type:
    """A vector type; of one lane, the element itself."""
    return element if lanes == 1 else ir.VectorType(element, lanes)


def splat(element: ir.Type, lanes: int, value: float) -> ir.Constant:
    """The same constant in all lanes."""
    return ir.Constant(vector(element, lanes), value if lanes == 1 else [value] * lanes)


def number(value: int) -> ir.Constant:
    """An int64 constant."""
    return ir.Constant(I64, value)


def declared(module: ir.Module, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> Any:
    """A function of LLVM's, declared once per module."""
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def load(b: Any, element: ir.Type, lanes: int, address: Any) -> Any:
    """`lanes` elements from an address that need not be aligned to more than one."""
    return b.load(b.inttoptr(address, vector(element, lanes).as_pointer()), align=ALIGNED[element])


def weights(b: Any, kind: str, lanes: int, address: Any) -> Any:
    """`lanes` weights as float32; of int8 and fp8 the numbers that `SCALED` and a scale turn into weights."""
    wide = vector(F32, lanes)
    if kind == "float32":
        return load(b, F32, lanes, address)
    if kind == "float16":
        return b.fpext(load(b, F16, lanes, address), wide)
    if kind == "int8":
        return b.sitofp(b.sext(load(b, I8, lanes, address), vector(I32, lanes)), wide)
    if kind == "fp8":  # e4m3 has the exponent of float16 less one bit: moved to its place, it is 2**8 too small
        bits = b.zext(load(b, I8, lanes, address), vector(I16, lanes))
        sign = b.shl(b.and_(bits, splat(I16, lanes, 0x80)), splat(I16, lanes, 8))
        rest = b.shl(b.and_(bits, splat(I16, lanes, 0x7F)), splat(I16, lanes, 7))
        return b.fpext(b.bitcast(b.or_(sign, rest), vector(F16, lanes)), wide)
    # bfloat16 is the upper half of a float32
    bits = b.zext(load(b, I16, lanes, address), vector(I32, lanes))
    return b.bitcast(b.shl(bits, splat(I32, lanes, 16)), wide)


def spread(b: Any, value: Any, lanes: int) -> Any:
    """A number in all lanes."""
    if lanes == 1:
        return value
    one = b.insert_element(ir.Constant(ir.VectorType(F32, lanes), ir.Undefined), value, ir.Constant(I32, 0))
    return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def multiply_add(b: Any, lanes: int, left: Any, right: Any, term: Any) -> Any:
    """left * right + term, rounded once."""
    wide = vector(F32, lanes)
    name = "llvm.fma.f32" if lanes == 1 else f"llvm.fma.v{lanes}f32"
    return b.call(declared(b.module, name, wide, [wide] * 3), [left, right, term])


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


def add_pairs(b: Any, left: Any, right: Any, term: Any) -> Any:
    """term[i] + left[2 i] * right[2 i] + left[2 i + 1] * right[2 i + 1], for 16 lanes; left and right as 32 int16."""
    wide, halves = vector(F32, 16), ir.VectorType(_BFloat(), 32)
    call = declared(b.module, "llvm.x86.avx512bf16.dpbf16ps.512", wide, [wide, halves, halves])
    return b.call(call, [term, b.bitcast(left, halves), b.bitcast(right, halves)])


def prefetch(b: Any, address: Any) -> None:
    """Ask for the cache line at an address, to be read soon; any address will do."""
    pointer = I8.as_pointer()
    call = declared(b.module, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32, I32, I32])
    b.call(call, [b.inttoptr(address, pointer), *(ir.Constant(I32, n) for n in (0, 3, 1))])  # read, keep, data


@functools.cache
def loaded(kind: str) -> Callable[..., Any]:
    """A function (address) for compiled code: the number of that kind there, as float32."""

    @intrinsic
    def load_one(_typing: Any, address: Any) -> Any:
        return types.float32(types.int64), lambda _context, b, _signature, arguments: weights(b, kind, 1, arguments[0])

    return load_one


@functools.cache
def stored(kind: str) -> Callable[..., Any]:
    """A function (address, float32) for compiled code: writes the nearest number of that kind, ties to even."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        address, value = arguments
        if kind == "float16":
            value = b.fptrunc(value, F16)
        if kind == "bfloat16":
            value = _upper_half(b, value)
        b.store(value, b.inttoptr(address, value.type.as_pointer()))
        return context.get_dummy_value()

    @intrinsic
    def store_one(_typing: Any, address: Any, value: Any) -> Any:
        return types.void(types.int64, types.float32), codegen

    return store_one


def _upper_half(b: Any, value: Any) -> Any:
    """float32 -> bfloat16 bits, to nearest even; a NaN stays one."""
    bits = b.bitcast(value, I32)
    odd = b.and_(b.lshr(bits, ir.Constant(I32, 16)), ir.Constant(I32, 1))
    rounded = b.lshr(b.add(bits, b.add(odd, ir.Constant(I32, 0x7FFF))), ir.Constant(I32, 16))
    nan = b.fcmp_unordered("uno", value, value)
    return b.trunc(b.select(nan, ir.Constant(I32, 0x7FC0), rounded), I16)


@intrinsic
def _power_of_two(_typing: Any, exponent: Any) -> Any:
    """2**exponent as float32, for an int32 between -126 and 127: its bits are the exponent's."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        return b.bitcast(b.shl(b.add(arguments[0], ir.Constant(I32, 127)), ir.Constant(I32, 23)), F32)

    return types.float32(types.int32), codegen


@intrinsic
def _as_upper_half(_typing: Any, value: Any) -> Any:
    """float32 -> the bits of the nearest bfloat16, as uint16."""
    return types.uint16(types.float32), lambda _context, b, _signature, arguments: _upper_half(b, arguments[0])


@intrinsic
def _fetch_and_add(_typing: Any, address: Any) -> Any:
    """The int64 at `address`, which is one more for whoever asks next: how threads share out work."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        return b.atomic_rmw("add", b.inttoptr(arguments[0], I64.as_pointer()), number(1), "acq_rel")

    return types.int64(types.int64), codegen


@intrinsic
def _read_shared(_typing: Any, address: Any) -> Any:
    """The int64 at `address`, and with it everything that threads wrote before they changed it."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        return b.load_atomic(b.inttoptr(arguments[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _give_way(_typing: Any) -> Any:
    """Let another thread have this core, if one waits for it."""

    def codegen(context: Any, b: Any, _signature: Any, _arguments: Sequence[Any]) -> Any:
        b.call(declared(b.module, "sched_yield", I32, []), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _call(_typing: Any, function: Any, argument: Any) -> Any:
    """Call the C function at an address, which takes an int64."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        signature = ir.FunctionType(ir.VoidType(), [I64])
        b.call(b.inttoptr(arguments[0], signature.as_pointer()), [arguments[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _pointer(_typing: Any, address: Any) -> Any:
    """An address as numba's voidptr, which `numba.carray` takes."""
    return types.voidptr(types.int64), lambda _c, b, _s, arguments: b.inttoptr(arguments[0], I8.as_pointer())


# numba gives the first parameter itself
power_of_two, upper_half, fetch_and_add, read_shared, give_way, call, pointer = (
    cast("Callable[..., Any]", f)
    for f in (_power_of_two, _as_upper_half, _fetch_and_add, _read_shared, _give_way, _call, _pointer)
)
carray: Any = numba.carray  # of any type in compiled code
