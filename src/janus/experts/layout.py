"""How a family lays out an expert, and what one expert computes: plain torch, any family with the common layout."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from janus.errors import JanusError
from janus.experts.seam import count_experts

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ExpertLayout:
    """How one family lays out and runs an expert: shapes without the expert dimension, flags, activation.

    Attributes:
        shapes: parameter name -> shape of one expert's part, e.g. ``{"gate_up_proj": (2F, H), "down_proj": (H, F)}``.
        up: name of the first projection: ``"gate_up_proj"``, or ``"up_proj"`` where there is no gate.
        has_gate: the first projection holds gate and up.
        has_bias: biases beside both projections.
        is_transposed: matrices are [in, out] instead of [out, in].
        template: the family's experts module without its weights; gives the activation.
    """

    shapes: dict[str, tuple[int, ...]]
    up: str
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    template: nn.Module

    @classmethod
    def of(cls, experts: nn.Module) -> ExpertLayout:
        """Read the layout from an experts module (weights may be on the meta device).

        Raises:
            JanusError: ``model.experts`` if the parameters are not those of a common layout.
        """
        count_experts(experts)
        has_gate, has_bias = getattr(experts, "has_gate", True), getattr(experts, "has_bias", False)
        up = "gate_up_proj" if has_gate else "up_proj"
        shapes = {name: tuple(p.shape[1:]) for name, p in experts.named_parameters()}
        wanted = {up, "down_proj"} | ({f"{up}_bias", "down_proj_bias"} if has_bias else set())
        if set(shapes) != wanted or getattr(experts, "has_post_expert_norm", False):
            raise JanusError(
                "model.experts",
                f"{type(experts).__name__} holds {sorted(shapes)} where {sorted(wanted)} and no norm were expected; this "
                "expert layout is not supported",
            )
        return cls(shapes, up, has_gate, has_bias, getattr(experts, "is_transposed", False), _without_weights(experts))

    @property
    def width(self) -> int:
        """F: what stands between the projections."""
        return self.shapes["down_proj"][0 if self.is_transposed else 1]

    @property
    def hidden_size(self) -> int:
        """H: what an expert takes and gives."""
        return self.shapes[self.up][0 if self.is_transposed else 1]

    def run(self, weights: Weights, x_NH: torch.Tensor) -> torch.Tensor:
        """One expert on its tokens: [N, H] -> [N, H], before the routing weight."""
        hidden = self._linear(weights, self.up, x_NH)
        return self._linear(weights, "down_proj", self.activate(hidden))

    def _linear(self, weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = weights[name], weights.get(f"{name}_bias")
        if not self.is_transposed:
            return F.linear(x, weight, bias)
        return x @ weight if bias is None else x @ weight + bias

    def activate(self, hidden: torch.Tensor) -> torch.Tensor:
        """What stands between the projections: [N, 2F] (or [N, F] without a gate) -> [N, F], biases already added."""
        template: Any = self.template
        if not self.has_gate:
            return template.act_fn(hidden)
        if hasattr(template, "_apply_gate"):  # transformers' own hook: clamped and capped activations live there
            return template._apply_gate(hidden)
        gate, up = hidden.chunk(2, dim=-1)
        return template.act_fn(gate) * up

    def reference(self, weights: Weights, x_NH: torch.Tensor) -> torch.Tensor:
        """The family's own forward on one expert with routing weight 1: what `run` must reproduce."""
        module = copy.copy(self.template)
        module._parameters = {name: nn.Parameter(w[None], requires_grad=False) for name, w in weights.items()}
        module.num_experts = 1  # pyright: ignore[reportArgumentType]  # an attribute of every experts module
        module.config = copy.copy(getattr(module, "config", None))  # pyright: ignore[reportArgumentType]
        if module.config is not None:
            module.config._experts_implementation = "eager"  # pyright: ignore[reportAttributeAccessIssue]
        ids = torch.zeros(len(x_NH), 1, dtype=torch.long, device=x_NH.device)
        return module(x_NH, ids, x_NH.new_ones(len(x_NH), 1))


def _without_weights(experts: nn.Module) -> nn.Module:
    template = copy.copy(experts)
    template._parameters = {}
    return template
