"""The chosen slots one after the other in plain torch: the operations of transformers' eager forward in their order.

It is the reference of the fused ways, and the one that takes gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from janus.experts.layout import Weights
    from janus.experts.slots import ExpertSlots


def why_not(_slots: ExpertSlots) -> str:
    """Plain torch runs everything."""
    return ""


def make(slots: ExpertSlots) -> EagerEngine:
    """The engine of these slots."""
    return EagerEngine(slots)


class EagerEngine:
    """Slots run in the order of their logical expert, whatever the placement, and tokens within a slot in the order the
    family's own forward uses: on one instance the sums are those of the module replaced, bit for bit.

    Args:
        slots: to run.
    """

    def __init__(self, slots: ExpertSlots) -> None:
        self.slots = slots

    def needed(self, T: int, K: int) -> int:
        """As `Engine.needed`: every entry's input, both products' results and what stands between, and the weighted one."""
        layout, size = self.slots.layout, self.slots.dtype.itemsize
        row = 3 * layout.hidden_size + (2 + 2 * layout.has_gate) * layout.width
        return T * K * (row * size + 64)

    def __call__(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """As `ExpertSlots.forward`."""
        y_TH, weights_of = torch.zeros_like(x_TH), self._weights_of()
        for slot, entries in self._runs(slots_TK):
            tokens = entries % len(x_TH)
            out = self.slots.layout.run(weights_of(slot), x_TH[tokens])
            weighted = out * weights_TK.t().reshape(-1)[entries, None]
            y_TH.index_add_(0, tokens, weighted.to(y_TH.dtype))
        return y_TH

    def _weights_of(self) -> Callable[[int], Weights]:
        if not (torch.is_grad_enabled() and any(p.requires_grad for p in self.slots.parameters())):
            return self.slots.weights
        # One slot's gradient alone would be as large as that of all slots, once per slot; those of unbind are stacked.
        parts = {name: p.unbind() for name, p in self.slots.named_parameters()}
        return lambda slot: {name: part[slot] for name, part in parts.items()}

    def _runs(self, slots_TK: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        # Entry = k * T + t: the order in which the eager forward of transformers visits a slot's tokens.
        rank_S, slots = self.slots.rank_S, self.slots.num_slots
        flat = slots_TK.t().reshape(-1).long()
        rank = torch.where(flat >= 0, rank_S[flat.clamp(min=0)], slots)
        order = torch.argsort(rank, stable=True)
        counts = torch.bincount(rank, minlength=slots + 1)[:-1].tolist()  # host sync here
        runs, first = [], 0
        for slot, count in zip(torch.argsort(rank_S).tolist(), counts, strict=True):
            if count:
                runs.append((slot, order[first : first + count]))
            first += count
        return runs
