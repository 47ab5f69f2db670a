"""Calibrate a latency model on a few whole steps: "I measured the TPOT of three configurations; plan with that".

A whole step says nothing about its parts, and a few of them can set only a few numbers. Three are fitted, none below
zero, each with its reason (docs/scale_paper.md):

    TPOT = scale * (what the latency model counts) + layers * request_us * b + MoE layers * row_us * B

`scale`: kernels, launches, messages and reads are all slower than assumed by one factor. `request_us`: what an
attention instance does for each of its b = ceil(B / n_a) requests beyond the reads that are counted. `row_us`: what
every expert instance does for every row, since each of them receives the whole batch of B rows and routes it itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from janus.errors import JanusError
from janus.scale.hardware import positive, whole
from janus.scale.timing.latency import Activation, LatencyModel
from janus.scale.timing.ridge import ridge
from janus.scale.timing.scaled import ScaledLatencyModel, StepTerms
from janus.types.checks import instance, shown


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
        >>> from janus.scale.timing.latency import Activated
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
    return ScaledLatencyModel(latency, StepTerms(*(float(term) for term in terms)), [p.name for p in points])


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


def step_points(measurements: Any, activation: Activation | None) -> tuple[Sequence[StepPoint], Activation] | None:
    """What `fitted_to` takes, if `measurements` are whole steps; None if they are something else.

    Raises:
        JanusError: ``points.activation`` for steps without an activation, or an activation without steps.
    """
    given = (measurements,) if isinstance(measurements, StepPoint) else measurements
    whole_steps = isinstance(given, (list, tuple)) and any(isinstance(point, StepPoint) for point in given)
    if whole_steps != (activation is not None):
        rule = (
            "activation= (an ActivationTable with the points' pools) goes with a list of StepPoints, and they with it"
        )
        raise JanusError("points.activation", f"{rule}; got {shown(measurements)} and {shown(activation)}")
    return (given, activation) if whole_steps and activation is not None else None


def _features(latency: LatencyModel, p: StepPoint, activation: Activation) -> tuple[float, float, float]:
    """Milliseconds of the step, and of one microsecond per request and layer, and per row and MoE layer."""
    m, b = latency.model, -(-p.B // p.n_a)
    return latency.tpot(p.n_a, p.n_e, p.B, p.s_ctx, activation).tpot, m.layers * b / 1e3, m.moe_layers * p.B / 1e3


def _checked(points: Any) -> tuple[StepPoint, ...]:
    given = tuple(points) if isinstance(points, (list, tuple)) else (points,)
    for point in given:
        remedy = "give StepPoint(n_a, n_e, B, s_ctx, tpot_ms)"
        instance(point, StepPoint, "every point must be a janus.scale.StepPoint", "points.kind", remedy)
    if not given:
        raise JanusError("points.empty", f"a fit needs at least one measured step, got {shown(points)}")
    return given
