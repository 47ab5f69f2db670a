"""First half of the demo: size both pools for a real request trace, and say why the neighbours lost."""

from __future__ import annotations

from pathlib import Path

from janus.scale import Cluster, Hardware, ModelSpec, ScalePlan
from janus.scale.report import render
from progress import bar
from rich.console import Console

from janus import RequestTrace, RoutingTrace, Slo, plan
from janus.types import sample

SLO = Slo(tpot_ms=150)
# The sample is ten minutes of one small service; this many of them share the pools.
SERVICES = 20


def show(console: Console, picture: Path) -> ScalePlan:
    """Plan, print the plan and its neighbours, save the search space."""
    model = ModelSpec.from_config("deepseek-v2")
    requests = RequestTrace.load(sample("azure_conversation_600.csv"))
    routing = RoutingTrace.synthetic(
        like=RoutingTrace.load(sample("gptoss20b_routing.npz")), num_experts=model.experts, top_k=model.top_k, seed=0
    )
    context = requests.mean_input + requests.mean_output / 2
    console.print(f"requests: {requests.num_requests} of {requests.source}, x {SERVICES} such services")
    with bar(console, "activation table") as progress:
        result = plan(
            model,
            Cluster(Hardware.preset("h100-sxm"), gpus_per_node=8, inter_node_gbps=400),
            demand=SERVICES * requests.output_tokens_per_s,
            slo=SLO,
            trace=routing,
            context=context,
            max_attention=16,
            max_experts=32,
            progress=progress,
        )
    console.print(render(result))
    for name in neighbours(result):
        console.print(f"why not {name}: {result.explain(name)}", highlight=False)
    result.plot(picture)
    return result


def neighbours(result: ScalePlan) -> list[str]:
    """One GPU fewer or more in either pool."""
    if not result.feasible:
        return []
    a, e = result.n_attention, result.n_experts
    around = [(a - 1, e), (a, e - 1), (a + 1, e), (a, e + 1)]
    return [f"{x}A{y}E" for x, y in around if x >= 1 and y >= 1]
