"""What a placement is made from: how often each expert of a layer is chosen, alone and with others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.sched.replicas import check_counts
from janus.types.routing import RoutingTrace

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Popularity:
    """The experts of one layer, from a trace or from counts.

    Attributes:
        counts: float64 [E], tokens of each expert.
        top_k: K.
        trace: the trace and its layer, or None when only counts are known; then experts count as independent.
    """

    counts: Floats
    top_k: int
    trace: tuple[RoutingTrace, int] | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.counts)

    def chosen(self) -> Floats:
        """float64 [E]: probability that one token chooses the expert; they sum to K unless one reaches 1."""
        total = self.counts.sum()
        share = self.counts / total if total else np.full(self.num_experts, 1 / self.num_experts)
        return np.minimum(1.0, self.top_k * share)

    def activation(self, B: int) -> Floats:
        """float64 [E]: probability that a batch of B independent tokens activates the expert."""
        return 1.0 - (1.0 - self.chosen()) ** B

    def coactivation(self) -> Floats:
        """float64 [E, E], zero diagonal: tokens that chose both; from counts c: c c' / sum(c), up to a factor."""
        if self.trace is not None:
            trace, layer = self.trace
            return trace.coactivation(layer).astype(np.float64)
        pairs = np.outer(self.counts, self.counts) / max(self.counts.sum(), 1.0)
        np.fill_diagonal(pairs, 0.0)
        return pairs

    def batches(self, B: int, how_many: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
        """int32 [how_many, B, K]: tokens of the trace with replacement, or K experts each, drawn by popularity."""
        if self.trace is not None:
            trace, layer = self.trace
            rows = rng.integers(0, trace.num_tokens, size=(how_many, B))
            return trace.ids[rows, layer].astype(np.int32)
        # the K largest of log(share) + Gumbel noise: a draw without replacement by popularity
        with np.errstate(divide="ignore"):
            keys = np.log(self.chosen()) + rng.gumbel(size=(how_many, B, self.num_experts))
        return np.argpartition(-keys, self.top_k - 1, axis=-1)[..., : self.top_k].astype(np.int32)


def popularity(trace_or_counts: RoutingTrace | npt.ArrayLike, top_k: int) -> tuple[list[Popularity], bool]:
    """One `Popularity` per layer, and whether a single map is to serve every layer (1-D counts)."""
    if isinstance(trace_or_counts, RoutingTrace):
        trace = trace_or_counts
        if not trace.num_tokens:
            raise JanusError("sched.counts", "a placement needs routing to look at, got a trace of 0 tokens")
        counts = trace.counts().astype(np.float64)
        return [Popularity(row, trace.top_k, (trace, layer)) for layer, row in enumerate(counts)], False
    # 1-D counts make one map that serves every layer
    counts = check_counts(trace_or_counts)
    return [Popularity(row, top_k) for row in np.atleast_2d(counts)], counts.ndim == 1
