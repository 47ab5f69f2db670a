"""What a dispatch leaves behind: the value that ties a combine to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from janus.comm.travel import Trail


@dataclass(frozen=True, eq=False)
class Handle:
    """What a dispatch leaves for its combine, on either side.

    Args:
        layer: MoE layer.
        counts: rows of each attention instance, in the order of `x_all` on an expert rank.
        capacity: rows that each attention instance takes up in `x_all`, padding included; None: just its own.
        physical_ids: int64 [n, K], -1 where a choice lives elsewhere; None with gate "experts".
        weights: [n, K] as dispatched, 0 where `physical_ids` is -1; None with gate "experts".
    """

    layer: int
    counts: tuple[int, ...]
    capacity: int | None
    physical_ids: torch.Tensor | None
    weights: torch.Tensor | None
    rows: int
    trail: Trail
    posted: float

    @property
    def valid(self) -> torch.Tensor:
        """Bool [rows] on the CPU: which rows of `x_all` are tokens, the others being padding (zeros)."""
        if self.capacity is None or self.physical_ids is not None:
            return torch.ones(self.rows, dtype=torch.bool)
        return (torch.arange(self.capacity) < torch.tensor(self.counts).view(-1, 1)).view(-1)
