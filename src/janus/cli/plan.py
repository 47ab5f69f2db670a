"""`janus plan`: what the options name, read and put together for `janus.scale.plan`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.cli.inputs import check_outputs, clusters_of, routing_of
from janus.cli.progress import progress
from janus.cli.trace import load_traces
from janus.errors import JanusError
from janus.scale import Cluster, LatencyModel, ModelSpec, plan
from janus.types import RequestTrace, Slo, Topology

if TYPE_CHECKING:
    from janus.scale import ScalePlan

Json = dict[str, Any]


def make_plan(
    config: str,
    *,
    hardware: Sequence[str],
    expert_hardware: Sequence[str],
    price: Sequence[str],
    gpus_per_node: int | None,
    inter_node_gbps: float | None,
    routing: str,
    recording: str | None,
    synthetic: bool,
    requests: str | None,
    demand: float | None,
    context: float | None,
    context_cv: float | None,
    slo: Slo,
    latency: Path | None = None,
    **options: Any,
) -> ScalePlan:
    """Read model, hardware and traces, and search; a bar on a terminal tells how far it is.

    Args:
        config: folder, config.json or the name of a shipped config.
        hardware: names of presets that each pool may use.
        expert_hardware: those the expert pool may use; empty for the same.
        price: dollars per GPU-hour, like ``h100-sxm=2.5``.
        gpus_per_node: default the preset's.
        inter_node_gbps: per GPU, default the preset's.
        routing: routing trace or expert counts: a file, or the name of a shipped sample.
        recording: which one of a file of expert counts.
        synthetic: resample the popularity of `routing` for this model, whatever model it was recorded on.
        requests: request trace, for whatever of demand and context is None.
        demand: output tokens per second.
        context: mean KV length, tokens.
        context_cv: spread of the KV lengths; None for that of `requests`, or the planner's default.
        slo: the objective.
        latency: file of a `LatencyModel` of this model and cluster; default the roofline.
        options: passed on to `janus.scale.plan`.

    Raises:
        JanusError: ``plan.*``, ``cli.price``, and whatever the readers and the planner refuse.
    """
    model = ModelSpec.from_config(config)
    trace = routing_of(model, routing, recording, synthetic, "plan")
    arrivals = None if requests is None else _requests(requests)
    demand = _or_from(demand, "--demand", arrivals, "output_tokens_per_s")
    context = _or_from(context, "--context", arrivals, "mean_context")
    options |= _lengths(arrivals, context_cv, options["prefill"])
    cluster, theirs = _clusters(hardware, expert_hardware, price, gpus_per_node, inter_node_gbps)
    if theirs:
        options["expert_cluster"] = theirs
    if latency is not None:
        options["latency"] = LatencyModel.load(latency)
    with progress("measuring activated experts") as advance:
        options["progress"] = lambda done, total, what: advance(done / total)
        return plan(model, cluster, demand=demand, slo=slo, trace=trace, context=context, **options)


def _lengths(arrivals: RequestTrace | None, context_cv: float | None, prefill: str) -> Json:
    """What the planner is told of the requests' lengths beside their mean context."""
    if arrivals is None and prefill == "attention":
        raise JanusError("plan.requests", "--prefill attention needs the lengths of prompts; give --requests FILE")
    found: Json = {} if context_cv is None else {"context_cv": context_cv}
    if arrivals is None:
        return found
    means = {"input_tokens": arrivals.mean_input, "output_tokens": arrivals.mean_output}
    return {"context_cv": arrivals.context_cv, **means, **found}


def _clusters(
    hardware: Sequence[str], expert_hardware: Sequence[str], *wiring: Any
) -> tuple[list[Cluster], list[Cluster]]:
    named = list(dict.fromkeys([*hardware, *expert_hardware]))
    found = dict(zip(named, clusters_of(named, *wiring), strict=True))
    return [found[name] for name in hardware], [found[name] for name in expert_hardware]


def check_asked(explain: Sequence[str], *outputs: Path | None) -> None:
    """Refuse what can be told before the search: a pair that is none, a file in a folder that does not exist."""
    for name in explain:
        Topology.parse(name)
    check_outputs(*outputs)


def print_plan(found: ScalePlan, explain: Sequence[str], as_json: bool) -> None:
    """One JSON object with an ``explain`` entry per pair asked for, or the report and a line per pair."""
    reasons = {name: found.explain(name) for name in explain}
    if as_json:
        print(json.dumps({**found.to_dict(), "explain": reasons}))
        return
    from janus.scale.plans.report import render

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(render(found))
    else:
        print(render(found, style="plain"))
    for reason in reasons.values():
        print(reason)


def _requests(name: str) -> RequestTrace:
    trace = load_traces([name])
    if not isinstance(trace, RequestTrace):
        raise JanusError("plan.requests", f"--requests needs a request trace, {name} holds routing")
    return trace


def _or_from(value: float | None, option: str, arrivals: RequestTrace | None, field: str) -> float:
    if value is not None:
        return value
    if arrivals is None:
        raise JanusError("plan.requests", f"give {option}, or --requests FILE to take it from")
    return getattr(arrivals, field)
