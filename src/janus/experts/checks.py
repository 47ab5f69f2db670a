"""What can be wrong with a call, found before anything runs; a good call pays a few comparisons of attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from janus.errors import JanusError

if TYPE_CHECKING:
    from janus.experts.slots import ExpertSlots

NAMES = ("hidden", "topk_ids", "topk_weights")
NATIVE = (torch.int64, torch.int32)  # ids that are taken as they come; others are widened
ID_DTYPES = (*NATIVE, torch.int16, torch.int8, torch.uint8)
CAST_BY_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)
STORED_ALONE = (torch.float64, *CAST_BY_AUTOCAST)  # what a weight can be stored as without scales


def check_call(
    slots: ExpertSlots,
    num_experts: int,
    hidden: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
) -> None:
    """Refuse a call that the slots cannot serve; ids out of range are found where they are rewritten.

    Args:
        slots: what will run.
        num_experts: E.
        hidden: [T, H], in the dtype of the slots; under autocast in any of float32, bfloat16, float16.
        topk_ids: [T, K], int64, int32, int16, int8 or uint8; K <= E.
        topk_weights: [T, K], any float.

    Raises:
        JanusError: ``layer.shape`` (also for what is no tensor), ``layer.tensor`` (no plain dense tensor),
            ``layer.dtype``, ``layer.device``, ``layer.scales``.
    """
    call = (hidden, topk_ids, topk_weights)
    for value in call:
        if type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_nested:
            _check_kind(call)
    shape = topk_ids.shape
    if len(shape) != 2 or shape != topk_weights.shape or hidden.shape != (shape[0], slots.layout.hidden_size):
        raise _wrong_shape(slots, call)
    if shape[1] > num_experts:
        rule = f"a token chooses among {num_experts} experts"
        raise JanusError("layer.shape", f"{rule}, got K = {shape[1]} choices each; was the router made for this model?")
    down, where = slots.down_proj, hidden.device
    if where != topk_ids.device or where != topk_weights.device or where != down.device or where.type == "meta":
        raise _wrong_device(slots, call)
    _check_dtypes(slots, down.dtype, *call)


def _check_kind(call: tuple[Any, ...]) -> None:
    if not all(isinstance(value, torch.Tensor) for value in call):
        got = ", ".join(type(value).__name__ for value in call)
        raise JanusError("layer.shape", f"forward takes tensors hidden, topk_ids, topk_weights; got {got}")
    for name, value in zip(NAMES, call, strict=True):
        kind = type(value).__name__
        if type(value) not in (torch.Tensor, nn.Parameter):
            got, remedy = f"the subclass {kind}", "give its local data, e.g. .to_local() or .as_subclass(torch.Tensor)"
        elif value.is_nested or value.layout is not torch.strided:
            got, remedy = f"one of layout {'nested' if value.is_nested else value.layout}", "make it dense"
        else:
            continue
        raise JanusError("layer.tensor", f"{name} must be a plain dense torch.Tensor, got {got}; {remedy}")


def _wrong_shape(slots: ExpertSlots, call: tuple[Any, ...]) -> JanusError:
    rule = f"forward takes hidden [T, H = {slots.layout.hidden_size}], topk_ids [T, K], topk_weights [T, K]"
    remedy = "reshape to one row per token"
    return JanusError("layer.shape", f"{rule}; got {', '.join(str(tuple(t.shape)) for t in call)}; {remedy}")


def _check_dtypes(
    slots: ExpertSlots, stored: torch.dtype, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> None:
    dtype = slots.dtype
    if hidden.dtype is not dtype and not _is_cast(slots, hidden):
        rule = f"hidden must have the dtype of the expert weights, {dtype}, got {hidden.dtype}"
        raise JanusError("layer.dtype", f"{rule}; cast one of them, or call under torch.autocast")
    if ids.dtype not in ID_DTYPES:
        raise JanusError("layer.dtype", f"topk_ids must be integers, got {ids.dtype}; cast to int32 or int64")
    if not weights.dtype.is_floating_point:
        raise JanusError("layer.dtype", f"topk_weights must be floats, got {weights.dtype}; cast to {dtype} or float32")
    if stored not in STORED_ALONE and "down_proj_scale" not in slots._parameters:
        rule = f"weights stored as {stored} need their scales, and there is no down_proj_scale"
        raise JanusError("layer.scales", f"{rule}; make the slots with quantize=..., which keeps both")


def _is_cast(slots: ExpertSlots, hidden: torch.Tensor) -> bool:
    """Whether autocast makes one dtype of the hidden states and the weights."""
    if not torch.is_autocast_enabled(hidden.device.type):
        return False
    return hidden.dtype in CAST_BY_AUTOCAST and slots.dtype in CAST_BY_AUTOCAST


def _wrong_device(slots: ExpertSlots, call: tuple[Any, ...]) -> JanusError:
    where = ", ".join(f"{name} on {value.device}" for name, value in zip(NAMES, call, strict=True))
    if slots.device.type == "meta" and all(value.is_meta for value in call):
        remedy = "load the weights, or move the model with to_empty"
        return JanusError("layer.device", f"experts on device meta have no weights to run, got {where}; {remedy}")
    rule = f"all tensors of a call must be on the device of the experts, {slots.device}"
    return JanusError("layer.device", f"{rule}; got {where}; move them with .to(...)")
