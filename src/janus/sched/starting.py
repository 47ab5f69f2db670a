"""Where the local search of `place` starts: a map made from popularity alone, or the previous map made to fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.sched.hosts import Full, Members, Overlap, assign_hosts, deal
from janus.sched.popularity import Floats
from janus.sched.replicas import fill_spare
from janus.types.placement import IntArray


@dataclass(frozen=True)
class Frame:
    """What a map of one layer must be.

    Attributes:
        num_instances: G.
        slots_per_instance: C.
        num_experts: E.
        node_size: consecutive instances that make a node; 1 where nodes do not matter.
        least: replicas that every expert gets.
    """

    num_instances: int
    slots_per_instance: int
    num_experts: int
    node_size: int = 1
    least: int = 1

    @classmethod
    def of(cls, num_instances: int, slots_per_instance: int, num_experts: int, node_size: int | None) -> Frame:
        """Two replicas of every expert where nodes are named, there are two of them and slots for it; else one."""
        size = node_size or 1
        pairs = num_instances // size > 1 and num_instances * slots_per_instance >= 2 * num_experts
        return cls(num_instances, slots_per_instance, num_experts, size, 2 if node_size and pairs else 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(G, C)."""
        return self.num_instances, self.slots_per_instance

    @property
    def num_slots(self) -> int:
        """R."""
        return self.num_instances * self.slots_per_instance


def first_map(active_E: Floats, frame: Frame, old_GC: IntArray | None = None) -> IntArray:
    """Replicas by activation probability / replicas**2, so that many experts have two before any has three.

    Hosts balance the expected activated slots; of near-equal ones those come first that share fewest experts with the
    expert's other hosts. What `old_GC` holds stays, as far as it fits.

    Args:
        active_E: float64 [E], probability that a batch activates the expert.
        frame: sizes and rules.
        old_GC: the map to be replaced; other sizes than the frame's are allowed.

    Returns:
        int32 [G, C]; every expert at least `frame.least` times.
    """
    kept = None if old_GC is None else _fitting(active_E, frame, old_GC)
    least = np.maximum(frame.least, Members(frame.shape, kept, frame.node_size).count(frame.num_experts))
    replicas = fill_spare(active_E, frame.num_slots, frame.num_instances, power=2, least=least)
    weight = active_E / replicas
    rule = Overlap(weight, frame.num_instances)
    try:
        return assign_hosts(weight, replicas, frame.shape, rule, kept=kept, node_size=frame.node_size)
    except Full:  # seldom, with nodes only: then any map that keeps replicas apart
        return deal(replicas, np.argsort(-weight, kind="stable"), frame.shape, frame.node_size)


def _fitting(active_E: Floats, frame: Frame, old_GC: npt.NDArray[np.integer]) -> list[list[int]]:
    """What instances hold and may keep, with slots left for the experts that have too few replicas."""
    rows = [[e for e in row if e >= 0] for row in old_GC[: frame.num_instances].tolist()]
    raw = Members(frame.shape, rows, frame.node_size)
    # fewer slots per instance: replicas that are missed least go first
    for g, row in enumerate(raw.rows):
        while len(row) > frame.slots_per_instance:
            raw.remove(_spared(row, active_E, raw, frame.least), g)
    members = Members(frame.shape, None, frame.node_size)
    for g, row in enumerate(raw.rows):
        for e in row:
            if members.may_take(g, e):
                members.add(e, g)
    # slots for those that have too few
    while _lacking(members, frame) > frame.num_slots - int(members.size_G.sum()):
        e = _spared(range(frame.num_experts), active_E, members, frame.least)
        members.remove(e, _superfluous(members.hosts[e], frame.node_size))
    return members.rows


def _superfluous(hosts: list[int], node_size: int) -> int:
    """The last host on the node that has most of them."""
    nodes = [h // node_size for h in hosts]
    return max(enumerate(hosts), key=lambda at: (nodes.count(nodes[at[0]]), at[0]))[1]


def _spared(experts: list[int] | range, active_E: Floats, members: Members, least: int) -> int:
    """The expert whose replica is missed least: one with replicas to spare and the smallest p / replicas**2."""
    held = {e: len(members.hosts.get(e, ())) for e in experts}
    return min((e for e in experts if held[e]), key=lambda e: (held[e] <= least, active_E[e] / held[e] ** 2, e))


def _lacking(members: Members, frame: Frame) -> int:
    return int(np.maximum(frame.least - members.count(frame.num_experts), 0).sum())
