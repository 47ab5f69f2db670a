"""Calibrate a latency model on a few whole steps: "I measured the TPOT of three configurations; plan with that".

A whole step says nothing about its parts, and a few of them can set only a few numbers. Three are fitted, none below
zero, each with its reason (docs/scale_paper.md):

    TPOT = scale * (what the latency model counts) + layers * request_us * b + MoE layers * row_us * B

`scale`: kernels, launches, messages and reads are all slower than assumed by one factor. `request_us`: what an
attention instance does for each of its b = ceil(B / n_a) requests beyond the reads that are counted. `row_us`: what
every expert instance does for every row, since each of them receives the whole batch of B rows and routes it itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.scale.exchange import ExchangeCost, Link
from janus.scale.hardware import positive, whole
from janus.scale.latency import Activated, Activation, Breakdown, LatencyModel
from janus.types.checks import instance, shown

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepPoint:
    """One measured configuration: its pools, its batch, and how long a step takes.

    Args:
        n_a: attention instances.
        n_e: expert instances.
        B: requests in flight.
        s_ctx: mean KV length, tokens.
        tpot_ms: measured mean time per output token, milliseconds.

    Raises:
        JanusError: ``points.range``.

    Example:
        >>> StepPoint.of_throughput("2A6E", B=256, s_ctx=144, tokens_per_gpu_s=240).tpot_ms  # 256 / (8 * 240) s
        133.33333333333334
    """

    n_a: int
    n_e: int
    B: int
    s_ctx: float
    tpot_ms: float

    def __post_init__(self) -> None:
        for field in ("n_a", "n_e", "B"):
            whole(getattr(self, field), f"StepPoint.{field}", "points.range")
        positive(self.s_ctx, "StepPoint.s_ctx (tokens)", "points.range")
        positive(self.tpot_ms, "StepPoint.tpot_ms", "points.range")

    @classmethod
    def of_throughput(cls, pools: str, *, B: int, s_ctx: float, tokens_per_gpu_s: float) -> StepPoint:
        """From output tokens per second and GPU, every GPU of both pools counted: TPOT = B / (GPUs x that).

        Args:
            pools: ``"2A6E"``.
            B: requests in flight.
            s_ctx: mean KV length, tokens.
            tokens_per_gpu_s: measured.

        Raises:
            JanusError: ``points.range``, ``topology.parse``.
        """
        from janus.types import Topology

        topology = Topology.parse(pools, gpus_per_node=1)
        n_a, n_e = topology.n_attention, topology.n_experts
        rate = (n_a + n_e) * positive(tokens_per_gpu_s, "tokens_per_gpu_s", "points.range")
        return cls(n_a, n_e, B, s_ctx, 1e3 * whole(B, "StepPoint.B", "points.range") / rate)

    @property
    def name(self) -> str:
        """Pools and batch, for people.

        Example:
            >>> StepPoint(2, 6, 256, 144, 133.0).name
            '2A6E at B = 256'
        """
        return f"{self.n_a}A{self.n_e}E at B = {self.B}"

    @property
    def tokens_per_gpu_s(self) -> float:
        """Output tokens per second and GPU."""
        return 1e3 * self.B / self.tpot_ms / (self.n_a + self.n_e)


@dataclass(frozen=True)
class StepTerms:
    """The three fitted numbers; as they stand, they change nothing.

    Args:
        scale: factor on every part of the step.
        request_us: microseconds per request and layer on an attention instance.
        row_us: microseconds per row of the whole batch and MoE layer on an expert instance.
    """

    scale: float = 1.0
    request_us: float = 0.0
    row_us: float = 0.0


@dataclass(frozen=True)
class Prior:
    """What is believed before a point is measured, as standard deviations; the fit is a ridge towards `StepTerms()`.

    Args:
        error: relative error of a measured or read-off step time. 0.02: half the last digit of "170".
        scale: of `StepTerms.scale` around 1.
        work_us: of `request_us` and `row_us` above 0, microseconds; 5 is one small kernel.

    Raises:
        JanusError: ``points.range``.
    """

    error: float = 0.02
    scale: float = 1.0
    work_us: float = 5.0

    def __post_init__(self) -> None:
        for name in ("error", "scale", "work_us"):
            positive(getattr(self, name), f"Prior.{name}", "points.range")


class ScaledLatencyModel(LatencyModel):
    """A latency model with `StepTerms` on top; what `fitted_to` returns, and what ``plan(latency=...)`` takes.

    `scale` and `request_us` hold for a colocated deployment too, which runs the same kernels for the same requests;
    `row_us` does not, since its rows travel only where they are needed.

    Args:
        base: the model that is scaled.
        terms: see `StepTerms`.
        points: what they were fitted to, for people; empty when they were set by hand.
    """

    def __init__(self, base: LatencyModel, terms: StepTerms, points: Sequence[StepPoint] = ()) -> None:
        super().__init__(base.model, base.cluster, base.efficiency, ScaledExchange(base.cost, terms.scale))
        self.base, self.terms, self.points = base, terms, tuple(points)

    def tpot(self, n_a: int, n_e: int, B: int, s_ctx: float, activation: Activation) -> Breakdown:
        """As `LatencyModel.tpot`, scaled; `request_us` counts as attention, `row_us` as moe."""
        step, k = self.base.tpot(n_a, n_e, B, s_ctx, activation), self.terms.scale
        request, row = _work(self.base, n_a, B)
        return Breakdown(
            attention=k * step.attention + request * self.terms.request_us,
            moe=k * step.moe + row * self.terms.row_us,
            comm=k * step.comm,
            other=k * step.other,
            overlap=k * step.overlap,
        )

    def op_us(self, bytes_: float, flops: float, dtype: str) -> float:
        """As `LatencyModel.op_us`, scaled."""
        return self.terms.scale * self.base.op_us(bytes_, flops, dtype)

    def attention_layer_us(self, b: float, s_ctx: float) -> float:
        """As `LatencyModel.attention_layer_us`, scaled, with `request_us`."""
        return self.terms.scale * self.base.attention_layer_us(b, s_ctx) + self.terms.request_us * b

    def moe_layer_us(self, active: Activated, B: float) -> float:
        """As `LatencyModel.moe_layer_us`, scaled; without `row_us`, which belongs to the split."""
        return self.terms.scale * self.base.moe_layer_us(active, B)

    def attention_side_us(self, b: int, s_ctx: float) -> tuple[float, float, float]:
        """As `LatencyModel.attention_side_us`, scaled, with `request_us`."""
        attention, shared, other = (self.terms.scale * us for us in self.base.attention_side_us(b, s_ctx))
        return attention + self.terms.request_us * b, shared, other

    def explain(self) -> str:
        """The terms and what they were fitted to, in one line.

        Example:
            >>> from janus.scale import Cluster, ModelSpec
            >>> base = LatencyModel.roofline(ModelSpec.from_config("deepseek-v2"), Cluster("h100-sxm"))
            >>> ScaledLatencyModel(base, StepTerms(1.8, 4.3)).explain()
            '1.80 x the latency model, 4.30 us per request and layer, 0.00 us per row and MoE layer; set by hand'
        """
        t = self.terms
        whence = f"fitted to {', '.join(p.name for p in self.points)}" if self.points else "set by hand"
        each = f"{t.request_us:.2f} us per request and layer, {t.row_us:.2f} us per row and MoE layer"
        return f"{t.scale:.2f} x the latency model, {each}; {whence}"


class ScaledExchange(ExchangeCost):
    """An exchange whose every message takes `scale` times as long."""

    def __init__(self, base: ExchangeCost, scale: float) -> None:
        super().__init__(base.model, base.gpus_per_node)
        self.base, self.scale = base, scale

    def link(self, name: str, row_bytes: int) -> Link:
        """As `ExchangeCost.link`, scaled."""
        link = self.base.link(name, row_bytes)
        return Link(self.scale * link.alpha, self.scale * link.beta)

    def layer_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """As `ExchangeCost.layer_s`, scaled."""
        return self.scale * self.base.layer_s(n_a, n_e, B, row_bytes)

    def listed_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """As `ExchangeCost.listed_s`, scaled."""
        return self.scale * self.base.listed_s(n_a, n_e, B, row_bytes)


def fitted_to(
    latency: LatencyModel, points: Sequence[StepPoint], activation: Activation, *, prior: Prior | None = None
) -> ScaledLatencyModel:
    """`latency` with `StepTerms` fitted to measured whole steps, for ``plan(latency=...)``.

    Minimises sum(((predicted / measured - 1) / error)^2) + ((scale - 1) / s)^2 + (request_us / w)^2 + (row_us / w)^2
    over terms >= 0: convex, one answer, for any number of points from one on. One point mostly sets `scale`; work per
    request shows between points of different b, work per row between points of different B.

    Args:
        latency: the model to start from; its parts keep their proportions.
        points: at least one, all of the model and cluster of `latency`.
        activation: of this model's routing; an `ActivationTable` with the pools of every point.
        prior: see `Prior`.

    Raises:
        JanusError: ``points.kind``, ``points.empty``, ``activation.range``.

    Example:
        >>> from janus.scale import Cluster, ModelSpec
        >>> class Reads:
        ...     def at(self, n_e, B):
        ...         return Activated(20.0, 100.0)
        >>> base = LatencyModel.roofline(ModelSpec.from_config("deepseek-v2"), Cluster("h100-sxm"))
        >>> once = base.tpot(1, 6, 64, 144, Reads()).tpot
        >>> fitted = fitted_to(base, [StepPoint(1, 6, 64, 144, once)], Reads())  # as predicted: nothing to change
        >>> fitted.terms.request_us, round(fitted.terms.scale, 6)
        (0.0, 1.0)
    """
    remedy = "make one with LatencyModel.roofline(model, cluster)"
    instance(latency, LatencyModel, "latency must be a janus.scale.LatencyModel", "points.kind", remedy)
    points = _checked(points)
    prior = Prior() if prior is None else instance(prior, Prior, "prior must be a Prior", "points.kind", "see Prior")
    rows = np.array([_features(latency, point, activation) for point in points])
    measured = np.array([point.tpot_ms for point in points])
    widths = np.array([prior.scale, prior.work_us, prior.work_us])
    terms = ridge(rows / measured[:, None], prior.error, np.array(astuple(StepTerms())), widths)
    return ScaledLatencyModel(latency, StepTerms(*(float(term) for term in terms)), points)


def left_out(
    latency: LatencyModel, points: Sequence[StepPoint], activation: Activation, *, prior: Prior | None = None
) -> tuple[float, ...]:
    """TPOT in ms of every point as predicted by the fit to the others: how far a fit to such points can be trusted.

    Args:
        latency, points, activation, prior: as `fitted_to`; at least two points.

    Raises:
        JanusError: as `fitted_to`.
    """
    points = _checked(points)
    return tuple(
        fitted_to(latency, points[:i] + points[i + 1 :], activation, prior=prior)
        .tpot(p.n_a, p.n_e, p.B, p.s_ctx, activation)
        .tpot
        for i, p in enumerate(points)
    )


def _work(latency: LatencyModel, n_a: int, B: int) -> tuple[float, float]:
    """Milliseconds per step of one microsecond per request and layer, and of one per row and MoE layer."""
    return latency.model.layers * -(-B // n_a) / 1e3, latency.model.moe_layers * B / 1e3


def _features(latency: LatencyModel, p: StepPoint, activation: Activation) -> tuple[float, float, float]:
    return latency.tpot(p.n_a, p.n_e, p.B, p.s_ctx, activation).tpot, *_work(latency, p.n_a, p.B)


def ridge(relative: FloatArray, error: float, center: FloatArray, widths: FloatArray) -> FloatArray:
    """The x >= 0 that minimises sum(((relative @ x - 1) / error)^2) + sum(((x - center) / widths)^2).

    Every set of numbers held at 0 is tried; of a convex sum the best allowed one is the optimum.

    Args:
        relative: float64 [points, terms], what one unit of each term adds to each point, as a share of its measurement.
        error: relative error of a measurement.
        center, widths: float64 [terms], where the terms are without any point, and how far they may be off.

    Example:
        >>> ridge(np.array([[0.5]]), 0.01, np.array([1.0]), np.array([1.0])).round(3).tolist()  # half as long: twice
        [2.0]
    """
    A = np.vstack([relative / error, np.diag(1 / widths)])
    y = np.concatenate([np.full(len(relative), 1 / error), center / widths])
    terms = len(center)
    best, least = np.zeros(terms), float(y @ y)
    for free in itertools.product((False, True), repeat=terms):
        x = np.zeros(terms)
        x[list(free)] = np.linalg.lstsq(A[:, free], y, rcond=None)[0]
        off = float(np.sum((A @ x - y) ** 2))
        if x.min() >= 0 and off < least:
            best, least = x, off
    return best


def _checked(points: Any) -> tuple[StepPoint, ...]:
    given = tuple(points) if isinstance(points, (list, tuple)) else (points,)
    for point in given:
        remedy = "give StepPoint(n_a, n_e, B, s_ctx, tpot_ms)"
        instance(point, StepPoint, "every point must be a janus.scale.StepPoint", "points.kind", remedy)
    if not given:
        raise JanusError("points.empty", f"a fit needs at least one measured step, got {shown(points)}")
    return given
