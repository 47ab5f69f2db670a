"""What the planner hands back."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from janus.errors import JanusError
from janus.scale.search.colocated import Colocated
from janus.scale.search.memory import pool_memory
from janus.scale.search.problems import Asked
from janus.scale.search.solve import CONSTRAINTS, Candidate, Problem, evaluate
from janus.types import Placement, Slo, Topology
from janus.types.checks import shown
from janus.types.files import write_text


@dataclass(frozen=True, eq=False)
class ScalePlan:
    """The chosen pool sizes with everything they were compared against; infeasible is a value too.

    Args:
        pick: the chosen candidate, or None when no pair is feasible.
        candidates: every pair that was evaluated.
        colocated: least cost without disaggregation, or None when that is infeasible too.
        placement: replicas for the chosen expert pool, or None.
        problem: what was asked, resolved, of the chosen types of GPU.
        asked: the arguments.
        problems: one per pair of types that the pools may use.
        proof: ``"optimal: ..."``, or how far the search came when it was cut short.
    """

    pick: Candidate | None
    candidates: tuple[Candidate, ...]
    colocated: Colocated | None
    placement: Placement | None
    problem: Problem
    asked: Asked
    problems: tuple[Problem, ...]
    proof: str

    @property
    def slo(self) -> Slo:
        """The objective as given."""
        return self.asked.slo

    @property
    def demand(self) -> float | None:
        """Output tokens/s asked, without headroom; None when the batch was fixed."""
        return self.asked.demand

    @property
    def headroom(self) -> float:
        """Factor on the demand that was planned for."""
        return self.asked.headroom.rate

    @property
    def prefill(self) -> str:
        """``"elsewhere"`` or ``"attention"``."""
        return self.asked.prefill

    @property
    def routing(self) -> str:
        """What the activation table was measured on."""
        return self.asked.routing.source

    @property
    def feasible(self) -> bool:
        """True when some pair meets every constraint."""
        return self.pick is not None

    @property
    def n_attention(self) -> int:
        """Attention instances, 0 when infeasible."""
        return self.pick.n_a if self.pick else 0

    @property
    def n_experts(self) -> int:
        """Expert instances, 0 when infeasible."""
        return self.pick.n_e if self.pick else 0

    @property
    def gpus(self) -> int:
        """GPUs of both pools, 0 when infeasible."""
        return self.n_attention + self.n_experts

    @property
    def batch(self) -> int:
        """Requests in flight, 0 when infeasible."""
        return self.pick.batch if self.pick else 0

    @property
    def tpot_ms(self) -> float:
        """Mean time per output token, milliseconds; nan when infeasible."""
        return self.pick.tpot_ms if self.pick else float("nan")

    @property
    def tpot_percentile_ms(self) -> float:
        """TPOT at the SLO's percentile, milliseconds; nan when infeasible."""
        return self.pick.tail_ms if self.pick else float("nan")

    @property
    def usd_per_hour(self) -> float | None:
        """Price of both pools; None when a GPU has no price or the plan is infeasible."""
        return self.pick.usd_per_hour if self.pick else None

    @property
    def memory(self) -> dict[str, dict[str, float]]:
        """Bytes per GPU of the chosen pools: what is usable, and what takes it; empty when infeasible."""
        return pool_memory(self.problem, self.pick.n_a, self.pick.batch) if self.pick else {}

    @property
    def throughput(self) -> float:
        """Output tokens per second, batch / TPOT; 0 when infeasible."""
        return self.pick.throughput if self.pick else 0.0

    @property
    def tokens_per_gpu_s(self) -> float:
        """Output tokens per second and GPU, every GPU of both pools counted; 0 when infeasible."""
        return self.throughput / self.gpus if self.gpus else 0.0

    @property
    def topology(self) -> Topology:
        """The pools on nodes of their own.

        Raises:
            JanusError: ``scale.infeasible``.
        """
        if self.pick is None:
            raise JanusError("scale.infeasible", f"an infeasible plan has no topology; {self.verdict}")
        latency = self.problem.latency
        attention = Topology.parse(self.pick.name, gpus_per_node=latency.cluster.node_size).attention
        experts = Topology.parse(self.pick.name, gpus_per_node=latency.expert_cluster.node_size).experts
        return Topology(attention, experts)

    @cached_property
    def rejections(self) -> dict[str, int]:
        """How many candidates each constraint rejected, in the order of the checks."""
        counts = Counter(c.rejected for c in self.candidates if c.rejected)
        return {name: counts[name] for name in CONSTRAINTS if counts[name]}

    @property
    def binding(self) -> str:
        """The constraint to relax: "" when feasible, else the last one that any candidate got as far as.

        ``"time_limit"`` when the search was cut short before it found a feasible pair: there may be one.
        """
        if self.feasible:
            return ""
        return list(self.rejections)[-1] if self.proof.startswith("optimal") else "time_limit"

    @property
    def disaggregate(self) -> bool:
        """False when the colocated optimum costs less, or as much with fewer GPUs or a lower TPOT, or nothing is feasible."""
        if self.pick is None or self.colocated is None:
            return self.feasible
        return _order(self.pick, self.objective) <= self.colocated.order(self.objective)

    @property
    def objective(self) -> str:
        """What was minimised: ``"gpus"`` or ``"usd"``."""
        return self.problem.objective

    @property
    def verdict(self) -> str:
        """One sentence: what to deploy and what it was compared with."""
        if self.pick is None and self.colocated is None:
            if self.binding == "time_limit":
                return (
                    "Undecided: no feasible pair was found in the time there was, and nothing colocated meets the SLO."
                )
            return f"Infeasible: no deployment meets the SLO; the binding constraint is {self.binding}."
        ours, alone = _ours(self.pick, self.binding), _alone(self.colocated)
        return f"{'Disaggregate' if self.disaggregate else 'Do not disaggregate'}: {ours}; {alone}."

    def explain(self, name: str) -> str:
        """Why a pair was or was not chosen: the constraint and its values.

        Args:
            name: ``"1A5E"``.

        Raises:
            JanusError: ``topology.parse``, ``scale.explain`` (not among the candidates).
        """
        match = re.fullmatch(r"\s*(\d{1,9})A(\d{1,9})E\s*", str(name), flags=re.IGNORECASE)
        if match is None:
            raise JanusError("topology.parse", f"a pair of pools reads like '1A5E', got {shown(name)}")
        n_a, n_e = int(match[1]), int(match[2])
        if not (1 <= n_a <= self.problem.max_attention and 1 <= n_e <= self.problem.max_experts):
            limits = f"n_a in 1..{self.problem.max_attention}, n_e in 1..{self.problem.max_experts}"
            raise JanusError("scale.explain", f"{name} was not searched; {limits}; raise max_attention or max_experts")
        seen = [c for c in self.candidates if (c.n_a, c.n_e) == (n_a, n_e)]
        known_kinds = {c.kinds for c in seen}
        seen += [evaluate(p, n_a, n_e) for p in self.problems if p.kinds not in known_kinds]
        return "\n".join(f"{found.name}{self._kinds(found)}: {self._why(found)}" for found in seen)

    def _kinds(self, found: Candidate) -> str:
        return " on " + " + ".join(found.kinds) if len(self.problems) > 1 else ""

    def _why(self, found: Candidate) -> str:
        if found.rejected:
            return f"rejected by {found.rejected}: {found.detail}"
        is_so = f"feasible, TPOT {found.tpot_ms:.1f} ms at batch {found.batch}"
        if found is self.pick:
            return f"chosen: {is_so}, {found.gpus} GPUs"
        if self.pick is None or _order(found, self.objective) < _order(self.pick, self.objective):
            than = f"better than {self.pick.name}, " if self.pick else ""
            return f"{is_so}, {self._cost(found)}: {than}but the search was cut short before it"
        if found.cost(self.objective) > self.pick.cost(self.objective):
            more, less = self._cost(found), self._cost(self.pick)
            return f"{is_so}, but {more} where {self.pick.name} needs {less}"
        if found.gpus > self.pick.gpus:
            return f"{is_so}, at the same cost, but {found.gpus} GPUs where {self.pick.name} needs {self.pick.gpus}"
        return f"{is_so}, as many GPUs as {self.pick.name}, whose TPOT is {self.pick.tpot_ms:.1f} ms"

    def _cost(self, found: Candidate) -> str:
        return f"{found.gpus} GPUs" if self.objective == "gpus" else f"{found.cost('usd'):.2f} $/h"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times in ms, rates in tokens/s."""
        p = self.problem
        return {
            "format": "janus.plan/1",
            "model": p.latency.model.name,
            "hardware": p.latency.cluster.gpu.name,
            "expert_hardware": p.latency.expert_cluster.gpu.name,
            "objective": self.objective,
            "proof": self.proof,
            "feasible": self.feasible,
            "binding": self.binding,
            "verdict": self.verdict,
            "disaggregate": self.disaggregate,
            "demand": self.demand,
            "headroom": asdict(self.asked.headroom),
            "slo": asdict(self.slo),
            "context": self.asked.context,
            "context_cv": p.context_cv,
            "prefill": self.prefill,
            "routing": self.routing,
            "provenance": p.latency.provenance,
            "slots_per_instance": p.slots,
            "pick": _candidate(self.pick),
            "colocated": _plain(self.colocated),
            "memory": self.memory,
            "topology": self.topology.to_dict() if self.pick else None,
            "rejections": self.rejections,
            "candidates": [_candidate(c) for c in self.candidates],
            "placement": self.placement.to_dict() if self.placement else None,
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, whole or not at all.

        Raises:
            JanusError: ``scale.save`` for a path that cannot be written.
        """
        write_text(path, "scale.save", json.dumps(self.to_dict()))

    def plot(self, path: str | Path, what: str = "space") -> None:
        """Draw the plan to an image file (.png, .svg, .pdf). Needs matplotlib.

        Args:
            path: of the picture.
            what: ``"space"`` (every pair, coloured by TPOT, the pick marked), ``"breakdown"`` (where the time goes, split
                beside colocated) or ``"activation"`` (a_max over batch sizes).

        Raises:
            JanusError: ``scale.plot``.
        """
        from janus.scale.pictures import draw

        draw(self, path, what)

    def report(self, path: str | Path, command: Sequence[str] = ()) -> None:
        """Write one self-contained HTML page about the plan, for whoever decides. Needs matplotlib.

        Args:
            path: of the page.
            command: words of the command line that made the plan, told so that it can be repeated.

        Raises:
            JanusError: ``scale.plot`` without matplotlib, ``scale.report`` for a path that cannot be written.
        """
        from janus.scale.html import plan_page

        write_text(path, "scale.report", plan_page(self, command))

    def __str__(self) -> str:
        from janus.scale.plans.report import render

        return str(render(self, style="plain"))


def _order(found: Candidate, objective: str) -> tuple[float, int, float]:
    return found.cost(objective), found.gpus, found.tpot_ms


def _plain(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    out = {key: _json(item) for key, item in asdict(value).items()}
    return out | {"gpus": value.gpus}


def _json(item: Any) -> Any:
    if isinstance(item, tuple):
        return list(item)
    return None if item != item else item  # nan is not JSON


def _candidate(value: Candidate | None) -> dict[str, Any] | None:
    out = _plain(value)
    if out is not None and value is not None:
        out["throughput"] = value.throughput if value.batch else None
    return out


def _ours(pick: Candidate | None, binding: str) -> str:
    if pick is None:
        none = "no feasible pair of pools was found" if binding == "time_limit" else "no pair of pools is feasible"
        return f"{none} ({binding})"
    return (
        f"{pick.name} on {pick.gpus} GPUs{_price(pick.usd_per_hour)}, TPOT {pick.tpot_ms:.1f} ms, "
        f"{pick.throughput / pick.gpus:.0f} tokens/s/GPU"
    )


def _price(usd: float | None) -> str:
    return "" if usd is None else f" for {usd:.2f} $/h"


def _alone(colocated: Colocated | None) -> str:
    if colocated is None:
        return "no colocated deployment is feasible"
    c = colocated
    times = f"{c.copies} x " if c.copies > 1 else ""
    return (
        f"colocated {times}EP{c.width} on {c.gpus} GPUs{_price(c.usd_per_hour)}, TPOT {c.tpot_ms:.1f} ms, "
        f"{c.tokens_per_gpu_s:.0f} tokens/s/GPU"
    )
