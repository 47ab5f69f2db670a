"""How many replicas each expert gets."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.types.checks import integer
from janus.types.placement import IntArray


def replicate(counts: npt.ArrayLike, num_slots: int, *, max_replicas: int | None = None) -> IntArray:
    """One replica each, then every spare slot to the expert with the largest load per replica.

    Ties go to the expert with fewer replicas, then to the lower id; loads per replica are compared in float64.

    Args:
        counts: [E] or [L, E], tokens of each expert, finite and >= 0.
        num_slots: R, physical slots of one layer, >= E.
        max_replicas: most replicas of one expert (the number of instances, if no two may share one); slots that this
            leaves without use stay empty.

    Returns:
        int32, shape of `counts`; replicas of each expert, at most `num_slots` in sum.

    Raises:
        JanusError: ``sched.counts``, ``sched.slots``.

    Example:
        >>> replicate([6, 1, 3], 6).tolist()  # 6 -> 3 + 3; then 3/1 and 6/2 tie: fewer replicas first; then 6 / 2
        [3, 1, 2]
    """
    slots = integer(num_slots, "num_slots", "sched.slots")
    most = None if max_replicas is None else integer(max_replicas, "max_replicas", "sched.slots")
    return fill_spare(check_counts(counts), slots, most, power=1)


def fill_spare(
    counts: npt.NDArray[np.float64],
    num_slots: int,
    max_replicas: int | None,
    *,
    power: int,
    least: npt.ArrayLike = 1,
) -> IntArray:
    """From `least` replicas on, spare slots one by one to the largest counts / replicas ** power."""
    num_experts = counts.shape[-1]
    check_slots(num_experts, num_slots)
    cap = num_slots if max_replicas is None else max_replicas
    if cap < 1:
        raise JanusError("sched.slots", f"max_replicas must be >= 1, got {max_replicas}")
    out = np.empty(counts.shape, dtype=np.int32)
    out[...] = least
    for row, replicas in zip(counts.reshape(-1, num_experts), out.reshape(-1, num_experts), strict=True):
        weights, held = row.tolist(), replicas.tolist()
        # largest first, then fewest replicas, then lowest id: experts that were never seen share the rest evenly
        waiting = [(-w / r**power, r, e) for e, (w, r) in enumerate(zip(weights, held, strict=True)) if r < cap]
        heapq.heapify(waiting)
        for _ in range(min(num_slots, cap * num_experts) - sum(held)):
            _, r, e = waiting[0]
            replicas[e] = r + 1
            if r + 1 < cap:  # experts at the cap are out of the running
                heapq.heapreplace(waiting, (-weights[e] / (r + 1) ** power, r + 1, e))
            else:
                heapq.heappop(waiting)
    return out


def check_counts(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """`counts` as float64 [E] or [L, E], or a `JanusError`."""
    raw: npt.NDArray[Any] = np.asarray(counts)
    if raw.ndim not in (1, 2) or 0 in raw.shape or raw.dtype.kind not in "iuf":
        raise JanusError("sched.counts", f"counts must be numbers [E] or [L, E], got {raw.dtype} {raw.shape}")
    values = raw.astype(np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise JanusError("sched.counts", f"counts must be finite and >= 0, got {values.min()} .. {values.max()}")
    return values


def check_slots(num_experts: int, num_slots: int) -> None:
    """Refuse fewer slots than experts."""
    if num_slots < num_experts:
        remedy = "add instances or slots per instance"
        raise JanusError(
            "sched.slots", f"every expert needs a slot: {num_experts} experts, {num_slots} slots; {remedy}"
        )
