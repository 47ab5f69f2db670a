"""The files that hold routings and expert counts, read without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.types.checks import first_outside, integer, integers, shown
from janus.types.files import NPZ_MAGIC, read_head, read_json, read_npz, reading

FORMAT = "janus.routing/1"
CODE = "routing.file"
Counts = dict[str, npt.NDArray[np.int64]]


def read_routing(path: str | Path, num_experts: int | None) -> dict[str, Any]:
    """The arguments of `RoutingTrace` that a file holds; see `RoutingTrace.load` for the formats."""
    arrays = read_npz(path, CODE)
    if "format" in arrays:
        return _ours(path, arrays, num_experts)
    if "topk" not in arrays:
        names = ", ".join(sorted(arrays)) or "no array"
        raise JanusError(CODE, f"{path} is no routing trace: expected ids (RoutingTrace.save) or topk, found {names}")
    with reading(path, CODE):
        topk_NSLK = integers(arrays["topk"], "topk must be integers [requests, steps, L, K]", CODE, ndim=(4,))
        if 0 in topk_NSLK.shape:
            raise JanusError(CODE, f"topk [requests, steps, L, K] holds nothing: {topk_NSLK.shape}")
        experts = int(topk_NSLK.max()) + 1 if num_experts is None else num_experts
    return {**flattened(topk_NSLK), "num_experts": experts, "source": f"recorded: {Path(path).name}"}


def flattened(topk_NSLK: npt.NDArray[Any]) -> dict[str, Any]:
    """[requests, steps, L, K] -> ids [T, L, K] with t = request * steps + step, and the request and step of each t."""
    requests, steps = topk_NSLK.shape[:2]
    request, step = np.divmod(np.arange(requests * steps), max(steps, 1))
    return {"ids": topk_NSLK.reshape(requests * steps, *topk_NSLK.shape[2:]), "request": request, "step": step}


def read_expert_counts(path: str | Path) -> Counts:
    """Read how many tokens chose each expert: an npz or JSON of named [layers, E] integers.

    Rows that are zero in every recording of one shape are dense layers and left out, so that layers count MoE layers
    only (DeepSeek-V3: 61 rows in the file, 58 here).

    Returns:
        int64 [L, E] by name, in the file's order.

    Raises:
        JanusError: ``routing.file``.
    """
    if read_head(path, CODE)[:2] == NPZ_MAGIC:
        raw: Any = read_npz(path, CODE)
    else:
        raw = read_json(path, CODE)
    if not isinstance(raw, dict) or not raw:
        raise JanusError(CODE, f"{path} must hold an object of named [layers, E] counts, got {shown(raw)}")
    with reading(path, CODE):
        counts = {str(name): _nonnegative(value, f"counts {name!r}", ndim=2) for name, value in raw.items()}
        return {name: value[_moe_rows(counts, value.shape)] for name, value in counts.items()}


def read_cross_layer_counts(path: str | Path) -> Counts:
    """Read joint counts of consecutive recorded layers: int64 [L - 1, E, E] by name (``olmoe/arxiv``).

    Entry [i, e, f] counts choices of expert e at recorded layer i that went with f at recorded layer i + 1: its row
    sums are the counts of layer i, its column sums those of layer i + 1.

    Raises:
        JanusError: ``routing.file``.
    """
    with reading(path, CODE):
        joint = {
            name.replace("__", "/"): _nonnegative(value, f"joint counts {name!r}", ndim=3)
            for name, value in read_npz(path, CODE).items()
        }
        for name, value in joint.items():
            if value.shape[1] != value.shape[2]:
                raise JanusError(CODE, f"joint counts {name!r} must be [L - 1, E, E], got {value.shape}")
    return joint


def _ours(path: str | Path, arrays: dict[str, npt.NDArray[Any]], num_experts: int | None) -> dict[str, Any]:
    fields = {name: arrays[name] for name in ("num_experts", "source", "synthetic") if name in arrays}
    if str(arrays["format"]) != FORMAT or len(fields) < 3 or "ids" not in arrays:
        raise JanusError(CODE, f"{path} is not a routing trace written by RoutingTrace.save ({FORMAT})")
    if any(value.ndim for value in fields.values()) or fields["synthetic"].dtype != bool:
        raise JanusError(CODE, f"{path}: num_experts, source and synthetic must be single values")
    with reading(path, CODE):
        experts = integer(fields["num_experts"], "num_experts", CODE, low=1)
        if num_experts is not None and num_experts != experts:
            raise JanusError(
                CODE, f"the file says {experts} experts, num_experts says {shown(num_experts)}; leave it out"
            )
    optional = {name: arrays[name] for name in ("request", "step") if name in arrays}
    about = {"num_experts": experts, "source": str(fields["source"]), "synthetic": bool(fields["synthetic"])}
    return {"ids": arrays["ids"], **about, **optional}


def _nonnegative(value: Any, what: str, ndim: int) -> npt.NDArray[np.int64]:
    rule = f"{what} must be integers >= 0 in {ndim} dimensions, none empty"
    raw = integers(value, rule, CODE, ndim=(ndim,))
    at = first_outside(raw, 0, 2**53)
    if raw.size == 0 or at is not None:
        raise JanusError(CODE, f"{rule}; got " + (f"{raw.shape}" if at is None else f"{raw[at]} at {list(at)}"))
    return raw.astype(np.int64)


def _moe_rows(counts: Counts, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    total = sum(value.sum(axis=1) for value in counts.values() if value.shape == shape)
    return np.asarray(total) > 0
