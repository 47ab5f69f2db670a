"""The front door: how many attention and expert GPUs serve a demand within an SLO."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError, known
from janus.scale.activation import ActivationTable, Progress
from janus.scale.batches import Routing
from janus.scale.colocated import colocated_optimum
from janus.scale.hardware import Cluster, positive, whole
from janus.scale.latency import LatencyModel
from janus.scale.memory import expert_slots, gate_bytes, slot_bytes
from janus.scale.model import ModelSpec
from janus.scale.prefill import Prefill
from janus.scale.result import ScalePlan
from janus.scale.solve import Candidate, Problem, pick, search
from janus.types import Placement, RoutingTrace, Slo
from janus.types.checks import instance

METHODS = ("exhaustive",)


class Options(TypedDict, total=False):
    """Options of `plan` with a default for each.

    Args:
        batch: instead of `demand`: requests in flight, fixed.
        slots: C, expert slots per instance; default as many as memory holds.
        max_batch: most requests in flight, 16384; exchange buffers are sized for it.
        input_tokens, output_tokens: means per request; needed by ``prefill="attention"``.
        balance: method of `janus.sched.balance` to assume, ``"exact"``.
        placing: method of `janus.sched.place` to assume, ``"janus"``.
        latency: default `LatencyModel.roofline(model, cluster)`.
        seed: of the Monte Carlo draws, 0.
        progress: called with (done, total, what) while the activation table is measured.
    """

    batch: int | None
    slots: int | None
    max_batch: int
    input_tokens: float | None
    output_tokens: float | None
    balance: str
    placing: str
    latency: LatencyModel | None
    seed: int
    progress: Progress | None


def plan(
    model: ModelSpec | str,
    cluster: Cluster,
    *,
    demand: float | None = None,
    slo: Slo | float,
    trace: RoutingTrace | npt.ArrayLike,
    context: float,
    method: str = "exhaustive",
    max_attention: int = 64,
    max_experts: int = 64,
    headroom: float = 1.0,
    prefill: str = "elsewhere",
    **options: Unpack[Options],
) -> ScalePlan:
    """Find the fewest GPUs n_a + n_e that serve `demand` within `slo`; ties: the lower TPOT.

    Args:
        model: a `ModelSpec`, or what `ModelSpec.from_config` takes.
        cluster: the GPUs.
        demand: output tokens per second over all requests; Little's law gives the batch, B = demand * TPOT(B).
        slo: an `Slo`, or its TPOT in ms. The mean TPOT is held against it; `percentile` is kept but not modelled
            (leave room with `headroom`).
        trace: routing of this model: a `RoutingTrace`, or per-layer expert counts (top_k from the model).
        context: mean KV length, tokens.
        method: ``"exhaustive"``.
        max_attention: largest attention pool to search.
        max_experts: largest expert pool to search.
        headroom: factor on the demand, >= 1.
        prefill: ``"elsewhere"`` (decode only), or ``"attention"``: the pools also process the prompts.
        options: see `Options`.

    Raises:
        JanusError: ``scale.*``, ``model.*``, ``routing.*``, ``slo.range``.

    Example:
        A model that fits on one GPU, with expert popularity 1, 2, ... 64, should not be split:

        >>> few = {"max_attention": 2, "max_experts": 2, "max_batch": 64}
        >>> found = plan("olmoe-1b-7b", Cluster("h100-sxm"), demand=500, slo=50, trace=[range(1, 65)], context=400, **few)
        >>> str(found.topology), found.colocated.gpus, found.disaggregate
        ('1A1E', 1, False)
    """
    if method == "milp":
        raise JanusError("scale.method", "method 'milp' is not in this version; use 'exhaustive', which is exact")
    known(method, METHODS, "method", "scale.method")
    for name in options:
        known(name, Options.__annotations__, "an option of plan", "scale.option")
    model = model if isinstance(model, ModelSpec) else ModelSpec.from_config(model)
    slo = slo if isinstance(slo, Slo) else Slo(slo)
    _check(cluster, demand, context, headroom, max_attention, max_experts, options)
    routing = Routing.of(trace, None if isinstance(trace, RoutingTrace) else model.top_k)
    routing.check(model)
    wanted = None if demand is None else demand * headroom
    pools = (max_attention, max_experts)
    problem = _problem(model, cluster, routing, wanted, slo, context, pools, prefill, options)
    problem, candidates, best = _refined(problem)
    colocated, _ = colocated_optimum(problem, problem.table)
    placement = _placement(problem, best) if best else None
    return ScalePlan(best, candidates, colocated, placement, problem, slo, demand, headroom, prefill, routing.source)


def _problem(
    model: ModelSpec,
    cluster: Cluster,
    routing: Routing,
    demand: float | None,
    slo: Slo,
    context: float,
    pools: tuple[int, int],
    prefill: str,
    options: Options,
) -> Problem:
    """Resolve every default and measure the activation table."""
    _check_kinds(cluster, options.get("latency"))
    max_batch, batch = options.get("max_batch", 16384), options.get("batch")
    slots = _slots(model, cluster, options.get("slots"), max_batch)
    table = ActivationTable.build(
        routing,
        [(n, slots) for n in pool_sizes(-(-model.experts // slots), pools[1])],
        batch_sizes(demand * slo.tpot_ms / 1e3 if demand else batch or 1, max_batch),
        method=options.get("balance", "exact"),
        placing=options.get("placing", "janus"),
        seed=options.get("seed", 0),
        progress=options.get("progress"),
    )
    return Problem(
        latency=_latency(model, cluster, options.get("latency")),
        table=table,
        slots=slots,
        demand=demand,
        batch=batch,
        slo_ms=slo.tpot_ms,
        context=context,
        max_attention=pools[0],
        max_experts=pools[1],
        max_batch=max_batch,
        prefill=_prefill(prefill, demand, options.get("input_tokens"), options.get("output_tokens")),
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


def _refined(problem: Problem) -> tuple[Problem, tuple[Candidate, ...], Candidate | None]:
    """Search; while the best pair rests on an interpolated a_max, measure its pool size and look again."""
    candidates = search(problem)
    while (best := pick(candidates)) and (best.n_e, problem.slots) not in problem.table.rows:
        problem = replace(problem, table=problem.table.extended([(best.n_e, problem.slots)]))
        candidates = search(problem)
    return problem, candidates, best


def _placement(problem: Problem, best: Candidate) -> Placement:
    """A map for every MoE layer of the model; where the source has another number of layers, its nearest one serves."""
    carlo, layers = problem.table.carlo, problem.latency.model.moe_layers
    source = len(carlo.routing.counts)
    placed = carlo.place(list(range(source)), best.n_e, problem.slots)
    if source == 1:
        return Placement(placed.slots[0], placed.num_experts)
    nearest = np.linspace(0, source - 1, layers).round().astype(int)
    return Placement(placed.slots[nearest], placed.num_experts)


def _latency(model: ModelSpec, cluster: Cluster, given: Any) -> LatencyModel:
    """The one given, which must time the same model on the same GPUs as memory is counted for; else the roofline."""
    if given is None:
        return LatencyModel.roofline(model, cluster)
    if not isinstance(given, LatencyModel):
        raise JanusError("scale.latency", f"latency must be a LatencyModel, got {given!r}")
    if (given.model, given.cluster) != (model, cluster):
        rule = "latency must be of the model and cluster that are planned"
        seen = f"it is of {given.model.name} on {given.cluster.gpu.name}"
        raise JanusError("scale.latency", f"{rule}, {model.name} on {cluster.gpu.name}; {seen} or their fields differ")
    return given


def _slots(model: ModelSpec, cluster: Cluster, slots: int | None, max_batch: int) -> int:
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


def _prefill(
    prefill: str, demand: float | None, input_tokens: float | None, output_tokens: float | None
) -> Prefill | None:
    known(prefill, ("elsewhere", "attention"), "prefill", "scale.prefill")
    if prefill == "elsewhere":
        return None
    if demand is None:
        raise JanusError("scale.prefill", "prefill='attention' needs demand=, which sets how many prompts arrive")
    inputs = positive(input_tokens, "input_tokens (needed by prefill='attention')", "scale.prefill")
    outputs = positive(output_tokens, "output_tokens (needed by prefill='attention')", "scale.prefill")
    return Prefill(demand * inputs / outputs, inputs)


def _check_kinds(cluster: Any, latency: Any) -> None:
    remedy = "make one with Cluster('h100-sxm')"
    instance(cluster, Cluster, "cluster must be a janus.scale.Cluster", "scale.cluster", remedy)
    if latency is not None:
        remedy = "make one with LatencyModel.roofline(model, cluster), or leave it out"
        instance(latency, LatencyModel, "latency must be a janus.scale.LatencyModel", "scale.latency", remedy)


def _check(
    cluster: Any,
    demand: float | None,
    context: Any,
    headroom: Any,
    max_attention: Any,
    max_experts: Any,
    options: Options,
) -> None:
    if not isinstance(cluster, Cluster):
        raise JanusError("scale.cluster", f"cluster must be a Cluster, e.g. Cluster('h100-sxm'); got {cluster!r}")
    batch = options.get("batch")
    if (demand is None) == (batch is None):
        rule = "give demand (tokens/s) or batch (requests in flight), one of them"
        raise JanusError("scale.demand", f"{rule}; got demand={demand!r}, batch={batch!r}")
    if demand is not None:
        positive(demand, "demand (output tokens/s)", "scale.range")
    positive(context, "context (tokens)", "scale.range")
    if positive(headroom, "headroom", "scale.range") < 1:
        raise JanusError("scale.range", f"headroom multiplies the demand and must be >= 1, got {headroom}")
    if batch is not None and headroom != 1:
        raise JanusError("scale.range", f"headroom multiplies the demand; with batch= leave it out, got {headroom}")
    max_batch = whole(options.get("max_batch", 16384), "max_batch", "scale.range")
    named = {"max_attention": max_attention, "max_experts": max_experts, "batch": 1 if batch is None else batch}
    for name, value in named.items():
        whole(value, name, "scale.range")
    if batch is not None and batch > max_batch:
        rule = "batch must not exceed max_batch, for which the exchange buffers are sized"
        raise JanusError("scale.range", f"{rule}; got {batch} > {max_batch}; raise max_batch")
