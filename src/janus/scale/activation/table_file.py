"""An `ActivationTable` as one npz: its rows, the placements they were measured on, and the routing, to measure more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError, known
from janus.scale.activation.batches import Routing
from janus.scale.activation.montecarlo import MonteCarlo, Row
from janus.scale.activation.store import Arrays, Store
from janus.sched.backends import check_without_cost
from janus.sched.placing import METHODS
from janus.types import Placement, RoutingTrace
from janus.types.checks import integer
from janus.types.files import read_npz, reading, write_npz

if TYPE_CHECKING:
    from janus.scale.activation.table import ActivationTable

FORMAT = "janus.scale.activation.table/1"
CODE = "activation.file"
_VALUES = ("mean", "stderr", "worst", "tokens", "deviation")
_TEXTS = ("format", "source", "method", "placing")
_NUMBERS = {"top_k": 1, "layers": 1, "samples": 2, "seed": 0}


def save(table: ActivationTable, path: str | Path) -> None:
    """Write the table, whole or not at all."""
    carlo = table.carlo
    routing, pairs = carlo.routing, list(table.rows)
    head = {"format": FORMAT, "source": table.source, "method": table.method, "placing": carlo.placing}
    head |= {"top_k": routing.top_k, "layers": len(carlo.layers), "samples": carlo.samples, "seed": carlo.seed}
    head |= {"synthetic": routing.synthetic}
    arrays = {
        "head": np.array(json.dumps(head)),
        "batch_sizes": np.array(table.batch_sizes, dtype=np.int64),
        "pairs": np.array(pairs, dtype=np.int64).reshape(-1, 2),
        "values": np.array([[getattr(table.rows[p], name) for name in _VALUES] for p in pairs], dtype=np.float64),
        "correlation": np.array([table.rows[p].correlation for p in pairs], dtype=np.float64),
        "counts": np.asarray(routing.counts),
    }
    if routing.trace is not None:
        arrays["ids"] = routing.trace.ids
    arrays |= {f"slots{i}": carlo.placement(*pair).slots for i, pair in enumerate(pairs)}
    write_npz(path, CODE, **arrays)


def load(path: str | Path, cache: bool | str | Path) -> dict[str, Any]:
    """What `ActivationTable` is made of; whatever is wrong with the file is ``activation.file``."""
    arrays = read_npz(path, CODE)
    with reading(path, CODE):
        head = _head(arrays)
        sizes, pairs = _whole(arrays, "batch_sizes", (-1,)), _whole(arrays, "pairs", (-1, 2))
        if not len(sizes) or (np.diff(sizes) <= 0).any() or len(set(map(tuple, pairs.tolist()))) != len(pairs):
            raise JanusError(CODE, "batch sizes must ascend, at least one, and every pair be there once")
        routing = _routing(head, arrays)
        how = {name: head[name] for name in ("method", "placing", "layers", "samples", "seed")}
        carlo = MonteCarlo(routing, tuple(sizes.tolist()), **how, store=Store.of(cache))
        values = _numbers(arrays, "values", (len(pairs), len(_VALUES), len(sizes)))
        common = _numbers(arrays, "correlation", (len(pairs),))
        rows = {}
        for i, (n_e, slots) in enumerate(pairs.tolist()):
            of_pair = [tuple(v) for v in values[i].tolist()]
            rows[n_e, slots] = Row(**dict(zip(_VALUES, of_pair, strict=True)), correlation=float(common[i]))
            carlo.know(n_e, slots, _placement(arrays, f"slots{i}", (len(carlo.layers), n_e, slots), routing))
    return {"batch_sizes": carlo.batch_sizes, "rows": rows, "source": head["source"], "method": head["method"], "carlo": carlo}  # fmt: skip


def _head(arrays: Arrays) -> dict[str, Any]:
    try:
        head = json.loads(str(_array(arrays, "head")))
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise JanusError(CODE, "this is no table written by ActivationTable.save")
    if not all(isinstance(head.get(name), str) for name in _TEXTS) or not isinstance(head.get("synthetic"), bool):
        raise JanusError(CODE, f"the head must hold the texts {', '.join(_TEXTS)} and synthetic, got {head!r:.200}")
    for name, least in _NUMBERS.items():
        integer(head.get(name), name, CODE, least)
    known(head["placing"], METHODS, "placing", CODE)
    check_without_cost(head["method"], "method", "the table counts activated experts")
    return head


def _routing(head: dict[str, Any], arrays: Arrays) -> Routing:
    if "ids" not in arrays:
        made = Routing.of(_array(arrays, "counts"), head["top_k"])
        return Routing(made.counts, made.top_k, None, head["source"], head["synthetic"])
    experts = np.atleast_2d(_array(arrays, "counts")).shape[1]
    trace = RoutingTrace(arrays["ids"], experts, source=head["source"], synthetic=head["synthetic"])
    if trace.top_k != head["top_k"]:
        raise JanusError(CODE, f"the tokens choose {trace.top_k} experts, the head says {head['top_k']}")
    return Routing.of(trace)


def _placement(arrays: Arrays, name: str, shape: tuple[int, int, int], routing: Routing) -> Placement:
    slots = _array(arrays, name)
    if slots.shape != shape:
        raise JanusError(CODE, f"{name} must be {shape}, got {slots.shape}")
    return Placement(slots, routing.counts.shape[1])


def _array(arrays: Arrays, name: str) -> npt.NDArray[Any]:
    if name not in arrays:
        raise JanusError(CODE, f"the array {name!r} is missing")
    return arrays[name]


def _whole(arrays: Arrays, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    found = _array(arrays, name)
    if found.ndim != len(shape) or found.shape[1:] != shape[1:] or found.dtype != np.int64 or (found < 1).any():
        raise JanusError(CODE, f"{name} must be int64 {list(shape)} (-1: any), >= 1, got {found.dtype} {found.shape}")
    return found


def _numbers(arrays: Arrays, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    found = _array(arrays, name)
    if found.shape != shape or found.dtype != np.float64 or not np.isfinite(found).all() or (found < 0).any():
        raise JanusError(CODE, f"{name} must be float64 {shape}, finite and >= 0, got {found.dtype} {found.shape}")
    return found
