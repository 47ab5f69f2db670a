"""Fill slots with experts from where a user keeps them, one expert in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.checkpoint import Checkpoint
from janus.experts.layout import ExpertLayout, Weights
from janus.experts.live import ExpertSource
from janus.experts.quantized import Format
from janus.experts.seam import MoEBlock, find_blocks
from janus.experts.sites import count_experts, is_experts
from janus.experts.slots import ExpertSlots, slice_expert
from janus.types.checks import shown


class Source(Protocol):
    """Where the experts of one layer come from."""

    def check(self, experts: Iterable[int]) -> None:
        """Refuse, before a slot is overwritten, what can be seen without reading."""
        ...

    def fill(self, slots: ExpertSlots, slot: int, e: int) -> None:
        """Copy expert `e` into a slot."""
        ...


@contextmanager
def opened(source: Any, layer: int, num_experts: int, slots: ExpertSlots) -> Iterator[Source]:
    """What a user gave as a source, for one layer; files are closed at the end if they were opened here.

    Args:
        source: a model folder, an open `Checkpoint`, a live model or experts module, or a function e -> weights.
        layer: MoE layer, counted from 0, of a folder, checkpoint or model.
        num_experts: E of the layer to fill.
        slots: to fill.

    Raises:
        JanusError: ``source.type``, ``source.layer``, ``source.experts`` (another number or shape of experts), and what
            `Checkpoint` raises.
    """
    if isinstance(source, (str, Path)):
        with Checkpoint(source) as checkpoint, opened(checkpoint, layer, num_experts, slots) as found:
            yield found
    elif isinstance(source, Checkpoint):
        block = block_of(source, layer)
        _check_same(block.experts, num_experts, slots, f"{source.folder}: {block.name}")
        yield StoredExperts(source, block)
    elif isinstance(source, nn.Module):
        experts = source if is_experts(source) else block_of(source, layer).experts
        _check_same(experts, num_experts, slots, type(experts).__name__)
        yield GivenExperts(lambda e: slice_expert(experts, e))
    elif callable(source):
        yield GivenExperts(cast(Callable[[int], Weights], source))
    else:
        raise JanusError(
            "source.type",
            "source must be a model folder, an open Checkpoint, a live model or experts module, or a function "
            f"e -> weights by name; got {shown(source)}",
        )


class StoredExperts:
    """Experts of one block of a checkpoint; weights are cast to the slots' dtype while they are copied.

    Args:
        checkpoint: open.
        block: of its `blocks`.
    """

    def __init__(self, checkpoint: Checkpoint, block: MoEBlock) -> None:
        self.checkpoint, self.block = checkpoint, block

    def check(self, experts: Iterable[int]) -> None:
        """Names, shapes and dtypes in the headers of the files."""
        self.checkpoint.check_block(self.block)
        for e in sorted(set(experts)):
            self.checkpoint.check_expert(self.block, e)

    def fill(self, slots: ExpertSlots, slot: int, e: int) -> None:
        """Read that expert's bytes and copy them into a slot."""
        write(slots, slot, read_for(slots.format, self.checkpoint, self.block, e))


class GivenExperts:
    """Experts by a function e -> weights; their names, shapes and dtype must be the slots' own.

    Args:
        give: the function.
    """

    def __init__(self, give: Callable[[int], Weights]) -> None:
        self.give = give

    def check(self, experts: Iterable[int]) -> None:
        """Nothing is known before the function is called."""

    def fill(self, slots: ExpertSlots, slot: int, e: int) -> None:
        """Ask for the expert and copy it into a slot; raises ``source.weights`` if it does not fit."""
        weights = self.give(e)
        wanted = {name: (shape, slots.dtype) for name, shape in slots.layout.shapes.items()}
        got = {k: _seen(w) for k, w in weights.items()} if isinstance(weights, Mapping) else shown(weights)
        if got != wanted:
            raise JanusError("source.weights", f"expert {e} must be tensors {wanted} by name; the source gave {got}")
        write(slots, slot, weights)


class OwnExperts:
    """Experts copied within a layer that holds each of them in some slot, bit for bit in any storage.

    Args:
        slot_of: expert -> a slot that holds it and is not overwritten meanwhile.
    """

    def __init__(self, slot_of: Mapping[int, int]) -> None:
        self.slot_of = slot_of

    def check(self, experts: Iterable[int]) -> None:
        """Refuse experts this layer does not hold."""
        if absent := sorted(set(experts) - set(self.slot_of)):
            raise JanusError(
                "source.experts", f"this layer does not hold experts {absent[:8]}; give a source, e.g. the model folder"
            )

    def fill(self, slots: ExpertSlots, slot: int, e: int) -> None:
        """Copy from slot to slot."""
        with _writing(slots):
            for p in slots.parameters(recurse=False):
                p[slot].copy_(p[self.slot_of[e]])


def read_for(format: Format | None, source: ExpertSource, block: MoEBlock, e: int) -> Weights:
    """One expert as slots of a format take it: FP8 as it lies in the files only for slots in fp8.

    Elsewhere the blocks of joined matrices may be torn, which would be refused for no use.
    """
    kept = format and format.name
    if kept in (None, "fp8"):
        return source.stored_expert(block, e, scales=kept == "fp8")
    return source.expert(block, e)


def write(slots: ExpertSlots, slot: int, weights: Weights) -> None:
    """Copy one expert into a slot, through pinned memory to a GPU, so that its kernels go on meanwhile."""
    if slots.device.type == "cuda":
        weights = {name: w.pin_memory() if w.device.type == "cpu" else w for name, w in weights.items()}
    with _writing(slots):
        slots.fill(slot, weights)


@contextmanager
def _writing(slots: ExpertSlots) -> Iterator[None]:
    # Weights made under inference mode can be changed only under it.
    with torch.no_grad(), torch.inference_mode(slots.get_parameter("down_proj").is_inference()):
        yield


def block_of(source: Checkpoint | nn.Module, layer: int) -> MoEBlock:
    """The block of a MoE layer, counted from 0 (``source.layer``)."""
    blocks = source.blocks if isinstance(source, Checkpoint) else find_blocks(source)
    if type(layer) is int and 0 <= layer < len(blocks):
        return blocks[layer]
    raise JanusError(
        "source.layer", f"layer must be one of the {len(blocks)} MoE layers, counted from 0; got {layer!r}"
    )


def _check_same(experts: nn.Module, num_experts: int, slots: ExpertSlots, where: str) -> None:
    seen = (count_experts(experts), ExpertLayout.of(experts).shapes)
    if seen != (num_experts, slots.layout.shapes):
        raise JanusError(
            "source.experts",
            f"the layer has {num_experts} experts of shapes {slots.layout.shapes}; {where} has {seen[0]} of {seen[1]}",
        )


def _seen(weight: Any) -> Any:
    return (tuple(weight.shape), weight.dtype) if isinstance(weight, torch.Tensor) else shown(weight)
