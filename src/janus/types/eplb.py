"""The maps that EPLB's users hold, also those of SGLang and vLLM: read, compared, and refused where they disagree."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.types.checks import first_outside, integer, integers

CODE = "placement.eplb"
Ints = npt.NDArray[np.integer[Any]]


def read_maps(phy2log: Any, num_instances: Any, num_experts: Any, log2phy: Any, logcnt: Any) -> tuple[Ints, int]:
    """What `Placement.from_eplb` was given as one map [L, R] (or [R]), and the number of experts E.

    Args:
        phy2log: integers [L, R] or [R], or None when `log2phy` is given.
        num_instances: G, a divisor of R.
        num_experts: E; None: that of `log2phy` or `logcnt`, else the largest expert + 1.
        log2phy: integers [L, E, X] or [E, X], padded with -1, or None.
        logcnt: integers [L, E] or [E], or None.

    Raises:
        JanusError: ``placement.shape``, ``placement.range``, ``placement.eplb`` where two maps disagree.
    """
    rule = "phy2log must be integers [L, R] or [R] with R divisible by num_instances"
    back = None if log2phy is None else _ints(log2phy, "log2phy must be integers [L, E, X] or [E, X]", (2, 3))
    if phy2log is None and back is None:
        raise JanusError("placement.shape", f"{rule}; got None; give phy2log or log2phy=")
    instances = integer(num_instances, "num_instances", "placement.shape", low=1)
    physical = _filled(back) if phy2log is None else _ints(phy2log, rule, (1, 2))
    if physical.shape[-1] % instances:
        raise JanusError("placement.shape", f"{rule}; got {physical.shape} and {instances} instances")
    counted = None if logcnt is None else _ints(logcnt, "logcnt must be integers [L, E] or [E]", (1, 2))
    experts = _experts(physical, num_experts, back, counted)
    if back is not None and phy2log is not None:
        _compare(physical, _inverse(back, physical.shape), "physical id", "expert", "log2phy")
    if counted is not None:
        _check_shape("logcnt", counted, (*physical.shape[:-1], experts))
        _compare(_replicas(physical, experts), counted, "expert", "replicas", "logcnt")
    return physical, experts


def _ints(value: Any, rule: str, ndim: tuple[int, ...]) -> Ints:
    """Lists, arrays and tensors; a tensor on a GPU is copied to the host."""
    torch = sys.modules.get("torch")  # who holds a tensor has imported torch already
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            value = value.detach().cpu().numpy()  # host sync here for a GPU's tensor
        except Exception as error:  # a tensor without data, a dtype that NumPy lacks
            raise JanusError("placement.shape", f"{rule}; got a tensor that has no host copy ({error})") from None
    raw = integers(value, rule, "placement.shape", ndim)
    if raw.size == 0:
        raise JanusError("placement.shape", f"{rule}, and none of the sizes 0; got {raw.shape}")
    return raw


def _filled(log2phy: Any) -> Ints:
    """phy2log from log2phy alone, which says how many slots there are only when it names them all."""
    slots = int(log2phy.max()) + 1
    named = (log2phy >= 0).sum(axis=(-2, -1))
    if slots < 1 or (named != slots).any():
        rule = "log2phy alone must name every physical id 0..R-1 once in each layer"
        raise JanusError(CODE, f"{rule}; the largest is {slots - 1}, layers name {_few(named)} ids; give phy2log too")
    return _inverse(log2phy, (*log2phy.shape[:-2], slots))


def _inverse(log2phy: Ints, shape: tuple[int, ...]) -> Ints:
    """The phy2log, of shape [L, R] or [R], in which each physical id holds the expert that names it, else -1."""
    _check_shape("log2phy", log2phy, (*shape[:-1], *log2phy.shape[-2:]))
    maps = log2phy.reshape(-1, *log2phy.shape[-2:])
    at = first_outside(maps, -1, shape[-1] - 1)
    if at is not None:
        rule = f"log2phy holds -1 or a physical id in 0..{shape[-1] - 1}"
        raise JanusError("placement.range", f"{rule}; layer {at[0]}, expert {at[1]} holds {maps[at]}")
    layer, expert, place = np.nonzero(maps >= 0)
    named = maps[layer, expert, place].astype(np.int64)
    out = np.full((len(maps), shape[-1]), -1, dtype=np.int64)
    out[layer, named] = expert
    twice = np.flatnonzero(out[layer, named] != expert)  # the last expert to name an id keeps it
    if len(twice) or len(named) != np.count_nonzero(out >= 0):
        rule = "a physical id holds one expert, but log2phy names one twice"
        raise JanusError(CODE, rule + (f": {named[twice[0]]} of layer {layer[twice[0]]}" if len(twice) else ""))
    return out.reshape(shape)


def _experts(physical: Ints, num_experts: Any, log2phy: Ints | None, logcnt: Ints | None) -> int:
    """E: what was asked for, and the same in every map that states it."""
    found: dict[str, int] = {}
    if log2phy is not None:
        found["log2phy"] = log2phy.shape[-2]
    if logcnt is not None:
        found["logcnt"] = logcnt.shape[-1]
    if num_experts is not None:
        found["num_experts"] = integer(num_experts, "num_experts", "placement.shape", low=1)
    if len(set(found.values())) > 1:
        raise JanusError(CODE, f"all maps must speak of the same experts; got {found}")
    return next(iter(found.values()), max(int(physical.max()) + 1, 1))


def _replicas(physical: Ints, experts: int) -> Ints:
    rows = physical.reshape(-1, physical.shape[-1])
    at = first_outside(rows, -1, experts - 1)
    if at is not None:
        rule = f"phy2log holds -1 or an expert in 0..{experts - 1}"
        raise JanusError("placement.range", f"{rule}; layer {at[0]}, physical id {at[1]} holds {rows[at]}")
    counts = [np.bincount(row[row >= 0].astype(np.int64), minlength=experts) for row in rows]
    return np.stack(counts).reshape(*physical.shape[:-1], experts)


def _check_shape(name: str, got: Ints, want: tuple[int, ...]) -> None:
    if got.shape != want:
        raise JanusError(CODE, f"{name} must have the layers and sizes of phy2log, {want}; got {got.shape}")


def _compare(physical: Ints, other: Ints, of: str, what: str, name: str) -> None:
    a, b = (x.reshape(-1, x.shape[-1]) for x in (physical, other))
    different = np.argwhere(a != b)
    if len(different):
        layer, i = different[0].tolist()
        says = f"{what} {a[layer, i]} by phy2log, {b[layer, i]} by {name}"
        remedy = f"give maps of the same moment, or leave {name} out"
        raise JanusError(CODE, f"the maps disagree in layer {layer}: {of} {i}: {says}; {remedy}")


def _few(values: Any) -> str:
    flat = np.unique(values).tolist()
    return ", ".join(map(str, flat[:4])) + (" ..." if len(flat) > 4 else "")
