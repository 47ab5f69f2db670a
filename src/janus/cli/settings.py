"""The options of `janus run`, checked before anything is started."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from janus.cli.prompts import Prompts, check_lengths, gather_prompts
from janus.comm.layout import REGIMES
from janus.errors import JanusError, known
from janus.experts.backends import COMPUTES
from janus.experts.folder import check_folder
from janus.sched.backends import check_without_cost
from janus.types import Placement, Topology

Gate = Literal["experts", "attention"]
GATES: tuple[Gate, ...] = get_args(Gate)


@dataclass(frozen=True)
class RunSettings:
    """A run, checked; the launcher and every rank make the same one from the same arguments.

    Args:
        model: local Hugging Face folder.
        topology: which rank plays which role.
        placement: experts to slots; None: in order, one replica each.
        gate: side that routes, ``"experts"`` or ``"attention"``.
        balance: how replicas are chosen, a method of `janus.balance`.
        regime: of the exchange.
        compute: how the chosen experts are run, as in `DisaggregatedRunner`.
        quantize: keep the matrices of the experts in 8 bits; None: as the folder has them.
        prompts: texts or token ids.
        max_new_tokens: per prompt.
        sampling: keyword arguments of `DisaggregatedRunner.generate`.
        deadline_s: for the whole run, seconds.
        step_s: for one wait on a peer within a step, seconds.
    """

    model: Path
    topology: Topology
    placement: Placement | None
    gate: Gate
    balance: str
    regime: str
    compute: str
    quantize: str | None
    prompts: Prompts
    max_new_tokens: int
    sampling: dict[str, Any]
    deadline_s: float
    step_s: float


def checked_settings(
    *,
    model: Path,
    topology: str,
    gpus_per_node: int,
    gate: str,
    balance: str,
    regime: str,
    compute: str,
    quantize: str | None,
    placement: Path | None,
    prompts: Path | None,
    texts: Sequence[str],
    max_new_tokens: int,
    sampling: dict[str, Any],
    deadline_s: float,
    step_s: float,
) -> RunSettings:
    """Check what the command line gave, the cheapest first, and read the files it names.

    Raises:
        JanusError: ``run.*``, ``generate.length``, ``checkpoint.*``, ``topology.parse``, ``placement.*``, ``sched.method``, ``comm.regime``,
            ``experts.compute``, ``experts.quantize``.
    """
    parsed = Topology.parse(topology, gpus_per_node=gpus_per_node)
    known(gate, GATES, "--gate", "run.gate")
    check_without_cost(balance, "--balance", "use DisaggregatedRunner(balance='cost', cost=RooflineCost(...))")
    known(regime, (*REGIMES, "auto"), "--regime", "comm.regime")
    known(compute, ("auto", *COMPUTES), "--compute", "experts.compute")
    if quantize is not None:
        from janus.experts.quantized import FORMATS  # needs torch, which the launcher does without otherwise

        known(quantize, FORMATS, "--quantize", "experts.quantize")
    for name, value in (("--deadline", deadline_s), ("--step-timeout", step_s)):
        if not (math.isfinite(value) and value > 0):
            raise JanusError("run.timeout", f"{name} must be a finite number of seconds > 0, got {value}")
    if max_new_tokens < 1:
        raise JanusError("run.tokens", f"--max-new-tokens must be >= 1, got {max_new_tokens}")
    config = check_folder(model)
    placed = _placement(placement, parsed)
    given = gather_prompts(prompts, texts, model, config)
    check_lengths(given, max_new_tokens, config)
    return RunSettings(
        model=model,
        topology=parsed,
        placement=placed,
        gate=cast(Gate, gate),
        balance=balance,
        regime=regime,
        compute=compute,
        quantize=quantize,
        prompts=given,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        deadline_s=deadline_s,
        step_s=step_s,
    )


def checked_sampling(
    sample: bool, temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None
) -> dict[str, Any]:
    """Keyword arguments of `DisaggregatedRunner.generate`; None leaves its default.

    Raises:
        JanusError: ``run.sample`` for a value out of range, or one that would have no effect.
    """
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not sample:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise JanusError("run.sample", f"{options} has no effect without sampling; add --sample, or leave it out")
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise JanusError("run.sample", f"--temperature must be > 0, got {temperature}; leave --sample out for greedy")
    if top_k is not None and top_k < 1:
        raise JanusError("run.sample", f"--top-k must be >= 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise JanusError("run.sample", f"--top-p must lie in (0, 1], got {top_p}")
    if seed is not None and seed < 0:
        raise JanusError("run.sample", f"--seed must be >= 0, got {seed}")
    return {"do_sample": sample, **given}


def _placement(path: Path | None, topology: Topology) -> Placement | None:
    if path is None:
        return None
    placement = Placement.load(path)
    if placement.num_instances != topology.n_experts:
        rule = f"the placement in {path} is for {placement.num_instances} expert instances, the topology has"
        raise JanusError("run.placement", f"{rule} {topology.n_experts}; use the topology it was made for")
    return placement
