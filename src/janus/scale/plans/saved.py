"""A plan read back from the file that `ScalePlan.save` wrote, every field checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from janus.errors import JanusError
from janus.scale.plans.fields import CODE, text
from janus.scale.plans.plan_fields import CHECKS
from janus.types import Placement, Slo, Topology
from janus.types.checks import shown
from janus.types.files import read_json, reading

FORMAT = "janus.plan/1"
MAX_BYTES = 64 * 2**20  # a search of 128 + 128 GPUs writes about 7 MB


@dataclass(frozen=True, eq=False)
class SavedPlan:
    """What a saved plan says: enough to deploy it, compare it or show it, not to search again.

    Args:
        feasible: whether some pair met every constraint.
        binding: the constraint to relax, "" when feasible.
        verdict: one sentence, as `ScalePlan.verdict`.
        disaggregate: as `ScalePlan.disaggregate`.
        model: its name.
        hardware: name of the attention pool's GPU.
        expert_hardware: name of the expert pool's GPU.
        slo: the objective as given.
        n_attention: attention instances, 0 when infeasible.
        n_experts: expert instances, 0 when infeasible.
        batch: requests in flight, 0 when infeasible.
        tpot_ms: mean milliseconds per output token, nan when infeasible.
        topology: the pools, None when infeasible.
        placement: experts of the pool, None when infeasible.
        data: the whole file as plain values, candidates included; nothing above is read from it again.

    Raises:
        JanusError: ``plan.file``.
    """

    feasible: bool
    binding: str
    verdict: str
    disaggregate: bool
    model: str
    hardware: str
    expert_hardware: str
    slo: Slo
    n_attention: int
    n_experts: int
    batch: int
    tpot_ms: float
    topology: Topology | None
    placement: Placement | None
    data: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> SavedPlan:
        """Read what `ScalePlan.save` wrote; fields of later versions of Janus are kept in `data`, unread.

        Raises:
            JanusError: ``plan.file`` for a file above 64 MiB, one that is no plan, and a field that is missing or wrong.
        """
        with reading(path, CODE):
            return cls.from_dict(read_json(path, CODE, MAX_BYTES))

    @classmethod
    def from_dict(cls, data: Any) -> SavedPlan:
        """Inverse of `ScalePlan.to_dict`.

        Raises:
            JanusError: ``plan.file``, or the code of the noun (``placement.range``) that a field breaks.
        """
        if not isinstance(data, dict):
            raise JanusError(CODE, f"a plan is a JSON object, got {shown(data)}")
        _check_format(data.get("format"))
        read = {name: check(_present(data, name), name) for name, check in CHECKS.items()}
        pick = read["pick"]
        _check_agreement(read)
        return cls(
            **{field.name: read[field.name] for field in fields(cls) if field.name in read},
            expert_hardware=text(data.get("expert_hardware", read["hardware"]), "expert_hardware"),
            n_attention=pick["n_a"] if pick else 0,
            n_experts=pick["n_e"] if pick else 0,
            batch=pick["batch"] if pick else 0,
            tpot_ms=pick["tpot_ms"] if pick else math.nan,
            data=data,
        )

    @property
    def gpus(self) -> int:
        """GPUs of both pools, 0 when infeasible.

        Example:
            >>> from janus.scale import Cluster, plan
            >>> few = {"max_attention": 2, "max_experts": 2, "max_batch": 64}
            >>> made = plan("olmoe-1b-7b", Cluster("h100-sxm"), demand=500, slo=50, trace=[range(1, 65)], context=400, **few)
            >>> SavedPlan.from_dict(made.to_dict()).gpus
            2
        """
        return self.n_attention + self.n_experts


def _check_format(found: Any) -> None:
    if found == FORMAT:
        return
    if isinstance(found, str) and found.startswith("janus.plan/"):
        raise JanusError(CODE, f"this version of Janus reads {FORMAT}, the file is {shown(found)}; save it again")
    raise JanusError(CODE, f"not a plan written by ScalePlan.save ({FORMAT}); its format is {shown(found)}")


def _present(data: dict[str, Any], name: str) -> Any:
    if name not in data:
        raise JanusError(CODE, f"a plan holds {name}; it is missing")
    return data[name]


def _check_agreement(read: dict[str, Any]) -> None:
    """Fields that say the same thing twice must say it alike."""
    pick, topology, placement = read["pick"], read["topology"], read["placement"]
    pools = (pick["n_a"], pick["n_e"]) if pick else None
    rejected = sum(1 for candidate in read["candidates"] if candidate["rejected"])
    rules = {
        "feasible must be true where a pick is given": read["feasible"] == (pick is not None),
        "binding must name a constraint where nothing is feasible": bool(read["binding"]) != read["feasible"],
        "topology must have the pick's pools": pools == (topology and (topology.n_attention, topology.n_experts)),
        "placement must have the pick's expert instances": (pick and pick["n_e"])
        == (placement and placement.num_instances),
        "placement must have slots_per_instance slots": placement is None
        or placement.slots_per_instance == read["slots_per_instance"],
        "pick must be one of the candidates and not rejected": pick is None
        or (pick in read["candidates"] and not pick["rejected"]),
        "rejections must count the rejected candidates": sum(read["rejections"].values()) == rejected,
    }
    for rule, holds in rules.items():
        if not holds:
            raise JanusError(CODE, f"{rule}; they disagree in this file")
