"""compute="mixed": slots with few tokens by `numba_backend`, at the speed of memory; busy ones by torch's own products.

Above some tokens per slot a product is no longer bound by reading its weights, and torch's library with its tiles (AMX
for bfloat16) is faster. The price: a token's bits then depend on how many tokens share its experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from janus.experts import numba_backend
from janus.experts.cpu.sorting import Runs
from janus.experts.numba_backend import NumbaEngine

if TYPE_CHECKING:
    from janus.experts.slots import ExpertSlots

why_not = numba_backend.why_not


def make(slots: ExpertSlots) -> MixedEngine:
    """The engine of these slots."""
    return MixedEngine(slots)


def most_tokens(dtype: torch.dtype) -> int:
    """Tokens per slot up to which our products are the faster ones, as measured (benchmarks/bench_experts.py)."""
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return 16
    return 64


class MixedEngine(NumbaEngine):
    """`NumbaEngine` for slots of at most `most` tokens, torch for the others.

    Args:
        slots: to run.
    """

    def __init__(self, slots: ExpertSlots) -> None:
        super().__init__(slots)
        self.batch_invariant = False
        self.most = most_tokens(slots.dtype)

    def run(self, runs: Runs, x_TH: torch.Tensor, factors_N: npt.NDArray[np.float32], y_TH: torch.Tensor) -> None:
        """Add what the slots of `runs` compute to `y_TH` (float32)."""
        busy_A = np.diff(runs.starts) > self.most
        if not busy_A.any():
            super().run(runs, x_TH, factors_N, y_TH)
            return
        few_N = np.repeat(~busy_A, np.diff(runs.starts))
        if few_N.any():
            super().run(runs.only(~busy_A), x_TH, factors_N[few_N], y_TH)
        layout = self.slots.layout
        for a in np.flatnonzero(busy_A).tolist():
            one = slice(runs.starts[a], runs.starts[a + 1])
            tokens_N, factor_N1 = torch.from_numpy(runs.tokens[one]), torch.from_numpy(factors_N[one])[:, None]
            out_NH = layout.run(self.slots.weights(int(runs.slots[a])), x_TH[tokens_N])
            y_TH.index_add_(0, tokens_N, out_NH.float() * factor_N1)
