"""The weights of physical slots, and what they compute: plain torch, any family with the common layout."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
    def hidden_size(self) -> int:
        """H: what an expert takes and gives."""
        return self.shapes[self.up][0 if self.is_transposed else 1]

    def run(self, weights: Weights, x_NH: torch.Tensor) -> torch.Tensor:
        """One expert on its tokens: [N, H] -> [N, H], before the routing weight."""
        hidden = self._linear(weights, self.up, x_NH)
        return self._linear(weights, "down_proj", self._activate(hidden))

    def _linear(self, weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = weights[name], weights.get(f"{name}_bias")
        if not self.is_transposed:
            return F.linear(x, weight, bias)
        return x @ weight if bias is None else x @ weight + bias

    def _activate(self, hidden: torch.Tensor) -> torch.Tensor:
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


class ExpertSlots(nn.Module):
    """S physical slots of one MoE layer on this process, and the weighted sum of what they compute.

    Args:
        layout: of the family.
        experts: logical expert of each slot; -1 leaves it empty.
        dtype: of the weights.
        device: of the weights.

    Slots run in the order of their logical expert, whatever the placement, and tokens within a slot in the order
    the family's own forward uses: on one instance the sums are those of the module replaced, bit for bit.
    """

    def __init__(
        self, layout: ExpertLayout, experts: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.layout = layout
        self.experts = tuple(int(e) for e in experts)
        self._rank: torch.Tensor  # goes where the weights go, and is not saved with them
        self.register_buffer("_rank", _rank_by_expert(self.experts), persistent=False)
        for name, shape in layout.shapes.items():
            empty = torch.empty((len(self.experts), *shape), dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    @classmethod
    def from_module(cls, experts: nn.Module, slots: Sequence[int]) -> ExpertSlots:
        """Slots filled from a live experts module.

        Weights are shared, not copied, where slots = 0, 1, ..., E - 1: what changes the module's in place changes these.
        """
        first = next(experts.parameters())
        shared = list(slots) == list(range(count_experts(experts)))
        made = cls(ExpertLayout.of(experts), slots, dtype=first.dtype, device="meta" if shared else first.device)
        for name, p in experts.named_parameters():
            if shared:
                made.register_parameter(name, nn.Parameter(p.detach(), requires_grad=False))
        for slot, e in enumerate(slots):
            if e >= 0 and not shared:
                made.fill(slot, slice_expert(experts, e))
        made._rank = made._rank.to(first.device)
        return made

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.get_parameter("down_proj").dtype

    def fill(self, slot: int, weights: Weights) -> None:
        """Copy one expert's weights into `slot`."""
        with torch.no_grad():
            for name in self.layout.shapes:
                self.get_parameter(name)[slot].copy_(weights[name])

    def weights(self, slot: int) -> Weights:
        """Views of one slot's weights."""
        return {name: self.get_parameter(name)[slot] for name in self.layout.shapes}

    def forward(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Run the chosen slots and sum per token.

        Args:
            x_TH: [T, H].
            slots_TK: integer [T, K], local slot of each choice; -1 where the choice is served elsewhere.
            weights_TK: [T, K] routing weights, in the dtype the router gave them.

        Returns:
            [T, H] in the dtype of `x_TH`; zero for a token none of whose choices is here.
        """
        y_TH = torch.zeros_like(x_TH)
        for slot, entries in self._runs(slots_TK):
            tokens = entries % len(x_TH)
            out = self.layout.run(self.weights(slot), x_TH[tokens])
            weighted = out * weights_TK.t().reshape(-1)[entries, None]
            y_TH.index_add_(0, tokens, weighted.to(y_TH.dtype))
        return y_TH

    def _runs(self, slots_TK: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        # Entry = k * T + t: the order in which the eager forward of transformers visits a slot's tokens.
        flat = slots_TK.t().reshape(-1).long()
        rank = torch.where(flat >= 0, self._rank[flat.clamp(min=0)], len(self.experts))
        order = torch.argsort(rank, stable=True)
        counts = torch.bincount(rank, minlength=len(self.experts) + 1)[:-1].tolist()  # host sync here
        runs, first = [], 0
        for slot, count in zip(torch.argsort(self._rank).tolist(), counts, strict=True):
            if count:
                runs.append((slot, order[first : first + count]))
            first += count
        return runs

    def verify(self, atol: float = 1e-5) -> None:
        """Compare one filled slot with the family's own forward on a few tokens.

        Raises:
            JanusError: ``model.mismatch`` naming the class and the largest difference; the layout then has a rule
                we do not know, and serving it would be silently wrong.
        """
        slot = next((s for s, e in enumerate(self.experts) if e >= 0), None)
        if slot is None:
            return
        weights = self.weights(slot)
        hidden = self.layout.hidden_size
        x = torch.linspace(-2, 2, 4 * hidden).reshape(4, hidden).to(weights["down_proj"])
        with torch.no_grad():
            ours, theirs = self.layout.run(weights, x), self.layout.reference(weights, x)
        scale = float(theirs.abs().max()) + 1e-30
        worst = float((ours - theirs).abs().max()) / scale
        # Same operations in the same order: float32 agrees to rounding; half types carry 8 bits or fewer.
        if not worst <= (atol if x.dtype == torch.float32 else 2e-2):
            raise JanusError(
                "model.mismatch",
                f"{type(self.layout.template).__name__} computes something else than its layout says: relative difference "
                f"{worst:.1e} on a test batch; this family is not supported",
            )


def slice_expert(experts: nn.Module, e: int) -> Weights:
    """Views of expert `e`'s part of every parameter of a live experts module."""
    return {name: p.detach()[e] for name, p in experts.named_parameters()}


def _without_weights(experts: nn.Module) -> nn.Module:
    template = copy.copy(experts)
    template._parameters = {}
    return template


def _rank_by_expert(experts: tuple[int, ...]) -> torch.Tensor:
    order = sorted(range(len(experts)), key=lambda slot: (experts[slot], slot))
    rank = torch.empty(len(experts), dtype=torch.long)
    rank[torch.tensor(order, dtype=torch.long)] = torch.arange(len(experts))
    return rank
