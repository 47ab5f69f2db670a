"""Every option of a simulation, checked, and what follows from it: tables of step times, limits, the load by window."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy.typing as npt

from janus.errors import JanusError, known
from janus.scale.activation.batches import Routing
from janus.scale.activation.table import ActivationTable
from janus.scale.days.sizing import Sizer
from janus.scale.days.stage import Stage, colocated_table
from janus.scale.days.steptimes import FloatArray, StepTimes
from janus.scale.days.workload import Workload
from janus.scale.hardware import Cluster, positive, whole
from janus.scale.model import ModelSpec
from janus.scale.search.problems import batch_sizes, pool_sizes, routing_of, slots_of
from janus.scale.search.solve import Problem
from janus.scale.timing.latency import LatencyModel
from janus.types import RequestTrace, RoutingTrace, Slo
from janus.types.checks import instance

if TYPE_CHECKING:
    Forecast = str | Callable[[FloatArray], float]

COMMON_BATCH = (
    2048  # measured even where the demand is small: beyond its largest batch a table says that all slots are read
)
MOST_WINDOWS = 100_000  # three years of quarters of an hour
FORECASTS = ("last", "recent", "oracle")


class SimulateOptions(TypedDict, total=False):
    """Options of `simulate` with a default for each.

    Args:
        window_s: seconds between decisions, 900.
        headroom: factor on the observed demand that built-in policies plan for, >= 1; 1.2.
        start_s: seconds from a decision until a new instance can load its weights, 120. An assumption.
        max_attention: largest attention pool of a built-in policy, 64.
        max_experts: largest expert pool, 64.
        copies: most deployments of these sizes side by side that a built-in policy may run, 4.
        max_batch: most requests in flight of one deployment, 16384.
        slots: C, expert slots per instance; default as many as memory holds.
        tiers: GPUs of whole-model deployments that "monolithic" chooses from, (16, 32, 64); more are copies of the last.
        per_gpu_efficiency: by policy name, share of a GPU's work its deployment gets done, 1; an assumption about a
            baseline's engine.
        forecast: demand of the coming window: ``"last"`` (that of the last one), ``"recent"`` (the largest of the
            last four), ``"oracle"`` (the true one, which no deployed policy knows), or a function of the float64 [w] past demands.
        latency: default `LatencyModel.roofline(model, cluster)`.
        balance: method of `janus.sched.balance` to assume, ``"exact"``.
        placing: method of `janus.sched.place` to assume, ``"janus"``.
        layers: of the routing, measured for the activation table; 4.
        seed: of the Monte Carlo draws, 0.
        threads: policies simulated side by side; default the machine's cores.
        progress: called with (done, total, what) after every policy.
    """

    window_s: float
    headroom: float
    start_s: float
    max_attention: int
    max_experts: int
    copies: int
    max_batch: int
    slots: int | None
    tiers: Sequence[int]
    per_gpu_efficiency: Mapping[str, float] | None
    forecast: Forecast
    latency: LatencyModel | None
    balance: str
    placing: str
    layers: int
    seed: int
    threads: int
    progress: Callable[[int, int, str], None] | None


def staged(
    requests: RequestTrace,
    policies: Sequence[Any],
    model: ModelSpec | str,
    cluster: Cluster,
    slo: Slo | float,
    trace: RoutingTrace | npt.ArrayLike,
    options: SimulateOptions,
) -> Stage:
    """Resolve every default and measure the activation tables."""
    remedy = "make one with Cluster('h100-sxm')"
    instance(cluster, Cluster, "cluster must be a janus.scale.Cluster", "scale.cluster", remedy)
    model = model if isinstance(model, ModelSpec) else ModelSpec.from_config(model)
    slo = slo if isinstance(slo, Slo) else Slo(slo)
    routing = routing_of(model, trace)
    code = "simulate.range"
    window_s = float(positive(options.get("window_s", 900.0), "window_s (seconds)", code))
    headroom = positive(options.get("headroom", 1.2), "headroom", code)
    if headroom < 1:
        raise JanusError(code, f"headroom multiplies the demand and must be >= 1, got {headroom}")
    start_s = options.get("start_s", 120.0)
    if start_s != 0:
        positive(start_s, "start_s (seconds, or 0)", code)
    whole(options.get("threads", 1), "threads", code)
    tiers = _tiers(options.get("tiers", (16, 32, 64)), model)
    if requests.duration_s / window_s > MOST_WINDOWS:
        rule = f"at most {MOST_WINDOWS} windows are simulated"
        seen = f"{requests.duration_s:g} s in windows of {window_s:g} s"
        raise JanusError(code, f"{rule}; got {seen}; take longer windows or a part of the trace (RequestTrace.window)")
    load = Workload.of(requests, window_s)
    problem = _problem(model, cluster, routing, slo, load, options)
    table = colocated_table(problem.table, tiers, model.experts, any(_whole(p) for p in policies))
    times = StepTimes(problem, table)
    copies = whole(options.get("copies", 4), "copies", code)
    if short := problem.lacking(1, times.least):
        raise JanusError("scale.cluster", f"one attention instance and the experts must find room; {short}")
    sizer = Sizer(times, problem.max_attention, problem.max_experts, copies, cluster.gpus)
    forecast = options.get("forecast", "last")
    if not callable(forecast):
        known(forecast, FORECASTS, "forecast (or a function of past demands)", "simulate.forecast")
    return Stage(requests, load, times, sizer, slo, headroom, start_s, tiers, forecast, routing.source)


def _whole(policy: Any) -> bool:
    return policy == "monolithic" or bool(getattr(policy, "colocated", False))


def _problem(
    model: ModelSpec, cluster: Cluster, routing: Routing, slo: Slo, load: Workload, options: SimulateOptions
) -> Problem:
    """The planner's problem without a demand: latency, activation of the expert pool, limits."""
    code = "simulate.range"
    limits = {name: options.get(name, default) for name, default in (("max_attention", 64), ("max_experts", 64))}
    for name, value in limits.items():
        whole(value, name, code)
    max_batch = whole(options.get("max_batch", 16384), "max_batch", code)
    latency = _latency(options.get("latency"), model, cluster)
    slots = slots_of(model, cluster, options.get("slots"), max_batch)
    least = math.ceil(model.experts / slots)
    if least > limits["max_experts"]:
        rule = f"max_experts must hold all {model.experts} experts at {slots} slots per instance, {least} instances"
        raise JanusError(code, f"{rule}; got {limits['max_experts']}; raise it")
    peak = float(load.demand.max()) * options.get("headroom", 1.2) * slo.tpot_ms / 1e3
    table = ActivationTable.build(
        routing,
        [(n, slots) for n in pool_sizes(least, limits["max_experts"])],
        batch_sizes(max(2 * peak, COMMON_BATCH), max_batch),
        method=options.get("balance", "exact"),
        placing=options.get("placing", "janus"),
        layers=options.get("layers", 4),
        seed=options.get("seed", 0),
    )
    return Problem(
        latency=latency,
        table=table,
        slots=slots,
        demand=None,
        batch=1,
        slo_ms=slo.tpot_ms,
        context=float(load.context.mean()),
        max_attention=limits["max_attention"],
        max_experts=limits["max_experts"],
        max_batch=max_batch,
        prefill=None,
    )


def _latency(given: LatencyModel | None, model: ModelSpec, cluster: Cluster) -> LatencyModel:
    """The one given, if it times this model on these GPUs; prices and numbers are the cluster's."""
    if given is None:
        return LatencyModel.roofline(model, cluster)
    remedy = "make one with LatencyModel.roofline(model, cluster), or leave it out"
    instance(given, LatencyModel, "latency must be a janus.scale.LatencyModel", "simulate.latency", remedy)
    if given.model != model or not all(c.alike(cluster) for c in (given.cluster, given.expert_cluster)):
        rule = f"latency must be of {model.name} on {cluster.gpu.name} in both pools, which is what is simulated"
        said = f"it is of {given.model.name} on {given.cluster.gpu.name} and {given.expert_cluster.gpu.name}"
        raise JanusError("simulate.latency", f"{rule}; {said}, or their fields differ; {remedy}")
    return given.owned(cluster, cluster)


def _tiers(tiers: Sequence[int], model: ModelSpec) -> tuple[int, ...]:
    rule = f"tiers must be ascending whole numbers in 1..{model.experts} (GPUs of one copy; a GPU holds an expert)"
    good = isinstance(tiers, Sequence) and len(tiers) > 0 and all(type(t) is int for t in tiers)
    if not good or list(tiers) != sorted(set(tiers)) or not 1 <= tiers[0] <= tiers[-1]:
        raise JanusError("simulate.range", f"{rule}; got {tiers!r}")
    fitting = tuple(t for t in tiers if t <= model.experts)
    if not fitting:
        raise JanusError("simulate.range", f"{rule}; got {tiers!r}")
    return fitting
