"""A plan read back from the file that `ScalePlan.save` wrote, every field checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from janus.errors import JanusError, known
from janus.scale.latency import Breakdown
from janus.types import Placement, Slo, Topology
from janus.types.checks import integer, number, shown
from janus.types.files import read_json, reading

FORMAT = "janus.plan/1"
CODE = "plan.file"
MAX_BYTES = 64 * 2**20  # a search of 128 + 128 GPUs writes about 7 MB
Check = Callable[[Any, str], Any]


@dataclass(frozen=True, eq=False)
class SavedPlan:
    """What a saved plan says: enough to deploy it, compare it or show it, not to search again.

    Args:
        feasible: whether some pair met every constraint.
        binding: the constraint to relax, "" when feasible.
        verdict: one sentence, as `ScalePlan.verdict`.
        disaggregate: as `ScalePlan.disaggregate`.
        model, hardware: names.
        slo: the objective as given.
        n_attention, n_experts: instances, 0 when infeasible.
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


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise JanusError(CODE, f"{name} must be a text, got {shown(value)}")
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise JanusError(CODE, f"{name} must be true or false, got {shown(value)}")
    return value


def _count(value: Any, name: str) -> int:
    return integer(value, name, CODE, low=1)


def _least(low: float, *, above: bool = False) -> Check:
    rule = f"must be a finite number {'>' if above else '>='} {low:g}"

    def check(value: Any, name: str) -> float:
        out = number(value, f"{name} {rule}", CODE)
        if out < low or (above and out == low):
            raise JanusError(CODE, f"{name} {rule}, got {shown(value)}")
        return out

    return check


def _optional(check: Check) -> Check:
    return lambda value, name: None if value is None else check(value, name)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise JanusError(CODE, f"{name} must be an object, got {shown(value)}")
    return value


def _record(checks: dict[str, Check]) -> Check:
    """An object with these fields at least."""

    def check(value: Any, name: str) -> dict[str, Any]:
        found = _object(value, name)
        for field, of_field in checks.items():
            if field not in found:
                raise JanusError(CODE, f"{name} holds {field}; it is missing")
            of_field(found[field], f"{name}.{field}")
        return found

    return check


def _deployment(sizes: dict[str, Check], gpus: Callable[[dict[str, Any]], int], more: dict[str, Check]) -> Check:
    """A pair of pools or a colocated deployment: sizes, and as many GPUs as they make."""
    record = _record(sizes | {"batch": lambda v, n: integer(v, n, CODE), "gpus": _count} | more)

    def check(value: Any, name: str) -> dict[str, Any]:
        found = record(value, name)
        if found["gpus"] != gpus(found):
            raise JanusError(CODE, f"{name}.gpus must be {gpus(found)}, what its pools make, got {found['gpus']}")
        return found

    return check


_BREAKDOWN = _record({field.name: _least(0) for field in fields(Breakdown)})
_POSITIVE = _least(0, above=True)
_CANDIDATE = _deployment(
    {"n_a": _count, "n_e": _count},
    lambda c: c["n_a"] + c["n_e"],
    {
        "breakdown": _optional(_BREAKDOWN),
        "tpot_ms": _optional(_POSITIVE),
        "throughput": _optional(_least(0)),
        "rejected": _text,
        "detail": _text,
    },
)
_COLOCATED = _deployment(
    {"width": _count, "copies": _count, "slots": _count},
    lambda c: c["width"] * c["copies"],
    {"breakdown": _BREAKDOWN, "tpot_ms": _POSITIVE, "throughput": _POSITIVE},
)


def _pick(value: Any, name: str) -> dict[str, Any]:
    found = _CANDIDATE(value, name)
    for field in ("batch", "tpot_ms"):
        _POSITIVE(found[field], f"{name}.{field}")
    return found


def _candidates(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise JanusError(CODE, f"{name} must be a list of pairs, at least one, got {shown(value)}")
    return [_CANDIDATE(candidate, f"{name}[{i}]") for i, candidate in enumerate(value)]


def _rejections(value: Any, name: str) -> dict[str, int]:
    return {rule: _count(count, f"{name}.{rule}") for rule, count in _object(value, name).items()}


def _slo(value: Any, name: str) -> Slo:
    found = _record({"tpot_ms": _POSITIVE, "percentile": _POSITIVE})(value, name)
    return Slo(found["tpot_ms"], found["percentile"])


CHECKS: dict[str, Check] = {
    "model": _text,
    "hardware": _text,
    "feasible": _flag,
    "binding": _text,
    "verdict": _text,
    "disaggregate": _flag,
    "demand": _optional(_POSITIVE),
    "headroom": _least(1),
    "slo": _slo,
    "context": _POSITIVE,
    "prefill": lambda value, name: known(value, ("elsewhere", "attention"), name, CODE),
    "routing": _text,
    "slots_per_instance": _count,
    "pick": _optional(_pick),
    "colocated": _optional(_COLOCATED),
    "topology": _optional(lambda value, _: Topology.from_dict(value)),
    "rejections": _rejections,
    "candidates": _candidates,
    "placement": _optional(lambda value, _: Placement.from_dict(value)),
}
