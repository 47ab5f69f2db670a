"""`janus plan`: what the options name, read and put together for `janus.scale.plan`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.cli.progress import progress
from janus.cli.trace import load_trace
from janus.errors import JanusError
from janus.scale import Cluster, LatencyModel, ModelSpec, plan
from janus.types import RequestTrace, RoutingTrace, Slo, Topology
from janus.types.samples import SAMPLES, sample

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from janus.scale import ScalePlan

    Routing = RoutingTrace | npt.NDArray[np.int64]

Json = dict[str, Any]


def make_plan(
    config: str,
    *,
    hardware: str,
    gpus_per_node: int | None,
    inter_node_gbps: float | None,
    routing: str,
    recording: str | None,
    synthetic: bool,
    requests: str | None,
    demand: float | None,
    context: float | None,
    slo: Slo,
    latency: Path | None = None,
    **options: Any,
) -> ScalePlan:
    """Read model, hardware and traces, and search; a bar on a terminal tells how far it is.

    Args:
        config: folder, config.json or the name of a shipped config.
        hardware: name of a preset.
        gpus_per_node: default the preset's.
        inter_node_gbps: per GPU, default the preset's.
        routing: routing trace or expert counts: a file, or the name of a shipped sample.
        recording: which one of a file of expert counts.
        synthetic: resample the popularity of `routing` for this model, whatever model it was recorded on.
        requests: request trace, for whatever of demand and context is None.
        demand: output tokens per second.
        context: mean KV length, tokens.
        slo: the objective.
        latency: file of a `LatencyModel` of this model and cluster; default the roofline.
        options: passed on to `janus.scale.plan`.

    Raises:
        JanusError: ``plan.*``, and whatever the readers and the planner refuse.
    """
    model = ModelSpec.from_config(config)
    trace = _routing(routing, recording)
    trace = _resampled(trace, model) if synthetic else _of_this_model(trace, model)
    arrivals = None if requests is None else _requests(requests)
    demand = _or_from(demand, "--demand", arrivals, "output_tokens_per_s")
    context = _or_from(context, "--context", arrivals, "mean_context")
    if arrivals is not None:
        options |= {"input_tokens": arrivals.mean_input, "output_tokens": arrivals.mean_output}
    elif options.get("prefill") == "attention":
        raise JanusError("plan.requests", "--prefill attention needs the lengths of prompts; give --requests FILE")
    cluster = Cluster(hardware, gpus_per_node=gpus_per_node, inter_node_gbps=inter_node_gbps)
    if latency is not None:
        options["latency"] = LatencyModel.load(latency)
    with progress("measuring activated experts") as advance:
        return plan(
            model,
            cluster,
            demand=demand,
            slo=slo,
            trace=trace,
            context=context,
            progress=lambda done, total, what: advance(done / total),
            **options,
        )


def check_asked(explain: Sequence[str], *outputs: Path | None) -> None:
    """Refuse what can be told before the search: a pair that is none, a file in a folder that does not exist."""
    for name in explain:
        Topology.parse(name)
    for path in outputs:
        if path is not None and not path.parent.is_dir():
            raise JanusError("plan.output", f"cannot write {path}: {path.parent} is no folder; make it first")


def print_plan(found: ScalePlan, explain: Sequence[str], as_json: bool) -> None:
    """One JSON object with an ``explain`` entry per pair asked for, or the report and a line per pair."""
    reasons = {name: found.explain(name) for name in explain}
    if as_json:
        print(json.dumps({**found.to_dict(), "explain": reasons}))
        return
    from janus.scale.report import render

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(render(found))
    else:
        print(render(found, style="plain"))
    for reason in reasons.values():
        print(reason)


def _routing(name: str, recording: str | None) -> Routing:
    trace = load_trace(_path(name))
    if isinstance(trace, RequestTrace):
        raise JanusError("plan.routing", f"--routing needs routing or expert counts, {name} holds requests")
    if isinstance(trace, RoutingTrace):
        if recording is not None:
            raise JanusError("plan.routing", f"--recording picks from expert counts, {name} holds one routing trace")
        return trace
    if recording is None and len(trace) == 1:
        return next(iter(trace.values()))
    if recording not in trace:
        raise JanusError("plan.routing", f"--recording must be one of {', '.join(trace)}; got {recording!r}")
    return trace[recording]


def _of_this_model(trace: Routing, model: ModelSpec) -> Routing:
    """Refuse routing with another number of experts, naming the option; the planner checks the rest."""
    experts = trace.num_experts if isinstance(trace, RoutingTrace) else trace.shape[1]
    if experts != model.experts:
        rule = f"--routing was recorded with {experts} experts, {model.name} has {model.experts}"
        raise JanusError("plan.routing", f"{rule}; record this model, or add --synthetic to borrow the popularity")
    return trace


def _resampled(trace: Routing, model: ModelSpec) -> RoutingTrace:
    if not isinstance(trace, RoutingTrace):  # only the popularity is taken, so any top_k will do
        trace = RoutingTrace.from_counts(trace, top_k=1, source="expert counts")
    sizes = {"num_experts": model.experts, "top_k": model.top_k, "num_layers": model.moe_layers}
    return RoutingTrace.synthetic(like=trace, **sizes)


def _requests(name: str) -> RequestTrace:
    trace = load_trace(_path(name))
    if not isinstance(trace, RequestTrace):
        raise JanusError("plan.requests", f"--requests needs a request trace, {name} holds routing")
    return trace


def _path(name: str) -> Path:
    return sample(name) if name in SAMPLES else Path(name)


def _or_from(value: float | None, option: str, arrivals: RequestTrace | None, field: str) -> float:
    if value is not None:
        return value
    if arrivals is None:
        raise JanusError("plan.requests", f"give {option}, or --requests FILE to take it from")
    return getattr(arrivals, field)
