"""The activation between the two products, where it is a formula we know: float32, the same bits in any batch.

torch's own operations take other paths for other shapes and strides, and with them other last bits.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any, cast

import numpy as np

from janus.experts.activation import CLAMPS, KINDS, Activation
from janus.experts.cpu.jobs import DONE, JOB, bound, c_function, inlined
from janus.experts.cpu.vectors import carray, fetch_and_add, pointer, power_of_two, upper_half

# Bound for each formula by `activate`.
formula = curve = exponential = rounded = result = cast("Any", pointer)
clamp = 0
gated = interleaved = False
alpha = limit = shift = np.float32(1)

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # ln 2 in two parts: their sum is exact
ONE, HALF, LARGEST, SMALLEST = np.float32(1), np.float32(0.5), np.float32(89), np.float32(-87)
# exp(r) - 1 - r over r**2 within |r| <= ln 2 / 2, as the Cephes library has it (Moshier); 2e-7 relative
P0, P1, P2, P3, P4, P5 = (
    np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
)
ROOT_HALF = np.float32(math.sqrt(0.5))
TANH_SLOPE, TANH_CUBE = np.float32(math.sqrt(8 / math.pi)), np.float32(0.044715)


def _exponential(x: Any) -> Any:
    """exp in float32 without a branch or a call, so that the compiler makes vectors of it."""
    x = min(max(x, SMALLEST), LARGEST)
    whole = np.floor(x * LOG2_E + HALF)
    r = x - whole * LN2_HIGH - whole * LN2_LOW
    p = ((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5
    return (p * r * r + r + ONE) * power_of_two(np.int32(whole))


def _silu(x: Any) -> Any:
    return x / (ONE + exponential(-alpha * x))


def _gelu(x: Any) -> Any:
    return HALF * x * (ONE + np.float32(math.erf(x * ROOT_HALF)))


def _gelu_tanh(x: Any) -> Any:
    # half of 1 + tanh(y) is the sigmoid of 2 y
    return x / (ONE + exponential(-TANH_SLOPE * (x + TANH_CUBE * x * x * x)))


def _relu(x: Any) -> Any:
    return x if x > 0 or x != x else np.float32(0)


def _relu2(x: Any) -> Any:
    return x * x if x > 0 or x != x else np.float32(0)


def _identity(x: Any) -> Any:
    return x


COMPILED: dict[str, Any] = dict(zip(KINDS, (_silu, _gelu, _gelu_tanh, _relu, _relu2, _identity), strict=True))


def _formula(gate: Any, up: Any) -> Any:
    if clamp > 0:
        up = min(max(up, -limit), limit) if up == up else up
    if clamp == 1:
        gate = min(gate, limit) if gate == gate else gate
    value = curve(gate)
    if clamp == 2:
        value = min(value, limit) if value == value else value
    return value * (up + shift)


def _activate(job: Any) -> None:
    """out[row, i] = formula of x[row]; `rows` rows, `n` results each."""
    d = carray(pointer(job), (1,), JOB)[0]
    while True:
        block = fetch_and_add(job)
        if block >= d.items:
            break
        for row in range(block * d.block_rows, min(d.rows, (block + 1) * d.block_rows)):
            n = d.n  # not read again in the loop, which is made of vectors then
            out = carray(pointer(d.out + row * d.out_stride), (n,), result)
            x = carray(pointer(d.x + row * d.x_stride), (2 * n,), np.float32)
            for i in range(n):
                if not gated:
                    out[i] = rounded(curve(x[i]))
                elif interleaved:
                    out[i] = rounded(formula(x[2 * i], x[2 * i + 1]))
                else:
                    out[i] = rounded(formula(x[i], x[n + i]))
        fetch_and_add(job + DONE)


def _same(value: Any) -> Any:
    return value


@functools.cache
def activate(activation: Activation, results: str) -> Any:
    """C function of a job: [N, 2F], or [N, F] without a gate, to [N, F].

    Args:
        activation: the formula.
        results: kind of what is written, float32 or bfloat16.
    """
    act = activation
    name = f"{act.kind}_{results}_{hashlib.sha256(repr(act).encode()).hexdigest()[:8]}"
    numbers = {"alpha": np.float32(act.alpha), "limit": np.float32(act.limit), "shift": np.float32(act.shift)}
    numbers |= {"clamp": CLAMPS.index(act.clamp), "gated": act.gated, "interleaved": act.interleaved}
    exp = inlined(_exponential, name)
    curve = inlined(COMPILED[act.kind], name, exponential=exp, **numbers)
    whole = inlined(_formula, name, curve=curve, **numbers)
    is_half = results == "bfloat16"
    names = {"result": np.uint16 if is_half else np.float32, "rounded": upper_half if is_half else inlined(_same, name)}
    return c_function(bound(_activate, name, curve=curve, formula=whole, **names, **numbers))
