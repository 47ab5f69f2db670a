"""The front door: how many attention and expert GPUs serve a demand within an SLO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import numpy.typing as npt

from janus.errors import known
from janus.scale.activation.batches import Routing
from janus.scale.hardware import Cluster
from janus.scale.model import ModelSpec
from janus.scale.plans.result import ScalePlan
from janus.scale.search.colocated import Colocated, colocated_optimum
from janus.scale.search.problems import METHODS, Headroom, Options, ask, measured_at, problems
from janus.scale.search.solve import Candidate, Problem, pick, search, searched_again
from janus.scale.timing.one_type import on_one_type
from janus.types import Placement, RoutingTrace, Slo

Found = tuple[tuple[Problem, ...], tuple[Candidate, ...], Candidate | None, str]


def plan(
    model: ModelSpec | str,
    cluster: Cluster | Sequence[Cluster],
    *,
    demand: float | None = None,
    slo: Slo | float,
    trace: RoutingTrace | npt.ArrayLike | Routing | str,
    context: float,
    method: str = "exhaustive",
    max_attention: int = 64,
    max_experts: int = 64,
    headroom: float | tuple[float, float] | Headroom = 1.0,
    prefill: str = "elsewhere",
    **options: Unpack[Options],
) -> ScalePlan:
    """Find the pools n_a + n_e of least cost that serve `demand` within `slo`; ties: fewer GPUs, the lower TPOT.

    Args:
        model: a `ModelSpec`, or what `ModelSpec.from_config` takes.
        cluster: the GPUs; several when each pool may choose its type.
        demand: output tokens per second over all requests; Little's law gives the batch, B = demand * TPOT(B).
        slo: an `Slo`, or its TPOT in ms. Held against it is the TPOT at `percentile` (99): of the slowest attention
            instance, and of a batch that activates more experts than most.
        trace: routing of this model: a `RoutingTrace`, or per-layer expert counts (top_k from the model); ``"uniform"``
            only to see how wrong that is.
        context: mean KV length, tokens.
        method: ``"exhaustive"`` (every pair is evaluated and can be asked about), or ``"milp"``: the same optimum from
            a mixed-integer program, which evaluates few pairs: for many GPU types and large pools.
        max_attention: largest attention pool to search.
        max_experts: largest expert pool to search.
        headroom: factor on the demand, or (factor on the demand, factor on the KV lengths), >= 1 each.
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
    known(method, METHODS, "method", "scale.method")
    asked = ask(
        model, cluster, trace, demand=demand, headroom=Headroom.of(headroom), slo=slo if isinstance(slo, Slo) else Slo(slo),
        context=context, max_attention=max_attention, max_experts=max_experts, prefill=prefill, options=options,
    )  # fmt: skip
    found, candidates, best, proof = _refined(problems(asked), method, options)
    colocated = _colocated(found)
    chosen = _problem_of(found, best)
    placement = _placement(chosen, best) if best else None
    return ScalePlan(best, candidates, colocated, placement, chosen, asked, found, proof)


def _refined(found: tuple[Problem, ...], method: str, options: Options) -> Found:
    """Search; while the best pair rests on an interpolated a_max, measure its pool size and look again."""
    every = [search(problem) for problem in found] if method == "exhaustive" else []
    while True:
        if method == "milp":
            from janus.scale.search.milp import Limits, solve

            limits = Limits(options.get("solver", "auto"), options.get("time_limit_s"))
            candidates, best, proof = solve(found, limits)
        else:
            candidates = tuple(c for one in every for c in one)
            best, proof = pick(candidates, found[0].objective), "optimal: every pair was evaluated"
        slots = _problem_of(found, best).slots
        if best is None or (best.n_e, slots) in found[0].table.rows:
            return found, candidates, best, proof
        found = measured_at(found, best.n_e, slots)
        if every:  # of the exhaustive search
            both = zip(found, every, strict=True)
            every = [searched_again(p, old, best.n_e) if p.slots == slots else old for p, old in both]


def _problem_of(found: tuple[Problem, ...], best: Candidate | None) -> Problem:
    return next((p for p in found if best and p.kinds == best.kinds), found[0])


def _colocated(found: tuple[Problem, ...]) -> Colocated | None:
    """The best over every type of GPU that either pool may use."""
    best, table = None, found[0].table
    for cluster in dict.fromkeys(c for p in found for c in (p.latency.cluster, p.latency.expert_cluster)):
        one, table = colocated_optimum(_on_one_type(found, cluster), table)
        best = min((c for c in (best, one) if c), key=lambda c: c.order(found[0].objective), default=None)
    return best


def _on_one_type(found: tuple[Problem, ...], cluster: Cluster) -> Problem:
    alike = (p for p in found if p.latency.cluster == p.latency.expert_cluster == cluster)
    return next(alike, replace(found[0], latency=on_one_type(found[0].latency, cluster)))


def _placement(problem: Problem, best: Candidate) -> Placement:
    """A map for every MoE layer of the model; where the source has another number of layers, its nearest one serves."""
    carlo, layers = problem.table.carlo, problem.latency.model.moe_layers
    source = len(carlo.routing.counts)
    placed = carlo.placed(best.n_e, problem.slots)
    if source == 1:
        return Placement(placed.slots[0], placed.num_experts)
    nearest = np.linspace(0, source - 1, layers).round().astype(int)
    return Placement(placed.slots[nearest], placed.num_experts)
