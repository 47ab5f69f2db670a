"""First half of the demo: size both pools for a real request trace, and say why the neighbours lost."""

from __future__ import annotations

from pathlib import Path

from progress import bar
from rich.console import Console

from janus import RequestTrace, RoutingTrace, Slo, plan
from janus.scale import Cluster, Hardware, ModelSpec, ScalePlan
from janus.scale.plans.report import render
from janus.types import sample

SLO, STRICTER = Slo(tpot_ms=150), Slo(tpot_ms=60)
# The sample is two minutes of one small service; this many of them share the pools.
SERVICES = 8


def show(console: Console, picture: Path) -> ScalePlan:
    """Plan, print the plan and its neighbours, save the search space."""
    requests = RequestTrace.load(sample("azure-conversation"))
    console.print(f"{SERVICES} services like {requests.num_requests} requests of {requests.source}", highlight=False)
    result = make(console, requests, SLO)
    console.print(render(result))
    for name in neighbours(result):
        console.print(f"why not {result.explain(name)}", highlight=False)
    stricter = make(console, requests, STRICTER)
    console.print(f"and at {STRICTER.tpot_ms:g} ms: {stricter.verdict}", highlight=False)
    result.plot(picture)
    return result


def make(console: Console, requests: RequestTrace, slo: Slo) -> ScalePlan:
    """The plan for one objective."""
    model = ModelSpec.from_config("deepseek-v2")
    recorded = RoutingTrace.load(sample("gptoss20b-routing"))
    with bar(console, "activation table") as progress:
        return plan(
            model,
            Cluster(Hardware.preset("h100-sxm"), gpus_per_node=8, inter_node_gbps=400),
            demand=SERVICES * requests.output_tokens_per_s,
            slo=slo,
            trace=RoutingTrace.synthetic(like=recorded, num_experts=model.experts, top_k=model.top_k),
            context=requests.mean_context,
            max_attention=8,
            max_experts=16,
            progress=progress,
        )


def neighbours(result: ScalePlan) -> list[str]:
    """One GPU fewer or more in either pool."""
    if not result.feasible:
        return []
    a, e = result.n_attention, result.n_experts
    around = [(a - 1, e), (a, e - 1), (a + 1, e), (a, e + 1)]
    return [f"{x}A{y}E" for x, y in around if x >= 1 and y >= 1]
