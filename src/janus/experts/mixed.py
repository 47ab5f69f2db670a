"""compute="mixed": slots with few tokens by `numba_backend`, at the speed of memory; busy ones by torch's own products.

Above some tokens per slot a product is no longer bound by reading its weights, and torch's library with its tiles (AMX
for bfloat16) is faster. The price: a token's bits then depend on how many tokens share its experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from janus.experts import numba_backend
from janus.experts.cpu.sorting import sort
from janus.experts.eager import EagerEngine
from janus.experts.numba_backend import NumbaEngine

if TYPE_CHECKING:
    from janus.experts.slots import ExpertSlots

LONG = 8192  # numbers of a row: many tokens' rows of that length leave the caches

why_not = numba_backend.why_not


def make(slots: ExpertSlots) -> MixedEngine:
    """The engine of these slots."""
    return MixedEngine(slots)


def most_tokens(slots: ExpertSlots) -> int:
    """Tokens per slot up to which our products are the faster ones, as measured (benchmarks/bench_experts.py)."""
    layout, has_tiles = slots.layout, torch.cpu._is_amx_tile_supported()
    if slots.format is not None:  # torch has to make another matrix first
        return 128 if has_tiles else 256
    if slots.dtype == torch.bfloat16:  # without such tiles torch is as slow as we are
        return 16 if has_tiles else 64
    if layout.is_transposed:
        return 20
    long = max(layout.hidden_size, layout.width) > LONG
    return 32 if long or slots.dtype == torch.float16 else 64


class MixedEngine(NumbaEngine):
    """`NumbaEngine` for slots of at most `most` tokens, torch for the others.

    Args:
        slots: to run.
    """

    def __init__(self, slots: ExpertSlots) -> None:
        super().__init__(slots)
        self.batch_invariant = False
        self.most = most_tokens(slots)

    def needed(self, T: int, K: int) -> int:
        """As `Engine.needed`; the busiest slot may hold every token, in torch's way."""
        ours = super().needed(T, K)
        if self.most >= T * K:
            return ours
        return ours + EagerEngine(self.slots).needed(T, K) + 4 * T * self.slots.layout.hidden_size

    def __call__(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """As `ExpertSlots.forward`."""
        if slots_TK.numel() <= self.most:
            return super().__call__(x_TH, slots_TK, weights_TK)
        runs = sort(slots_TK.contiguous().numpy(), self._order().slots)
        busy_A = np.diff(runs.starts) > self.most
        if not busy_A.any():
            return super().__call__(x_TH, slots_TK, weights_TK)
        is_busy = torch.zeros(self.slots.num_slots, dtype=torch.bool)
        is_busy[torch.from_numpy(runs.slots[busy_A])] = True
        others_TK = torch.where(is_busy[slots_TK.clamp(min=0)], -1, slots_TK)
        y_TH = self.run(x_TH, others_TK, weights_TK, torch.float32)
        factors = weights_TK.detach().contiguous().float().view(-1)
        for a in np.flatnonzero(busy_A).tolist():
            one = slice(runs.starts[a], runs.starts[a + 1])
            tokens_N, entries_N = torch.from_numpy(runs.tokens[one]), torch.from_numpy(runs.entries[one])
            out_NH = self.slots.layout.run(self.slots.weights(int(runs.slots[a])), x_TH[tokens_N])
            y_TH.index_add_(0, tokens_N, out_NH.float() * factors[entries_N, None])
        return y_TH.to(x_TH.dtype)
