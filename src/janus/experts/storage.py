"""How the weights of one expert lie in a slot: as they are, or in a format of `janus.experts.quantized`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from janus.errors import JanusError
from janus.experts.layout import ExpertLayout, Weights
from janus.experts.quantized import FORMATS, Format, check_stored, dequantize, quantize

MATRICES_ARE = "_proj"  # what is quantized; biases are few and stay in the compute dtype
SCALE = "_scale"  # behind a matrix's name


def parameters(
    layout: ExpertLayout,
    format: Format | None,
    dtype: torch.dtype,
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> shape and dtype of one slot's part of every parameter.

    Scales are [out blocks, in blocks] whether the matrix is stored [out, in] or [in, out].
    """
    found = {}
    for name, shape in layout.shapes.items():
        if format is None or not _is_matrix(name):
            found[name] = (shape, dtype)
            continue
        found[name] = (shape, format.dtype)
        found[name + SCALE] = (format.scale_shape(shape[::-1] if layout.is_transposed else shape), torch.float32)
    return found


def encode(weights: Weights, layout: ExpertLayout, format: Format | None) -> Weights:
    """What a slot stores of one expert: quantized here, or taken over where `weights` bring the bytes and scales.

    Args:
        weights: by name as in the layout, without the expert dimension; a matrix in a format's dtype has its scales
            beside it, under its name + ``_scale``.
        layout: of the family.
        format: of the slot; None stores matrices as they come, dequantized to float32 where they are in a format.

    Raises:
        JanusError: ``experts.quantize`` for a matrix in 8 bits without its scales or with those of other blocks, and for
            weights that cannot be quantized.
    """
    made = {}
    for name in layout.shapes:
        given, kept = weights[name], _format_of(weights, name)
        if kept is not None and kept is format:
            check_stored(_out_in(given, layout), weights[name + SCALE], kept)
            made |= {name: given, name + SCALE: weights[name + SCALE]}
            continue
        if kept is not None:  # another format asked for: what it stands for, quantized anew
            given = _out_in(dequantize(_out_in(given, layout), weights[name + SCALE], kept), layout)
        if format is None or not _is_matrix(name):
            made[name] = given
        else:
            stored, made[name + SCALE] = quantize(_out_in(given, layout), format)
            made[name] = _out_in(stored, layout)
    return made


def decode(stored: Weights, layout: ExpertLayout, format: Format, dtype: torch.dtype) -> Weights:
    """One expert's weights in the compute dtype from what a slot stores; matrices are new, biases as they lie."""
    return {
        name: _out_in(dequantize(_out_in(part, layout), stored[name + SCALE], format, dtype), layout)
        if _is_matrix(name)
        else part
        for name, part in stored.items()
        if name in layout.shapes
    }


def keeping(kept: set[int], fn: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    """`fn` of `torch.nn.Module._apply`, but the tensors whose ids are in `kept` keep their dtype and only move."""

    def apply(tensor: torch.Tensor) -> Any:
        if id(tensor) not in kept:
            return fn(tensor)
        probe = fn(tensor.new_empty(0))
        return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

    return apply


def _format_of(weights: Weights, name: str) -> Format | None:
    found = next((f for f in FORMATS.values() if f.dtype == weights[name].dtype), None)
    if found is not None and name + SCALE not in weights:
        raise JanusError(
            "experts.quantize",
            f"{name} comes as {found.dtype} without {name + SCALE}; give its scales, or weights of 16 bits or more",
        )
    return found


def _is_matrix(name: str) -> bool:
    return name.endswith(MATRICES_ARE)


def _out_in(matrix: torch.Tensor, layout: ExpertLayout) -> torch.Tensor:
    """From the layout's order to [out, in], or back."""
    return matrix.mT if layout.is_transposed else matrix
