"""The weights of the physical slots of one MoE layer on this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.backends import Engine, choose, make
from janus.experts.layout import ExpertLayout, Weights
from janus.experts.sites import count_experts


class ExpertSlots(nn.Module):
    """S physical slots of one MoE layer on this process, and the weighted sum of what they compute.

    Args:
        layout: of the family.
        experts: logical expert of each slot; -1 leaves it empty.
        dtype: of the weights.
        device: of the weights.
        compute: how the chosen slots are run: ``"auto"``, ``"eager"``, ``"numba"``, ``"triton"``.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        experts: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        compute: str = "auto",
    ) -> None:
        super().__init__()
        self.layout = layout
        self.experts = tuple(int(e) for e in experts)
        self.asked, self._engines = compute, dict[str, Engine]()
        self._chosen: dict[torch.device, str] = {}
        self.down_proj: torch.Tensor  # a parameter: cheaper to reach by attribute than by get_parameter
        self.rank_S: torch.Tensor  # goes where the weights go, and is not saved with them
        self.register_buffer("rank_S", _rank_by_expert(self.experts), persistent=False)
        for name, shape in layout.shapes.items():
            empty = torch.empty((len(self.experts), *shape), dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        for name, part in layout.parts.items():  # so that it moves, and is saved, with the weights
            self.add_module(name, part)

    @classmethod
    def from_module(cls, experts: nn.Module, slots: Sequence[int], *, compute: str = "auto") -> ExpertSlots:
        """Slots filled from a live experts module.

        Weights are shared, not copied, where slots = 0, 1, ..., E - 1: what changes the module's in place changes these.
        """
        first = next(experts.parameters())
        shared = list(slots) == list(range(count_experts(experts)))
        device = "meta" if shared else first.device
        made = cls(ExpertLayout.of(experts), slots, dtype=first.dtype, device=device, compute=compute)
        for name, p in experts.named_parameters(recurse=False):
            if shared:
                made.register_parameter(name, nn.Parameter(p.detach(), requires_grad=False))
        for slot, e in enumerate(slots):
            if e >= 0 and not shared:
                made.fill(slot, slice_expert(experts, e))
        made.rank_S = made.rank_S.to(first.device)
        return made

    @property
    def num_slots(self) -> int:
        """S."""
        return len(self.experts)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.down_proj.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.down_proj.device

    def fill(self, slot: int, weights: Weights) -> None:
        """Copy one expert's weights into `slot`."""
        with torch.no_grad():
            for name in self.layout.shapes:
                self.get_parameter(name)[slot].copy_(weights[name])

    def weights(self, slot: int) -> Weights:
        """Views of one slot's weights."""
        return {name: self.get_parameter(name)[slot] for name in self.layout.shapes}

    @property
    def compute(self) -> str:
        """How the chosen slots are run where no gradient is asked for."""
        device = self.device
        if device not in self._chosen:
            self._chosen[device] = choose(self.asked, self)
        return self._chosen[device]

    def engine(self, name: str) -> Engine:
        """The way to run of that name, made once."""
        if name not in self._engines:
            self._engines[name] = make(name, self)
        return self._engines[name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engines": {}, "_chosen": {}}  # buffers and compiled code are made anew

    def forward(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Run the chosen slots and sum per token.

        Args:
            x_TH: [T, H].
            slots_TK: integer [T, K], local slot of each choice; -1 where the choice is served elsewhere.
            weights_TK: [T, K] routing weights, in the dtype the router gave them.

        Returns:
            [T, H] in the dtype of `x_TH`; zero for a token none of whose choices is here.
        """
        return self.engine(self.compute)(x_TH, slots_TK, weights_TK)

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
    return {name: p.detach()[e] for name, p in experts.named_parameters(recurse=False)}


def _rank_by_expert(experts: tuple[int, ...]) -> torch.Tensor:
    order = sorted(range(len(experts)), key=lambda slot: (experts[slot], slot))
    rank = torch.empty(len(experts), dtype=torch.long)
    rank[torch.tensor(order, dtype=torch.long)] = torch.arange(len(experts))
    return rank
