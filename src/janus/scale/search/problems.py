"""What `plan` was asked, every default resolved, every mistake refused before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy.typing as npt

from janus.errors import JanusError, known
from janus.scale.activation.batches import Routing
from janus.scale.activation.table import ActivationTable, Progress
from janus.scale.hardware import Cluster, positive, whole
from janus.scale.model import ModelSpec
from janus.scale.search.memory import expert_slots, gate_bytes, slot_bytes
from janus.scale.search.solve import OBJECTIVES, Problem
from janus.scale.search.solvers import SOLVERS
from janus.scale.timing.latency import LatencyModel
from janus.scale.timing.prefill import Prefill
from janus.types import RoutingTrace, Slo
from janus.types.checks import instance

METHODS = ("exhaustive", "milp")
CONTEXT_CV = 0.6  # Azure's hour of conversations has 0.58, its hour of code 0.92 (RequestTrace.context_cv)


class Options(TypedDict, total=False):
    """Options of `plan` with a default for each.

    Args:
        batch: instead of `demand`: requests in flight, fixed.
        expert_cluster: GPUs the expert pool may use, a `Cluster` or several; default those of `cluster`.
        objective: what to minimise, ``"gpus"`` or ``"usd"`` (per hour; then every GPU needs a price).
        slots: C, expert slots per instance; default as many as memory holds.
        max_batch: most requests in flight, 16384; exchange buffers are sized for it.
        context_cv: standard deviation of the KV length over its mean, 0.6 (`RequestTrace.context_cv` measures it).
        input_tokens, output_tokens: means per request; needed by ``prefill="attention"``.
        balance: method of `janus.sched.balance` to assume, ``"exact"``.
        placing: method of `janus.sched.place` to assume, ``"janus"``.
        latency: default `LatencyModel.roofline(model, cluster)`.
        seed: of the Monte Carlo draws, 0.
        progress: called with (done, total, what) while the activation table is measured.
        solver: of ``method="milp"``: ``"auto"``, ``"HiGHS"`` or ``"CBC"``.
        time_limit_s: of ``method="milp"``: then the best plan so far is returned, and says so.
        cache: keep activation tables and placements on disk and look there first: True, a folder, or False.
    """

    batch: int | None
    expert_cluster: Cluster | Sequence[Cluster] | None
    objective: str
    slots: int | None
    max_batch: int
    context_cv: float
    input_tokens: float | None
    output_tokens: float | None
    balance: str
    placing: str
    latency: LatencyModel | None
    seed: int
    progress: Progress | None
    solver: str
    time_limit_s: float | None
    cache: Any


@dataclass(frozen=True)
class Headroom:
    """How much more than the expected load to plan for: factors on the rate and on the KV lengths, >= 1 each."""

    rate: float = 1.0
    length: float = 1.0

    def __post_init__(self) -> None:
        for factor in (self.rate, self.length):
            if positive(factor, "headroom", "scale.range") < 1:
                raise JanusError("scale.range", f"headroom multiplies the load and must be >= 1, got {factor!r}")

    @classmethod
    def of(cls, value: Any) -> Headroom:
        """From one number (the rate's) or a pair (rate, length).

        Example:
            >>> Headroom.of(1.2), Headroom.of((1.2, 1.1))
            (Headroom(rate=1.2, length=1.0), Headroom(rate=1.2, length=1.1))
        """
        if isinstance(value, Headroom):
            return value
        parts = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if not 1 <= len(parts) <= 2:
            raise JanusError("scale.range", f"headroom is one factor or (rate, length), got {value!r}")
        return cls(*parts)


@dataclass(frozen=True)
class Asked:
    """The arguments of `plan` that every pair of GPU types shares."""

    model: ModelSpec
    clusters: tuple[Cluster, ...]
    expert_clusters: tuple[Cluster, ...]
    routing: Routing
    demand: float | None
    headroom: Headroom
    slo: Slo
    context: float
    max_attention: int
    max_experts: int
    prefill: str
    options: Options

    @property
    def wanted(self) -> float | None:
        """Tokens/s to plan for."""
        return None if self.demand is None else self.demand * self.headroom.rate

    @property
    def planned_context(self) -> float:
        """Mean KV length to plan for, tokens."""
        return self.context * self.headroom.length


def routing_of(model: ModelSpec, trace: RoutingTrace | npt.ArrayLike | Routing | str) -> Routing:
    """The routing of a model: a trace, counts, or ``"uniform"`` when that is asked for.

    Raises:
        JanusError: ``routing.*``.
    """
    if isinstance(trace, str):
        known(trace, ("uniform",), "trace (or a RoutingTrace, or counts)", "routing.trace")
        routing = Routing.uniform(model.experts, model.top_k)
    elif isinstance(trace, Routing):
        routing = trace
    else:
        routing = Routing.of(trace, None if isinstance(trace, RoutingTrace) else model.top_k)
    routing.check(model)
    return routing


def ask(
    model: ModelSpec | str,
    cluster: Cluster | Sequence[Cluster],
    trace: RoutingTrace | npt.ArrayLike | Routing | str,
    *,
    options: Options,
    **rest: Any,
) -> Asked:
    """The arguments of `plan`, read and checked; `rest` are the fields of `Asked`."""
    for name in options:
        known(name, Options.__annotations__, "an option of plan", "scale.option")
    model = model if isinstance(model, ModelSpec) else ModelSpec.from_config(model)
    routing = routing_of(model, trace)
    mine = clusters(cluster, "cluster")
    theirs = options.get("expert_cluster")
    theirs = mine if theirs is None else clusters(theirs, "expert_cluster")
    asked = Asked(model, mine, theirs, routing, options=options, **rest)
    check(asked)
    return asked


def problems(asked: Asked) -> tuple[Problem, ...]:
    """One problem per pair of GPU types, on one activation table."""
    latencies = _latencies(asked)
    max_batch = asked.options.get("max_batch", 16384)
    slots = {e.gpu: slots_of(asked.model, e, asked.options.get("slots"), max_batch) for e in asked.expert_clusters}
    table = _table(asked, sorted(set(slots.values())), max_batch)
    options = asked.options
    beside = prompts(asked.prefill, asked.wanted, options.get("input_tokens"), options.get("output_tokens"))
    return tuple(
        Problem(
            latency=latency,
            table=table,
            slots=slots[latency.expert_cluster.gpu],
            demand=asked.wanted,
            batch=asked.options.get("batch"),
            slo_ms=asked.slo.tpot_ms,
            context=asked.planned_context,
            max_attention=asked.max_attention,
            max_experts=asked.max_experts,
            max_batch=max_batch,
            prefill=beside,
            percentile=asked.slo.percentile,
            context_cv=asked.options.get("context_cv", CONTEXT_CV),
            objective=asked.options.get("objective", "gpus"),
        )
        for latency in latencies
    )


def _table(asked: Asked, slots: list[int], max_batch: int) -> ActivationTable:
    grid = [(n, c) for c in slots for n in pool_sizes(-(-asked.model.experts // c), asked.max_experts)]
    largest = asked.wanted * asked.slo.tpot_ms / 1e3 if asked.wanted else asked.options.get("batch") or 1
    return ActivationTable.build(
        asked.routing,
        grid,
        batch_sizes(largest, max_batch),
        method=asked.options.get("balance", "exact"),
        placing=asked.options.get("placing", "janus"),
        seed=asked.options.get("seed", 0),
        cache=asked.options.get("cache", True),
        progress=asked.options.get("progress"),
    )


def pool_sizes(least: int, most: int) -> list[int]:
    """Pool sizes to measure: every one up to least + 4, then steps of a third; both ends included.

    Example:
        >>> pool_sizes(6, 20)
        [6, 7, 8, 9, 10, 14, 19, 20]
    """
    sizes = list(range(least, min(least + 4, most) + 1))
    while sizes and sizes[-1] < most:
        sizes.append(min(most, math.ceil(sizes[-1] * 4 / 3)))
    return sizes


def batch_sizes(largest: float, cap: int) -> list[int]:
    """Batch sizes to measure: 1, 2, 3, 4, 6, 8, 12, ... up to the first that reaches `largest`, at most `cap`."""
    sizes = [1]
    for power in range(1, 32):
        if sizes[-1] >= min(largest + 1, cap):
            break
        sizes += [2**power, 3 * 2 ** (power - 1)]
    return sorted({min(s, cap) for s in sizes})


def _latencies(asked: Asked) -> list[LatencyModel]:
    """One per pair of types; the one given must time the same model on the same GPUs as memory is counted for."""
    given = asked.options.get("latency")
    pairs = [(a, e) for a in asked.clusters for e in asked.expert_clusters]
    if given is None:
        return [LatencyModel.roofline(asked.model, a, expert_cluster=e) for a, e in pairs]
    if len(pairs) > 1:
        raise JanusError("scale.latency", f"latency= times one pair of GPU types, {len(pairs)} may be chosen; name one")
    seen, wanted = (given.cluster, given.expert_cluster), pairs[0]
    if given.model != asked.model or not all(a.alike(b) for a, b in zip(seen, wanted, strict=True)):
        rule = "latency must be of the model and cluster that are planned"
        want = f"{asked.model.name} on {wanted[0].gpu.name}"
        said = f"it is of {given.model.name} on {given.cluster.gpu.name}"
        raise JanusError("scale.latency", f"{rule}, {want}; {said} or their fields differ")
    return [given.owned(*wanted)]


def slots_of(model: ModelSpec, cluster: Cluster, slots: int | None, max_batch: int) -> int:
    """C: the slots asked for, or as many as an expert instance holds.

    Raises:
        JanusError: ``scale.memory``.
    """
    fits = expert_slots(model, cluster, max_batch)
    if not fits:
        each, fixed = slot_bytes(model) / 2**30, gate_bytes(model, max_batch) / 2**30
        rule = f"an expert instance must hold one expert of every layer ({each:.1f} GiB)"
        rule += f" beside routers and buffers for max_batch={max_batch} ({fixed:.1f} GiB)"
        remedy = "use GPUs with more memory, a smaller expert_dtype or a smaller max_batch"
        raise JanusError("scale.memory", f"{rule}; usable: {cluster.usable_bytes / 2**30:.1f} GiB; {remedy}")
    if slots is None:
        return fits
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= fits:
        raise JanusError("scale.memory", f"slots must be a whole number in 1..{fits}, what memory holds; got {slots!r}")
    return slots


def prompts(
    prefill: str, demand: float | None, input_tokens: float | None, output_tokens: float | None
) -> Prefill | None:
    """What the pools process beside `demand` output tokens/s; None with ``prefill="elsewhere"``.

    Raises:
        JanusError: ``scale.prefill``.
    """
    known(prefill, ("elsewhere", "attention"), "prefill", "scale.prefill")
    if prefill == "elsewhere":
        return None
    if demand is None:
        raise JanusError("scale.prefill", "prefill='attention' needs demand=, which sets how many prompts arrive")
    inputs = positive(input_tokens, "input_tokens (needed by prefill='attention')", "scale.prefill")
    outputs = positive(output_tokens, "output_tokens (needed by prefill='attention')", "scale.prefill")
    return Prefill(positive(demand * inputs / outputs, "prompt tokens per second", "scale.prefill"), inputs)


def clusters(value: Any, what: str) -> tuple[Cluster, ...]:
    """One cluster or several, of different GPUs, as a tuple."""
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    remedy = "make one with Cluster('h100-sxm')"
    for cluster in found:
        instance(cluster, Cluster, f"{what} must be a janus.scale.Cluster, or several", "scale.cluster", remedy)
    names = [cluster.gpu.name for cluster in found]
    if not found or len(set(names)) < len(names):
        raise JanusError("scale.cluster", f"{what} must name each type of GPU once, at least one; got {names}")
    return found


def check(asked: Asked) -> None:
    """Refuse numbers out of range and options that do not go together."""
    options = asked.options
    _check_load(asked.demand, options.get("batch"), asked.headroom)
    positive(asked.context, "context (tokens)", "scale.range")
    positive(asked.planned_context, "context x headroom (tokens)", "scale.range")
    if asked.wanted is not None:
        positive(asked.wanted, "demand x headroom (output tokens/s)", "scale.range")
    _check_search(options)
    known(options.get("objective", "gpus"), OBJECTIVES, "objective", "scale.objective")
    if options.get("objective") == "usd":
        _check_prices([*asked.clusters, *asked.expert_clusters])
    cv = options.get("context_cv", CONTEXT_CV)
    if cv != 0:
        positive(cv, "context_cv (0, or its value)", "scale.range")
    if (latency := options.get("latency")) is not None:
        remedy = "make one with LatencyModel.roofline(model, cluster), or leave it out"
        rule = "latency must be a janus.scale.LatencyModel"
        instance(latency, LatencyModel, rule, "scale.latency", remedy)
    max_batch = whole(options.get("max_batch", 16384), "max_batch", "scale.range")
    batch = options.get("batch")
    named = {
        "max_attention": asked.max_attention,
        "max_experts": asked.max_experts,
        "batch": 1 if batch is None else batch,
    }
    for name, value in named.items():
        whole(value, name, "scale.range")
    if batch is not None and batch > max_batch:
        rule = "batch must not exceed max_batch, for which the exchange buffers are sized"
        raise JanusError("scale.range", f"{rule}; got {batch} > {max_batch}; raise max_batch")


def _check_search(options: Options) -> None:
    known(options.get("solver", "auto"), ("auto", *SOLVERS), "solver", "scale.solver")
    if (limit := options.get("time_limit_s")) is not None:
        positive(limit, "time_limit_s", "scale.range")
    progress = options.get("progress")
    if progress is not None and not callable(progress):
        raise JanusError(
            "scale.option", f"progress is called with (done, total, what), got {progress!r}; give a function"
        )


def _check_load(demand: float | None, batch: int | None, headroom: Headroom) -> None:
    if (demand is None) == (batch is None):
        rule = "give demand (tokens/s) or batch (requests in flight), one of them"
        raise JanusError("scale.demand", f"{rule}; got demand={demand!r}, batch={batch!r}")
    if demand is not None:
        positive(demand, "demand (output tokens/s)", "scale.range")
    if batch is not None and headroom.rate != 1:
        raise JanusError(
            "scale.range", f"headroom multiplies the demand; with batch= leave it out, got {headroom.rate}"
        )


def _check_prices(found: list[Cluster]) -> None:
    without = sorted({cluster.gpu.name for cluster in found if cluster.gpu.usd_per_hour is None})
    if without:
        rule = "objective='usd' needs the price of every GPU"
        remedy = f"Cluster(Hardware.preset({without[0]!r}, usd_per_hour=...))"
        raise JanusError("scale.objective", f"{rule}; {', '.join(without)} has none; {remedy}")


def measured_at(found: tuple[Problem, ...], n_e: int, slots: int) -> tuple[Problem, ...]:
    """The problems on a table that holds (n_e, slots) too."""
    table = found[0].table.extended([(n_e, slots)])
    return tuple(replace(problem, table=table) for problem in found)
