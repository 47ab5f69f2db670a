"""Weights kept in 8 bits with a float32 scale per block: the formats, and the way into and out of them.

Only weights are quantized; activations and sums keep their dtypes. Blocks are those that published FP8 checkpoints use
(DeepSeek-V3 technical report, section 3.3: 128 x 128) and, for int8, 128 inputs of one output, so that a dot product
meets a scale once per 128 terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from janus.errors import JanusError, known

LARGEST = 2.0**127  # weights above it could round past float32 on the way back
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a smaller one would be subnormal, and zero on a GPU


@dataclass(frozen=True)
class Format:
    """One way to keep a matrix [out, in] in a byte per weight.

    Attributes:
        name: by which it is asked for.
        dtype: of the stored matrix.
        block: (outputs, inputs) that share a scale.
        largest: what the largest magnitude of a block is stored as.
        relative: bound of the error of one weight, relative to that weight.
        floor: bound of the error of one weight, in scales; an error is within the larger of the two.
    """

    name: str
    dtype: torch.dtype
    block: tuple[int, int]
    largest: float
    relative: float
    floor: float

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[.., out, in] -> [.., ceil(out / block), ceil(in / block)]."""
        return *shape[:-2], math.ceil(shape[-2] / self.block[0]), math.ceil(shape[-1] / self.block[1])

    @property
    def bytes_per_weight(self) -> float:
        """Scales included, for matrices of whole blocks."""
        return 1 + 4 / math.prod(self.block)


FORMATS = {
    "int8": Format("int8", torch.int8, (1, 128), 127.0, 0.0, 0.5),
    # e4m3: 3 bits after the point, so half a unit in the last place is 2**-4; below 2**-6 its step is 2**-9
    "fp8": Format("fp8", torch.float8_e4m3fn, (128, 128), 448.0, 2.0**-4, 2.0**-10),
}


def named(format: str | Format) -> Format:
    """The format of that name.

    Raises:
        JanusError: ``experts.quantize``.
    """
    return format if isinstance(format, Format) else FORMATS[known(format, FORMATS, "quantize", "experts.quantize")]


def quantize(weight: torch.Tensor, format: str | Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to a format: nearest, ties to even, the same bits on every call.

    Args:
        weight: float [.., out, in], any sizes.
        format: a name of `FORMATS`, or the format itself.

    Returns:
        The stored matrix [.., out, in] in the format's dtype, and its float32 scales [.., ceil(out / bo), ceil(in / bi)]:
        weight = stored * scale of its block. The error of a weight is within half a step (int8) or 2**-4 of the weight
        (fp8; of the smallest ones 2**-10 of the scale), to float32 rounding.

    Raises:
        JanusError: ``experts.quantize`` for an unknown format, for weights that are no float matrix, not finite, or
            above 2**127.

    Example:
        >>> stored, scales = quantize(torch.tensor([[1.0, -127.0, 0.4]]), "int8")
        >>> stored.tolist(), scales.tolist()
        ([[1, -127, 0]], [[1.0]])
        >>> dequantize(stored, scales, "int8", torch.bfloat16)
        tensor([[   1., -127.,    0.]], dtype=torch.bfloat16)
    """
    format = named(format)
    _check_weight(weight)
    blocks = _blocks(weight.detach().float(), format.block)
    amax = blocks.abs().amax(dim=(-3, -1))
    # host sync here; an infinity in the comparison is one of the weight's own, and NaN fails it too
    if amax.numel() and not bool(amax.max() <= LARGEST):
        raise JanusError(
            "experts.quantize",
            f"weights must be finite and within 2**127 to be quantized to {format.name}, the largest magnitude is "
            f"{float(amax.max())}; the checkpoint may be damaged",
        )
    scales = (amax / format.largest).clamp_(min=SMALLEST_SCALE)  # a block of zeros has one too: no 0 / 0
    steps = (blocks / scales[..., :, None, :, None]).clamp_(-format.largest, format.largest)
    steps = steps.round_() if format.dtype == torch.int8 else steps
    return _matrix(steps, weight).to(format.dtype), scales


def dequantize(
    stored: torch.Tensor,
    scales: torch.Tensor,
    format: str | Format,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The matrix that a stored one stands for.

    Args:
        stored: [.., out, in] in the format's dtype.
        scales: float32 [.., ceil(out / bo), ceil(in / bi)].
        format: a name of `FORMATS`, or the format itself.
        dtype: of the result.

    Returns:
        [.., out, in]: products in float32, then rounded to `dtype`.

    Raises:
        JanusError: ``experts.quantize`` for an unknown format or tensors that are not of it.
    """
    format = named(format)
    check_stored(stored, scales, format)
    blocks = _blocks(stored.float(), format.block)
    return _matrix(blocks.mul_(scales[..., :, None, :, None]), stored).to(dtype)


def check_stored(stored: torch.Tensor, scales: torch.Tensor, format: Format) -> None:
    """Refuse a stored matrix [.., out, in] and scales that are not of the format (``experts.quantize``)."""
    shape = format.scale_shape(tuple(stored.shape)) if stored.dim() >= 2 else None
    if stored.dtype != format.dtype or tuple(scales.shape) != shape or scales.dtype != torch.float32:
        raise JanusError(
            "experts.quantize",
            f"{format.name} is {format.dtype} [.., out, in] with float32 scales per block of {format.block}; got "
            f"{stored.dtype} {list(stored.shape)} with scales {scales.dtype} {list(scales.shape)}",
        )


def _check_weight(weight: torch.Tensor) -> None:
    if not weight.is_floating_point() or weight.element_size() < 2 or weight.dim() < 2:
        raise JanusError(
            "experts.quantize",
            f"weights to quantize must be float matrices [.., out, in] of 16 bits or more, got {weight.dtype} "
            f"{list(weight.shape)}",
        )


def _blocks(matrix: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """[.., out, in] -> [.., out blocks, bo, in blocks, bi], zeros where the last blocks stick out."""
    (outs, ins), (bo, bi) = matrix.shape[-2:], block
    if outs % bo or ins % bi:
        matrix = F.pad(matrix, (0, -ins % bi, 0, -outs % bo))
    return matrix.unflatten(-2, (-1, bo)).unflatten(-1, (-1, bi))


def _matrix(blocks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return blocks.flatten(-2).flatten(-3, -2)[..., : like.shape[-2], : like.shape[-1]]
