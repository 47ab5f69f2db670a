"""Few weight moves when a new placement replaces an old one: instances are interchangeable, so rename them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.types.placement import IntArray, Placement


def check_previous(previous: object, num_experts: int, num_layers: int, uniform: bool) -> Placement | None:
    """`previous` when it can be compared with the new maps, else a `JanusError`."""
    if previous is None:
        return None
    if not isinstance(previous, Placement):
        raise JanusError("sched.option", f"previous must be a Placement, got {type(previous).__name__}")
    fits = previous.uniform or (not uniform and previous.num_layers == num_layers)
    if previous.num_experts != num_experts or not fits:
        layers = "every layer" if uniform else f"{num_layers} layers"
        rule = "previous must be of the same model"
        raise JanusError("sched.option", f"{rule}: E={num_experts}, one map for {layers}; got {previous!r}")
    return previous


def keep(new_GC: IntArray, old_GC: IntArray) -> IntArray:
    """The map `new_GC` with its instances renamed and its slots reordered, so that many slots hold what they held.

    Instances are paired with the old ones greedily, most common experts first (ties: lower old, then lower new id);
    an expert that was there keeps its slot number. G and C may differ between the two.

    Example:
        >>> keep(np.array([[2, 3], [0, 4]], dtype=np.int32), np.array([[4, 0], [1, 2]], dtype=np.int32)).tolist()
        [[4, 0], [3, 2]]
    """
    G, C = new_GC.shape
    old = np.full((G, max(C, old_GC.shape[1])), -1, dtype=np.int32)  # instances that are added held nothing
    old[: len(old_GC), : old_GC.shape[1]] = old_GC[:G]
    common = np.array([[len(_experts(was) & _experts(new)) for new in new_GC] for was in old])
    out = np.empty_like(new_GC)
    for _ in range(G):
        where, new = np.unravel_index(int(np.argmax(common)), (G, G))
        out[where] = _in_place(new_GC[new], old[where])
        common[where], common[:, new] = -1, -1  # both are taken
    return out


def reorder(new_GC: IntArray, old_GC: IntArray) -> IntArray:
    """The map `new_GC` with the slots of each instance reordered: an expert that was there keeps its slot.

    Example:
        >>> reorder(np.array([[2, 3], [0, 4]], dtype=np.int32), np.array([[4, 2], [1, 0]], dtype=np.int32)).tolist()
        [[3, 2], [4, 0]]
    """
    out = new_GC.copy()
    for row, new, old in zip(out, new_GC, old_GC, strict=False):
        row[:] = _in_place(new, old)
    return out


def _experts(row: npt.NDArray[np.int32]) -> set[int]:
    return set(row[row >= 0].tolist())


def _in_place(new: npt.NDArray[np.int32], old: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    row = np.full(len(new), -1, dtype=np.int32)
    held = old[: len(new)]
    row[: len(held)] = np.where(np.isin(held, new), held, -1)
    # newcomers take the places that are left
    rest = [e for e in new.tolist() if e >= 0 and e not in row]
    row[np.flatnonzero(row < 0)[: len(rest)]] = rest
    return row
