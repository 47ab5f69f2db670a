"""How a family lays out an expert, and what one expert computes: plain torch, any family with the common layout."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from janus.errors import JanusError
from janus.experts.sites import count_experts, shared_parts

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
        has_norm: a norm stands behind the second projection, before the routing weight; see `norm`.
    """

    shapes: dict[str, tuple[int, ...]]
    up: str
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    template: nn.Module
    has_norm: bool = False

    @classmethod
    def of(cls, experts: nn.Module) -> ExpertLayout:
        """Read the layout from an experts module (weights may be on the meta device).

        Raises:
            JanusError: ``model.experts`` if the parameters are not those of a common layout.
        """
        count_experts(experts)
        shapes = {name: tuple(p.shape[1:]) for name, p in experts.named_parameters(recurse=False)}
        has_gate = getattr(experts, "has_gate", "up_proj" not in shapes)
        has_bias = getattr(experts, "has_bias", "down_proj_bias" in shapes)
        is_transposed = getattr(experts, "is_transposed", False)
        up = "gate_up_proj" if has_gate else "up_proj"
        biases = {f"{up}_bias", "down_proj_bias"} if has_bias else set[str]()
        has_norm = getattr(experts, "has_post_expert_norm", False)
        _check_shapes(experts, shapes, up, biases, 1 + has_gate, is_transposed)
        return cls(shapes, up, has_gate, has_bias, is_transposed, _without_weights(experts), has_norm)

    @property
    def width(self) -> int:
        """F: what stands between the projections."""
        return self.shapes["down_proj"][0 if self.is_transposed else 1]

    @property
    def hidden_size(self) -> int:
        """H: what an expert takes and gives."""
        return self.shapes[self.up][0 if self.is_transposed else 1]

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The family's own modules with weights that all experts share, by name: a norm, an activation that is trained."""
        return shared_parts(self.template)

    @property
    def norm(self) -> nn.Module | None:
        """What an expert's output passes through before its routing weight: [N, H] -> [N, H]; None where nothing does."""
        template: Any = self.template
        return template.post_expert_norm if self.has_norm else None

    def run(self, weights: Weights, x_NH: torch.Tensor) -> torch.Tensor:
        """One expert on its tokens: [N, H] -> [N, H], before the routing weight."""
        hidden = self._linear(weights, self.up, x_NH)
        out = self._linear(weights, "down_proj", self.activate(hidden))
        return out if self.norm is None else self.norm(out)

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


def _check_shapes(
    experts: nn.Module, shapes: dict[str, tuple[int, ...]], up: str, biases: set[str], halves: int, transposed: bool
) -> None:
    if set(shapes) != {up, "down_proj", *biases}:
        raise JanusError(
            "model.experts",
            f"{type(experts).__name__} holds {sorted(shapes)} where {sorted({up, 'down_proj', *biases})} were expected; "
            "this expert layout is not supported",
        )
    first, second = shapes[up], shapes["down_proj"]
    if transposed:
        first, second = first[::-1], second[::-1]
    if len(first) != 2 or first[::-1] != (second[0], halves * second[-1]):
        raise JanusError(
            "model.experts",
            f"{type(experts).__name__}: {up} {shapes[up]} and down_proj {shapes['down_proj']} of one expert do not fit "
            f"together ({'gate and up' if halves == 2 else 'no gate'}, {'[in, out]' if transposed else '[out, in]'}); this "
            "expert layout is not supported",
        )
