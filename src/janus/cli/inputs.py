"""What the options of `janus plan` and `janus simulate` name, read and checked: routing, GPUs and their prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from janus.cli.trace import load_traces
from janus.errors import JanusError, known
from janus.scale import Cluster, Hardware, ModelSpec
from janus.types import RequestTrace, RoutingTrace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Routing = RoutingTrace | npt.NDArray[np.int64]


def routing_of(model: ModelSpec, name: str, recording: str | None, synthetic: bool, command: str) -> Routing:
    """Routing or expert counts for a model.

    Args:
        model: whose routing it has to be.
        name: a file, or the name of a shipped sample.
        recording: which one of a file of expert counts.
        synthetic: resample the popularity for this model, whatever model it was recorded on.
        command: ``"plan"``, for the code of errors: ``plan.routing``.

    Raises:
        JanusError: ``<command>.routing``, and whatever the readers refuse.
    """
    trace = _read(name, recording, f"{command}.routing")
    return _resampled(trace, model) if synthetic else _of_this_model(trace, model, f"{command}.routing")


def prices(given: Sequence[str]) -> dict[str, float]:
    """Dollars per GPU-hour by hardware, from words like ``h100-sxm=2.5``.

    Raises:
        JanusError: ``cli.price``.

    Example:
        >>> prices(["h100-sxm=2.5", "h200-sxm=3"])
        {'h100-sxm': 2.5, 'h200-sxm': 3.0}
    """
    return dict(_pair(word, "--price h100-sxm=2.50", "cli.price") for word in given)


def shares(given: Sequence[str]) -> dict[str, float]:
    """Numbers by policy, from words like ``monolithic=0.8``.

    Raises:
        JanusError: ``cli.efficiency``.
    """
    return dict(_pair(word, "--efficiency monolithic=0.8", "cli.efficiency") for word in given)


def clusters_of(
    hardware: Sequence[str], price: Sequence[str], gpus_per_node: int | None, inter_node_gbps: float | None
) -> list[Cluster]:
    """The GPUs that presets name, with their prices where they were given.

    Args:
        hardware: names of presets.
        price: dollars per GPU-hour of some of them, like ``h100-sxm=2.5``.
        gpus_per_node: default the preset's.
        inter_node_gbps: per GPU, default the preset's.

    Raises:
        JanusError: ``cli.price``, ``hardware.*``, ``cluster.range``.
    """
    priced, gpus = prices(price), {name: Hardware.preset(name) for name in hardware}
    for name, usd in priced.items():
        gpus[name] = replace(gpus[known(name, gpus, "the hardware of --price", "cli.price")], usd_per_hour=usd)
    return [Cluster(gpus[name], gpus_per_node=gpus_per_node, inter_node_gbps=inter_node_gbps) for name in hardware]


def check_outputs(*paths: Path | None) -> None:
    """Refuse a file in a folder that does not exist, before anything is computed."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise JanusError("plan.output", f"cannot write {path}: {path.parent} is no folder; make it first")


def _pair(word: str, example: str, code: str) -> tuple[str, float]:
    name, _, value = word.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise JanusError(code, f"write a name, = and a number, e.g. {example}; got {word!r}") from None


def _read(name: str, recording: str | None, code: str) -> Routing:
    trace = load_traces([name])
    if isinstance(trace, RequestTrace):
        raise JanusError(code, f"--routing needs routing or expert counts, {name} holds requests")
    if isinstance(trace, RoutingTrace):
        if recording is not None:
            raise JanusError(code, f"--recording picks from expert counts, {name} holds one routing trace")
        return trace
    if recording is None and len(trace) == 1:
        return next(iter(trace.values()))
    if recording not in trace:
        raise JanusError(code, f"--recording must be one of {', '.join(trace)}; got {recording!r}")
    return trace[recording]


def _of_this_model(trace: Routing, model: ModelSpec, code: str) -> Routing:
    """Refuse routing with another number of experts, naming the option; the planner checks the rest."""
    experts = trace.num_experts if isinstance(trace, RoutingTrace) else trace.shape[1]
    if experts != model.experts:
        rule = f"--routing was recorded with {experts} experts, {model.name} has {model.experts}"
        raise JanusError(code, f"{rule}; record this model, or add --synthetic to borrow the popularity")
    return trace


def _resampled(trace: Routing, model: ModelSpec) -> RoutingTrace:
    if not isinstance(trace, RoutingTrace):  # only the popularity is taken, so any top_k will do
        trace = RoutingTrace.from_counts(trace, top_k=1, source="expert counts")
    sizes = {"num_experts": model.experts, "top_k": model.top_k, "num_layers": model.moe_layers}
    return RoutingTrace.synthetic(like=trace, **sizes)
