"""What placements are measured against: load only, co-activation, and EPLB's own map."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from janus.sched.hosts import Load, Pressure, assign_hosts
from janus.sched.popularity import Popularity
from janus.sched.replicas import check_counts, check_slots, fill_spare
from janus.types.placement import IntArray, Placement


def coactivation(layer: Popularity, shape: tuple[int, int]) -> IntArray:
    """Replicas by load; hosts keep the largest co-activation pressure small."""
    replicas = fill_spare(layer.counts, shape[0] * shape[1], shape[0], power=1)
    return assign_hosts(layer.counts / replicas, replicas, shape, Pressure(layer.coactivation(), shape[0]))


def eplb(layer: Popularity, shape: tuple[int, int]) -> IntArray:
    """Replicas by load; hosts balance the load."""
    replicas = fill_spare(layer.counts, shape[0] * shape[1], shape[0], power=1)
    return assign_hosts(layer.counts / replicas, replicas, shape, Load(layer.counts / replicas, shape[0]))


BASELINES: dict[str, Callable[[Popularity, tuple[int, int]], IntArray]] = {"coactivation": coactivation, "eplb": eplb}


def eplb_global(counts: npt.ArrayLike, num_instances: int, slots_per_instance: int) -> Placement:
    """The map that DeepSeek's EPLB makes with its global policy, written anew from its description.

    Every spare slot to the largest counts / replicas; then replicas in descending load, each to the least-loaded GPU
    with room. Two replicas of one expert may meet on a GPU: the second becomes -1 and is counted in
    `Placement.eplb_duplicates`.

    Args:
        counts: [L, E] or [E], tokens of each expert.
        num_instances: G.
        slots_per_instance: C.

    Raises:
        JanusError: ``sched.counts``, ``sched.slots``.

    Example:
        >>> eplb_global([9, 2, 1], 2, 2).slots.tolist()  # 0 twice; loads 4.5, 4.5; then 1 joins the first, 2 the second
        [[[0, 1], [0, 2]]]
    """
    rows = check_counts(counts)
    num_slots = num_instances * slots_per_instance
    check_slots(rows.shape[-1], num_slots)
    phy2log = [_pack(row, num_instances, num_slots) for row in np.atleast_2d(rows)]
    shaped = np.stack(phy2log) if rows.ndim == 2 else phy2log[0]
    return Placement.from_eplb(shaped, num_instances, num_experts=rows.shape[-1])


def _pack(counts_E: npt.NDArray[np.float64], G: int, num_slots: int) -> npt.NDArray[np.int64]:
    num_experts = len(counts_E)
    phy2log, replicas = np.arange(num_slots), np.ones(num_experts)
    for r in range(num_experts, num_slots):
        e = int(np.argmax(counts_E / replicas))
        phy2log[r] = e
        replicas[e] += 1
    load_R = (counts_E / replicas)[phy2log]
    members: list[list[int]] = [[] for _ in range(G)]
    open_heap = [(0.0, g) for g in range(G)]
    for r in np.argsort(-load_R, kind="stable"):
        load, g = heapq.heappop(open_heap)
        members[g].append(int(phy2log[r]))
        if len(members[g]) < num_slots // G:
            heapq.heappush(open_heap, (load + float(load_R[r]), g))
    return np.array(members).ravel()
