"""What every field of a plan file must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from janus.errors import JanusError, known
from janus.scale.plans.fields import CODE, Check, count, flag, least, optional, plain_object, record, text
from janus.scale.timing.latency import Breakdown
from janus.types import Placement, Slo, Topology
from janus.types.checks import integer, shown


def _deployment(sizes: dict[str, Check], gpus: Callable[[dict[str, Any]], int], more: dict[str, Check]) -> Check:
    """A pair of pools or a colocated deployment: sizes, and as many GPUs as they make."""
    fields_of = record(sizes | {"batch": lambda v, n: integer(v, n, CODE), "gpus": count} | more)

    def check(value: Any, name: str) -> dict[str, Any]:
        found = fields_of(value, name)
        if found["gpus"] != gpus(found):
            raise JanusError(CODE, f"{name}.gpus must be {gpus(found)}, what its pools make, got {found['gpus']}")
        return found

    return check


_BREAKDOWN = record({field.name: least(0) for field in fields(Breakdown)})
_POSITIVE = least(0, above=True)
_CANDIDATE = _deployment(
    {"n_a": count, "n_e": count},
    lambda c: c["n_a"] + c["n_e"],
    {
        "breakdown": optional(_BREAKDOWN),
        "tpot_ms": optional(_POSITIVE),
        "throughput": optional(least(0)),
        "rejected": text,
        "detail": text,
    },
)
_COLOCATED = _deployment(
    {"width": count, "copies": count, "slots": count},
    lambda c: c["width"] * c["copies"],
    {"breakdown": _BREAKDOWN, "tpot_ms": _POSITIVE, "throughput": _POSITIVE},
)


def _pick(value: Any, name: str) -> dict[str, Any]:
    found = _CANDIDATE(value, name)
    for field in ("batch", "tpot_ms"):
        _POSITIVE(found[field], f"{name}.{field}")
    return found


def _candidates(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise JanusError(CODE, f"{name} must be a list of pairs, got {shown(value)}")
    return [_CANDIDATE(candidate, f"{name}[{i}]") for i, candidate in enumerate(value)]


def _rejections(value: Any, name: str) -> dict[str, int]:
    return {rule: count(times, f"{name}.{rule}") for rule, times in plain_object(value, name).items()}


def _slo(value: Any, name: str) -> Slo:
    found = record({"tpot_ms": _POSITIVE, "percentile": _POSITIVE})(value, name)
    return Slo(found["tpot_ms"], found["percentile"])


CHECKS: dict[str, Check] = {
    "model": text,
    "hardware": text,
    "feasible": flag,
    "binding": text,
    "verdict": text,
    "disaggregate": flag,
    "demand": optional(_POSITIVE),
    "headroom": record({"rate": least(1), "length": least(1)}),
    "slo": _slo,
    "context": _POSITIVE,
    "prefill": lambda value, name: known(value, ("elsewhere", "attention"), name, CODE),
    "routing": text,
    "slots_per_instance": count,
    "pick": optional(_pick),
    "colocated": optional(_COLOCATED),
    "topology": optional(lambda value, _: Topology.from_dict(value)),
    "rejections": _rejections,
    "candidates": _candidates,
    "placement": optional(lambda value, _: Placement.from_dict(value)),
}
