"""The front door of time: a day of requests, and what a policy makes of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Unpack, overload

import numpy.typing as npt

from janus.errors import JanusError, known
from janus.scale.days.policies import named
from janus.scale.days.policy import POLICIES, Policy, check_policy
from janus.scale.days.stage import Stage, check_requests
from janus.scale.days.staging import SimulateOptions, staged
from janus.scale.days.timeline import Timeline
from janus.scale.hardware import Cluster, positive
from janus.scale.model import ModelSpec
from janus.types import RequestTrace, RoutingTrace, Slo
from janus.types.checks import instance, shown


@overload
def simulate(
    requests: RequestTrace,
    policy: str | Policy = ...,
    *,
    model: ModelSpec | str,
    cluster: Cluster,
    slo: Slo | float,
    trace: RoutingTrace | npt.ArrayLike,
    **options: Unpack[SimulateOptions],
) -> Timeline:
    """One policy."""
    ...


@overload
def simulate(
    requests: RequestTrace,
    policy: Sequence[str | Policy],
    *,
    model: ModelSpec | str,
    cluster: Cluster,
    slo: Slo | float,
    trace: RoutingTrace | npt.ArrayLike,
    **options: Unpack[SimulateOptions],
) -> dict[str, Timeline]:
    """Several, by name."""
    ...


def simulate(
    requests: RequestTrace,
    policy: Any = "janus",
    *,
    model: ModelSpec | str,
    cluster: Cluster,
    slo: Slo | float,
    trace: RoutingTrace | npt.ArrayLike,
    **options: Unpack[SimulateOptions],
) -> Timeline | dict[str, Timeline]:
    """Serve a trace of requests step by step while a policy sizes the pools; decode only, prefill is elsewhere.

    Args:
        requests: arrivals and lengths.
        policy: ``"janus"``, ``"monolithic"``, ``"megascale"``, ``"xdeepserve"``, ``"static"``, an object with a `name`
            and `decide(observation) -> Decision`, or several of them.
        model: a `ModelSpec`, or what `ModelSpec.from_config` takes.
        cluster: the GPUs.
        slo: an `Slo`, or its TPOT in ms.
        trace: routing of this model: a `RoutingTrace`, or per-layer expert counts.
        options: see `SimulateOptions`.

    Returns:
        A `Timeline`; for several policies a dict of them by name.

    Raises:
        JanusError: ``simulate.*``, ``requests.empty``, ``scale.*``, ``model.*``, ``routing.*``, ``slo.range``.

    Example:
        Two requests on the smallest pools there are; the second waits for nobody:

        >>> two = RequestTrace([0.0, 1.0], [100, 300], [11, 31], duration_s=2.0)
        >>> small = {"max_attention": 2, "max_experts": 2, "max_batch": 64}
        >>> day = simulate(two, model="olmoe-1b-7b", cluster=Cluster("h100-sxm"), slo=50, trace=[range(1, 65)], **small)
        >>> day.tokens, day.gpus.tolist(), day.attainment
        (40, [2.0], 1.0)
    """
    for name in options:
        known(name, SimulateOptions.__annotations__, "an option of simulate", "simulate.option")
    several = not isinstance(policy, str) and isinstance(policy, Sequence)
    asked = [check_policy(p) if not isinstance(p, str) else p for p in (policy if several else [policy])]
    if not asked:
        raise JanusError("simulate.policy", f"give at least one policy, of {', '.join(POLICIES)}, or your own")
    for p in asked:
        known(p, POLICIES, "policy", "simulate.policy") if isinstance(p, str) else None
    if (tell := options.get("progress")) is not None and not callable(tell):
        rule = "progress must be called with (done, total, policy)"
        raise JanusError("simulate.range", f"{rule}, got {shown(tell)}; leave it out")
    efficiency = _efficiency(options.get("per_gpu_efficiency"))
    stage = staged(check_requests(requests), asked, model, cluster, slo, trace, options)
    chosen = [named(p, stage, efficiency) if isinstance(p, str) else p for p in asked]
    names = [p.name for p in chosen]
    if len(set(names)) < len(names):
        raise JanusError("simulate.policy", f"policies need different names, got {names}")
    days = _played(stage, chosen, options)
    return days if several else days[names[0]]


def _played(stage: Stage, policies: Sequence[Any], options: SimulateOptions) -> dict[str, Timeline]:
    from janus.scale.days.playing import play

    tell, threads = options.get("progress"), options.get("threads", os.cpu_count() or 1)
    days: dict[str, Timeline] = {}
    with ThreadPoolExecutor(threads) as pool:  # the loops run without the interpreter's lock
        for done, day in enumerate(pool.map(lambda p: play(stage, p), policies), start=1):
            days[day.policy] = day
            if tell:
                tell(done, len(policies), day.policy)
    return days


def _efficiency(given: Mapping[str, float] | None) -> Mapping[str, float]:
    if given is None:
        return {}
    rule = "per_gpu_efficiency must be a dict of policy names and shares"
    instance(given, Mapping, rule, "simulate.range", "like {'monolithic': 0.5}")
    for name, value in given.items():
        known(name, POLICIES, "a policy of per_gpu_efficiency", "simulate.policy")
        positive(value, f"per_gpu_efficiency of {name}", "simulate.range")
    return given
