"""Batches of routed tokens, drawn from a routing trace or from per-layer expert counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.scale.activation.store import digest
from janus.scale.hardware import whole
from janus.scale.model import ModelSpec
from janus.types import RoutingTrace

FloatArray = npt.NDArray[np.float64]
_ORDERS = 32  # random expert orders per batch drawn from counts; more would only cost time


@dataclass(frozen=True)
class Routing:
    """Where batches come from: real tokens where a trace is given, else popularity alone.

    Args:
        counts: numbers [L', E], how often each expert was chosen; L' layers of the source.
        top_k: K.
        trace: the tokens themselves, or None when only counts are known.
        source: what to print, e.g. ``"synthetic routing (like gpt-oss-20b)"``.
    """

    counts: npt.NDArray[Any]
    top_k: int
    trace: RoutingTrace | None
    source: str
    synthetic: bool

    @classmethod
    def of(cls, trace: RoutingTrace | npt.ArrayLike, top_k: int | None = None) -> Routing:
        """From a `RoutingTrace`, or from counts [L, E] or [E] and `top_k`; rows of zeros (dense layers) are dropped.

        Raises:
            JanusError: ``routing.counts``, ``routing.top_k``, ``routing.shape``.
        """
        if isinstance(trace, RoutingTrace):
            if not trace.num_tokens:
                raise JanusError("routing.shape", "cannot draw batches from a trace of 0 tokens")
            says = trace.source or "a routing trace without a source"
            if trace.synthetic and not says.startswith("synthetic routing"):
                says = f"synthetic routing: {says}"
            return cls(trace.counts(), trace.top_k, trace, says, trace.synthetic)
        counts = _checked_counts(trace)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= counts.shape[1]:
            rule = f"counts carry no top_k: give it, a whole number in 1..{counts.shape[1]}"
            raise JanusError("routing.top_k", f"{rule}; got {top_k!r}")
        return cls(counts, top_k, None, "popularity counts, experts of a token otherwise independent", False)

    @classmethod
    def uniform(cls, experts: int, top_k: int, layers: int = 1) -> Routing:
        """Every expert equally likely: how no model routes, and nothing uses it unless asked; it says so in every output.

        Raises:
            JanusError: ``routing.counts``, ``routing.top_k``.

        Example:
            >>> Routing.uniform(8, 2).source
            'uniform routing (asked for), synthetic routing'
        """
        whole(experts, "experts", "routing.counts")
        whole(layers, "layers", "routing.counts")
        given = cls.of(np.ones((layers, experts), dtype=np.int64), top_k)
        return cls(given.counts, top_k, None, "uniform routing (asked for), synthetic routing", True)

    @cached_property
    def digest(self) -> str:
        """Of all that batches depend on."""
        ids = None if self.trace is None else self.trace.ids
        return digest(np.asarray(self.counts), self.top_k, ids)

    def check(self, model: ModelSpec) -> None:
        """Refuse routing of another shape than the model's; synthetic routing may have any number of layers."""
        layers, experts = self.counts.shape
        if (experts, self.top_k) != (model.experts, model.top_k):
            remedy = (
                f"derive one with RoutingTrace.synthetic(like=trace, num_experts={model.experts}, top_k={model.top_k})"
            )
            seen = f"the trace has {experts} experts and top-{self.top_k}"
            want = f"{model.name} has {model.experts} and top-{model.top_k}"
            raise JanusError("routing.model", f"the trace must match the model; {seen}, {want}; {remedy}")
        if layers not in (1, model.moe_layers) and not self.synthetic:
            rule = f"{model.name} has {model.moe_layers} MoE layers; give as many rows, or one for all"
            raise JanusError("routing.model", f"{rule}; got {layers}")

    def spread(self, most: int) -> list[int]:
        """At most `most` layers of the source, evenly spaced, first and last included."""
        layers = len(self.counts)
        return sorted({int(i) for i in np.linspace(0, layers - 1, min(most, layers)).round()})

    def only(self, layers: list[int]) -> RoutingTrace | npt.NDArray[Any]:
        """The trace (or the counts) of some layers: what a placement is made from."""
        if self.trace is None:
            return self.counts[layers]
        ids = self.trace.ids[:, layers]
        return RoutingTrace(ids, self.trace.num_experts, source=self.trace.source, synthetic=self.synthetic)

    def draw(self, layers: list[int], B: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
        """int16 [B, len(layers), K]: one batch; the same tokens in every layer where a trace is given."""
        if self.trace is not None:
            return self.trace.sample(B, rng)[:, layers]
        return np.stack([draw(inclusion(self.counts[i], self.top_k), self.top_k, B, rng) for i in layers], axis=1)


def inclusion(counts: npt.ArrayLike, top_k: int) -> FloatArray:
    """float64 [E]: probability that a token chooses each expert: proportional to counts, at most 1, sum K.

    Example:
        >>> inclusion([8, 1, 1], 2).tolist()  # 2 * 0.8 > 1: the first is always chosen, the others share the rest
        [1.0, 0.5, 0.5]
    """
    weight = np.asarray(counts, dtype=np.float64)
    if (weight > 0).sum() < top_k:  # fewer experts seen than a token chooses: the others share what is left
        weight = weight + max(weight.sum(), 1.0) * 1e-9
    sure = np.zeros(len(weight), dtype=bool)
    while True:
        free = weight * ~sure
        p = np.where(sure, 1.0, free * (top_k - sure.sum()) / max(free.sum(), 1e-300))
        over = p > 1.0
        if not over.any():
            return p
        sure |= over


def draw(p: FloatArray, top_k: int, B: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """int16 [B, K] distinct experts per token with inclusion probabilities `p`, by systematic sampling.

    One uniform number u per token picks the experts under u, u+1, ... of the running sum of p, in a random order of
    the experts: marginals are exact, and no token draws an expert twice because p <= 1.
    """
    out = np.empty((B, top_k), dtype=np.int16)
    group = rng.integers(0, _ORDERS, size=B)
    for g in np.unique(group):
        order = rng.permutation(len(p))
        sums = np.cumsum(p[order])
        sums[-1] = top_k  # rounding must not leave the last pick without an expert
        rows = np.flatnonzero(group == g)
        points = rng.random(len(rows))[:, None] + np.arange(top_k)
        out[rows] = order[np.minimum(np.searchsorted(sums, points, side="right"), len(p) - 1)]
    return out


def _checked_counts(counts: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        raw = np.asarray(counts)
    except ValueError as error:
        raise JanusError("routing.counts", f"counts must be [L, E] or [E], rows of one length: {error}") from error
    raw = raw[None] if raw.ndim == 1 else raw
    if raw.ndim != 2 or raw.dtype.kind not in "iuf" or not np.isfinite(raw).all() or (raw < 0).any():
        raise JanusError("routing.counts", f"counts must be numbers >= 0, [L, E] or [E]; got {raw.dtype} {raw.shape}")
    rows = raw[raw.sum(axis=1) > 0]
    if not len(rows):
        raise JanusError("routing.counts", "counts are all zero; give how often each expert was chosen")
    return rows
