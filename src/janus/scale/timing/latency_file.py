"""A latency model as a JSON file: every field checked on the way back, nothing executed."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from janus.errors import JanusError, known
from janus.scale.hardware import Cluster, Hardware
from janus.scale.kernels.fitted import KernelSet
from janus.scale.kernels.fitting import Kernel
from janus.scale.kernels.forms import FORMS, Array
from janus.scale.kernels.groups import KEYS
from janus.scale.model import ModelSpec
from janus.scale.timing.exchange import ExchangeCost
from janus.scale.timing.latency import Efficiency, LatencyModel
from janus.scale.timing.scaled import ScaledLatencyModel, StepTerms
from janus.types.checks import instance, integer, number, shown
from janus.types.files import read_json, reading, write_text

FORMAT = "janus.latency/1"
CODE = "latency.file"
PARTS = ("attention", "moe", "comm", "other")
LARGEST = 2**31  # no count in a model or a cluster comes near it
EXTREME = 1e30  # nor does a number, or its inverse; products of a few stay finite
MOST_RESIDUAL = 69.0  # nor does the logarithm of a ratio: e**69 is about EXTREME
SLOWEST_S, SLOWEST_BYTE_S = 1000.0, 1e-5  # of a message, of a byte: sums are whole femtoseconds of 64 bits
MOST_SCALED = 8  # models scaled on top of each other; factors of 1e30 each would leave the finite numbers
T = TypeVar("T")
Json = dict[str, Any]


def write(latency: LatencyModel, path: str | Path) -> None:
    """Write `latency` as JSON."""
    write_text(path, CODE, json.dumps(to_dict(latency)))


def read(path: str | Path) -> LatencyModel:
    """Read what `write` wrote; whatever is wrong is ``latency.file`` and names the field."""
    data = read_json(path, CODE)
    with reading(path, CODE):
        return from_dict(data)


def to_dict(latency: LatencyModel) -> Json:
    """Plain values, for JSON.

    Raises:
        JanusError: ``latency.file`` for a model or an exchange of somebody else's class: a file could not bring it back.
    """
    owned, terms = latency, []
    while isinstance(latency, ScaledLatencyModel):
        terms.append({**asdict(latency.terms), "points": list(latency.points)})
        latency = latency.base
    for part, kind in ((latency, LatencyModel), (latency.cost, ExchangeCost)):
        if type(part) is not kind:
            raise JanusError(
                CODE, f"a file holds a {kind.__name__} as it is, not a {type(part).__name__}; keep it in memory"
            )
    return _plain_to_dict(latency.owned(owned.cluster, owned.expert_cluster)) | (
        {"scaled": terms[::-1]} if terms else {}
    )


def _plain_to_dict(latency: LatencyModel) -> Json:
    cost, kernels = latency.cost, latency.kernels
    nodes = [cost.gpus_per_node, getattr(cost, "expert_gpus_per_node", cost.gpus_per_node)]
    return {
        "format": FORMAT,
        "model": asdict(latency.model),
        "cluster": asdict(latency.cluster),
        "expert_cluster": asdict(latency.expert_cluster),
        "efficiency": asdict(latency.efficiency),
        "cost": {"node_sizes": nodes[: 1 + (nodes[0] != nodes[1])], "links": cost.model.to_dict()},
        "comm_floor_us": latency.comm_floor_us,
        "notes": latency.notes,
        "kernels": None if kernels is None else _kernels_to_dict(kernels),
    }


def from_dict(data: Any) -> LatencyModel:
    """The model that `to_dict` described.

    Raises:
        JanusError: with the field and the rule it breaks.
    """
    data = dict(_object(data, "a latency file"))
    if data.get("format") != FORMAT:
        raise JanusError(
            CODE, f"format must be {FORMAT!r}, written by LatencyModel.save; got {shown(data.get('format'))}"
        )
    scaled = _scaled(data.pop("scaled")) if "scaled" in data else []
    names = {"format", "model", "cluster", "expert_cluster", "efficiency", "cost", "comm_floor_us", "notes", "kernels"}
    _exactly(data, names, "a latency file")
    floor = _number(data["comm_floor_us"], "comm_floor_us")
    if floor < 0:
        raise JanusError(CODE, f"comm_floor_us must be a finite number >= 0, got {floor}")
    notes = _object(data["notes"], "notes")
    for part, text in notes.items():
        known(part, PARTS, "a part in notes", CODE)
        instance(text, str, f"notes.{part} must be text", CODE, "say where the part's times come from")
    found = LatencyModel(
        record(ModelSpec, data["model"], "model"),
        record(Cluster, data["cluster"], "cluster"),
        record(Efficiency, data["efficiency"], "efficiency"),
        _cost(data["cost"]),
        record(Cluster, data["expert_cluster"], "expert_cluster"),
        None if data["kernels"] is None else _kernels(data["kernels"]),
        floor,
        notes,
    )
    for terms, points in scaled:
        found = ScaledLatencyModel(found, terms, points)
    return found


def record(kind: type[T], data: Any, where: str) -> T:
    """A dataclass from a JSON object: its fields and no others, each of its annotated type; it checks ranges itself.

    Raises:
        JanusError: with the dotted name of the field.
    """
    data, hints = _object(data, where), get_type_hints(kind)
    assert is_dataclass(kind)
    names = [f.name for f in fields(kind) if f.init]
    _exactly(data, set(names), where)
    return kind(**{name: _value(hints[name], data[name], f"{where}.{name}") for name in names})


def _scaled(data: Any) -> list[tuple[StepTerms, list[str]]]:
    """Terms and what they were fitted to, the innermost first."""
    rule = f"scaled must be a list of 1 to {MOST_SCALED} objects"
    listed = instance(data, list, rule, CODE, "use a file written by save")
    if not 1 <= len(listed) <= MOST_SCALED:
        raise JanusError(CODE, f"{rule}, got {len(listed)}")
    found = []
    for i, each in enumerate(listed):
        where = f"scaled[{i}]"
        fitted = dict(_object(each, where))
        points = instance(fitted.pop("points", None), list, f"{where}.points must be a list", CODE, "give [] for none")
        names = [_value(str, name, f"{where}.points") for name in points]
        terms = record(StepTerms, fitted, where)
        if terms.scale <= 0 or min(terms.request_us, terms.row_us) < 0:
            raise JanusError(CODE, f"{where} must have scale > 0, request_us >= 0 and row_us >= 0, got {terms}")
        found.append((terms, names))
    return found


def _value(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        kinds = [h for h in get_args(hint) if h is not type(None)]
        return _value(next((h for h in kinds if is_dataclass(h)), kinds[0]), value, where)
    if get_origin(hint) is Literal:
        return known(value, get_args(hint), where, CODE)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return record(hint, value, where)
    if hint is int:
        return integer(value, where, CODE, high=LARGEST)
    if hint is float:
        return _number(value, where)
    return instance(value, hint, f"{where} must be a {hint.__name__}", CODE, "take it from a file written by save")


def _number(value: Any, where: str) -> float:
    found = number(value, f"{where} must be a finite number", CODE)
    if found and not 1 / EXTREME <= abs(found) <= EXTREME:
        raise JanusError(CODE, f"{where} must be 0 or lie between 1e-30 and 1e30 in size, got {found}")
    return found


def _object(data: Any, what: str) -> Json:
    return instance(data, dict, f"{what} must be a JSON object", CODE, "take it from a file written by save")


def _exactly(data: Mapping[str, Any], names: set[str], where: str) -> None:
    if set(data) != names:
        missing, foreign = sorted(names - set(data)), sorted(map(str, set(data) - names))
        rule = f"{where} must have exactly the fields {', '.join(sorted(names))}"
        raise JanusError(CODE, f"{rule}; missing: {missing}, unknown: {shown(foreign)}")


def _cost(data: Any) -> ExchangeCost:
    from janus.comm.cost import CostModel

    data = _object(data, "cost")
    _exactly(data, {"node_sizes", "links"}, "cost")
    links = _object(data["links"], "cost.links")
    _exactly(links, {f.name for f in fields(CostModel) if f.init}, "cost.links")
    model = CostModel(**links)
    levels = (getattr(model, f.name) for f in fields(model) if f.name.endswith(("alpha_s", "per_byte")))
    largest = max(model.round_s, *(s for level in levels for s in level.values()))
    slowest = max(s for f in fields(model) if f.name.endswith("per_byte") for s in getattr(model, f.name).values())
    factors = [f for points in model.factors.values() for _, f in points]
    if largest > SLOWEST_S or slowest > SLOWEST_BYTE_S or max(factors, default=1.0) > SLOWEST_S:
        raise JanusError(CODE, f"cost.links must be at most {SLOWEST_S:g} s each, {SLOWEST_BYTE_S:g} s per byte")
    sizes = instance(data["node_sizes"], list, "cost.node_sizes must be a list", CODE, "give [8], or one per pool")
    if len(sizes) not in (1, 2):
        raise JanusError(CODE, f"cost.node_sizes must hold one or two sizes, got {shown(sizes)}")
    return ExchangeCost(model, *(integer(s, "cost.node_sizes", CODE, 1, LARGEST) for s in sizes))


def _kernels_to_dict(kernels: KernelSet) -> Json:
    return {
        "hardware": asdict(kernels.hardware),
        "fitted": [
            {name: _plain(getattr(kernel, name)) for name in (f.name for f in fields(Kernel) if f.init)}
            for kernel in kernels.kernels
        ],
    }


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _kernels(data: Any) -> KernelSet:
    data = _object(data, "kernels")
    _exactly(data, {"hardware", "fitted"}, "kernels")
    listed = instance(data["fitted"], list, "kernels.fitted must be a list", CODE, "use a file written by save")
    fitted = tuple(_kernel(each, f"kernels.fitted[{i}]") for i, each in enumerate(listed))
    return KernelSet(fitted, record(Hardware, data["hardware"], "kernels.hardware"))


def _kernel(data: Any, where: str) -> Kernel:
    data = _object(data, where)
    _exactly(data, {f.name for f in fields(Kernel) if f.init}, where)
    form = known(data["form"], FORMS, f"{where}.form", CODE)
    coefficients = _object(data["coefficients"], f"{where}.coefficients")
    _exactly(coefficients, set(FORMS[form].start), f"{where}.coefficients")
    key = _object(data["key"], f"{where}.key")
    _exactly(key, set(KEYS[form]), f"{where}.key")
    us = _column(data["us"], f"{where}.us", positive=True)
    return Kernel(
        _value(str, data["kind"], f"{where}.kind"),
        _value(str, data["source"], f"{where}.source"),
        form,
        {name: _of_key(kind, key[name], f"{where}.key.{name}") for name, kind in KEYS[form].items()},
        {name: _positive(value, f"{where}.coefficients.{name}") for name, value in coefficients.items()},
        _points(data["points"], len(FORMS[form].coordinates), len(us), f"{where}.points"),
        us,
        _residuals(data["residual"], us, f"{where}.residual"),
        abs(_number(data["error"], f"{where}.error")),
    )


def _of_key(kind: Any, value: Any, where: str) -> Any:
    """Sizes of a shape are never 0: their logarithm says how near another shape is."""
    return _positive(value, where) if kind is float else _value(kind, value, where)


def _positive(value: Any, where: str) -> float:
    found = _number(value, where)
    if found <= 0:
        raise JanusError(CODE, f"{where} must be a finite number > 0, got {found}")
    return found


def _column(values: Any, where: str, positive: bool = False) -> Array:
    listed = instance(values, list, f"{where} must be a list of numbers", CODE, "use a file written by save")
    found = np.array([_number(v, where) for v in listed], dtype=np.float64)
    if positive and (found <= 0).any():
        raise JanusError(CODE, f"{where} must be a list of numbers > 0, got {found.min()}")
    return found


def _points(values: Any, width: int, count: int, where: str) -> Array:
    listed = instance(values, list, f"{where} must be a list of lists", CODE, "use a file written by save")
    rows = [_column(row, where, positive=True) for row in listed]
    if len(rows) != count or any(len(row) != width for row in rows):
        raise JanusError(CODE, f"{where} must hold {width} numbers for each of the {count} times in us")
    return np.array(rows, dtype=np.float64).reshape(count, width)


def _residuals(values: Any, us: Array, where: str) -> Array:
    found = _column(values, where)
    if len(found) != len(us):
        raise JanusError(CODE, f"{where} must hold as many numbers as us, {len(us)}; got {len(found)}")
    beyond = found[np.abs(found) > MOST_RESIDUAL]
    if len(beyond):
        most = f"from {-MOST_RESIDUAL:g} to {MOST_RESIDUAL:g}"
        raise JanusError(CODE, f"{where} must hold logarithms of a time over its form's, {most}; got {beyond[0]:g}")
    return found
