"""Weights stored in FP8 with a scale per 128 x 128 block beside each, as DeepSeek-V3 and Qwen3-FP8 publish them.

A matrix ``X`` is float8_e4m3fn, its scales [ceil(out / 128), ceil(in / 128)] are ``X_scale_inv`` (the name says inverse;
it is what a stored value is multiplied by). That is the format ``"fp8"`` of slots, so bytes and scales go there unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from janus.errors import JanusError
from janus.experts.quantized import FORMATS, check_stored, dequantize

SUFFIX = "_scale_inv"
FP8 = FORMATS["fp8"]
# What scales are published as: float32 holds each exactly. A plain byte could be an exponent or a value: refused.
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)


def scale_of(names: Iterable[str]) -> dict[str, str]:
    """Name of a tensor -> name of its scales, of those of `names` that have some.

    Example:
        >>> scale_of(["a.weight", "a.weight_scale_inv", "b.weight"])
        {'a.weight': 'a.weight_scale_inv'}
    """
    names = set(names)
    return {name: name + SUFFIX for name in sorted(names) if name + SUFFIX in names}


def as_float32(key: str, stored: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Scales in float32, the same values.

    Args:
        key: name of the matrix.
        stored: the matrix, float8_e4m3fn [.., out, in].
        scales: in one of `SCALE_DTYPES`, [.., ceil(out / 128), ceil(in / 128)].

    Raises:
        JanusError: ``checkpoint.corrupt`` if one is not as said, or a scale is not finite.
    """
    same = scales.float() if scales.dtype in SCALE_DTYPES else scales
    try:
        check_stored(stored, same, FP8)
    except JanusError as error:
        raise JanusError("checkpoint.corrupt", f"{key} and {key + SUFFIX}: {error.message}") from error
    if not same.isfinite().all():
        raise JanusError("checkpoint.corrupt", f"{key + SUFFIX} has scales that are not finite")
    return same


def check_joined(
    target: str,
    stored: torch.Tensor,
    scales: torch.Tensor,
    plain: torch.Tensor,
    is_transposed: bool,
) -> None:
    """Refuse a parameter whose blocks are no longer 128 x 128 after its stored tensors were joined.

    Where gate and up have a number of rows that 128 does not divide, the first block of up starts inside a block of the
    joined matrix, and no scales make that the same weights.

    Args:
        target: name of the parameter.
        stored: float8_e4m3fn, joined as the parameter is.
        scales: float32, joined in the same way.
        plain: float32, dequantized first and then joined.
        is_transposed: the parameter is [in, out].

    Raises:
        JanusError: ``checkpoint.quantized``.
    """
    out_in = stored.mT if is_transposed else stored
    if tuple(scales.shape) == FP8.scale_shape(tuple(out_in.shape)):
        made = dequantize(out_in, scales, FP8)
        if torch.equal(made.mT if is_transposed else made, plain):
            return
    raise JanusError(
        "checkpoint.quantized",
        f"{target} is joined of FP8 matrices whose blocks of 128 do not line up in it: {list(stored.shape)} with scales "
        f"{list(scales.shape)}; slots without quantize=, or with quantize='int8', take them dequantized",
    )
