"""What a placement is made from: how often each expert of a layer is chosen, alone and with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.sched.replicas import check_counts
from janus.types.drawing import draw_tokens, inclusion
from janus.types.routing import RoutingTrace

Floats = npt.NDArray[np.float64]
# Counts are used as whole numbers below this, whose sums are exact in float64 in any order: so a map does not depend
# on how a machine adds.
WHOLE = 2.0**40
MOST_TOKENS = 1 << 14  # drawn from a trace at once


@dataclass(frozen=True, eq=False)
class Popularity:
    """The experts of one layer, from a trace or from counts.

    Attributes:
        counts: float64 [E], tokens of each expert; whole numbers.
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
        """float64 [E]: probability that one token chooses the expert; they sum to K.

        Where fewer than K experts were ever seen, each of these is chosen and the others share the rest evenly.
        """
        seen = self.counts > 0
        if seen.sum() >= self.top_k:
            return inclusion(self.counts, self.top_k)
        rest = (self.top_k - seen.sum()) / (self.num_experts - seen.sum())
        return np.where(seen, 1.0, rest)

    def activation(self, B: int) -> Floats:
        """float64 [E]: probability that a batch of B independent tokens activates the expert."""
        idle, square, power = np.ones(self.num_experts), 1.0 - self.chosen(), int(B)
        while power:  # by squaring: products are rounded the same everywhere, library powers are not
            idle, square, power = idle * square if power % 2 else idle, square * square, power // 2
        return 1.0 - idle

    def coactivation(self) -> Floats:
        """float64 [E, E], zero diagonal, up to a factor: tokens that chose both; from counts c: c c', as if independent."""
        if self.trace is not None:
            trace, layer = self.trace
            return trace.coactivation(layer).astype(np.float64)
        pairs = np.outer(self.counts, self.counts)
        np.fill_diagonal(pairs, 0.0)
        return pairs

    def batches(self, B: int, how_many: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
        """int32 [how_many, B, K]: tokens of the trace with replacement, or K experts each, drawn by popularity."""
        if self.trace is not None:
            trace, layer = self.trace
            rows = rng.integers(0, trace.num_tokens, size=(how_many, B))
            return trace.ids[rows, layer].astype(np.int32)
        ids = draw_tokens(self.chosen()[None], self.top_k, how_many * B, rng)
        return ids.reshape(how_many, B, self.top_k).astype(np.int32)

    def active_sets(self, sizes: Sequence[int], how_many: int, seed: Sequence[int]) -> npt.NDArray[np.bool_]:
        """bool [E, n], n = how_many of each size in turn: which experts a batch activates; all that a_max depends on.

        From a trace, B tokens with replacement. From counts, every expert on its own with probability `activation(B)`:
        the marginals are those of B drawn tokens, at a thousandth of the cost of drawing them.
        """
        bits = np.random.PCG64(np.random.SeedSequence(seed))  # raw bits: the same for every version of NumPy
        out = np.zeros((self.num_experts, how_many, len(sizes)), dtype=np.bool_)
        for j, B in enumerate(sizes):
            if self.trace is None:
                out[:, :, j] = draw_independent(self.activation(B), how_many, bits)
            else:
                out[:, :, j] = self._recorded(B, how_many, bits)
        return out.reshape(self.num_experts, -1)

    def _recorded(self, B: int, how_many: int, bits: np.random.PCG64) -> npt.NDArray[np.bool_]:
        assert self.trace is not None
        trace, layer = self.trace
        active = np.zeros((how_many, self.num_experts + 1), dtype=np.bool_)  # the last column collects the -1
        for first in range(0, how_many, step := max(1, MOST_TOKENS // B)):  # no array of all tokens at once
            rows = active[first : first + step]
            tokens = bits.random_raw(B * len(rows)) % np.uint64(trace.num_tokens)
            ids = trace.ids[tokens.astype(np.int64), layer].reshape(len(rows), -1)
            rows[np.arange(len(rows))[:, None], ids] = True
        return active[:, :-1].T


def draw_independent(p_E: Floats, how_many: int, bits: np.random.PCG64) -> npt.NDArray[np.bool_]:
    """bool [E, how_many]: True with probability `p_E`, in steps of 2**-31."""
    words = bits.random_raw(-(-len(p_E) * how_many // 2)).astype("<u8").view("<u4")  # two from each, on any machine
    below = np.rint(p_E * 2.0**31).astype(np.uint32)
    return (words[: len(p_E) * how_many] >> np.uint32(1)).reshape(len(p_E), how_many) < below[:, None]


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
    return [Popularity(whole(row), top_k) for row in np.atleast_2d(counts)], counts.ndim == 1


def whole(counts_E: Floats) -> Floats:
    """Counts as they are where they are whole and below `WHOLE`, else in proportion, rounded; none falls to 0.

    Example:
        >>> whole(np.array([3.0, 0.0, 5.0])).tolist()
        [3.0, 0.0, 5.0]
    """
    if (counts_E < WHOLE).all() and (counts_E == np.rint(counts_E)).all():
        return counts_E
    scaled = np.rint(counts_E / counts_E.max() * (WHOLE - 1))
    return np.maximum(scaled, (counts_E > 0).astype(np.float64))
