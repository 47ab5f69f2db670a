"""The same weights a checkpoint would give, taken from a model that is already in memory."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import nn

from janus.experts.layout import Weights
from janus.experts.seam import MoEBlock, find_blocks
from janus.experts.slots import slice_expert


class ExpertSource(Protocol):
    """Where a role takes its weights from: a `Checkpoint` folder or a `LiveModel`."""

    blocks: tuple[MoEBlock, ...]
    dtype: torch.dtype
    config: Any

    def expert(self, block: MoEBlock, e: int) -> Weights:
        """Weights of one expert, without the expert dimension."""
        ...

    def stored_expert(self, block: MoEBlock, e: int, *, scales: bool = True) -> Weights:
        """As `expert`, in the form it is kept in: of weights in FP8 the bytes and scales, unless without `scales`."""
        ...

    def router(self, block: MoEBlock) -> nn.Module:
        """A router of its own for the caller, with weights."""
        ...

    def load_attention_side(self) -> nn.Module:
        """The model; its routed experts may be empty."""
        ...

    def check_experts(self) -> None:
        """Refuse a source in which a part of some expert is missing."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class LiveModel:
    """A model in memory as a source; the model is the caller's and is changed only on the attention side.

    Args:
        model: a Hugging Face causal model, identical on every rank.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks = find_blocks(model)
        self.dtype = next(self.blocks[0].experts.parameters()).dtype
        self.config: Any = model.config

    def expert(self, block: MoEBlock, e: int) -> Weights:
        """Views of one expert's weights."""
        return slice_expert(block.experts, e)

    def stored_expert(self, block: MoEBlock, e: int, *, scales: bool = True) -> Weights:
        """The same: a module in memory holds its weights as it computes with them."""
        return self.expert(block, e)

    def router(self, block: MoEBlock) -> nn.Module:
        """A copy of the block's router."""
        module = block.block.get_submodule(block.need_router().attr)
        return copy.deepcopy(module).eval().requires_grad_(False)

    def load_attention_side(self) -> nn.Module:
        """The model itself."""
        return self.model.eval()

    def check_experts(self) -> None:
        """A live model is whole."""

    def close(self) -> None:
        """Nothing is held open."""
