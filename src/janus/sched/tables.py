"""What both backends read and write: the integer tables of one layer, and the scratch memory of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from janus.types.placement import IntArray, Placement


@dataclass(frozen=True, eq=False)
class LayerTables:
    """One layer of a `Placement`, as the balancers read it.

    Attributes:
        phy2log: int32 [R], logical expert of each physical id, -1 for an empty slot.
        log2phy: int32 [E, X], physical ids of each expert in ascending order, padded with -1.
        logcnt: int32 [E], replicas of each expert.
        order: int32 [E], the order in which experts are given their replica.
        num_instances: G.
        cost: picoseconds of (reading one expert, one token) for method ``"cost"``, else None.
    """

    phy2log: IntArray
    log2phy: IntArray
    logcnt: IntArray
    order: IntArray
    num_instances: int
    cost: tuple[int, int] | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.logcnt)

    @property
    def num_slots(self) -> int:
        """R."""
        return len(self.phy2log)

    @property
    def slots_per_instance(self) -> int:
        """C; physical id r sits on instance r // C."""
        return len(self.phy2log) // self.num_instances

    @classmethod
    def build(cls, placement: Placement, row: int, method: str, cost: tuple[int, int] | None = None) -> LayerTables:
        """Tables of row `row` of `placement.slots`, in the order that `method` wants."""
        logcnt = placement.logcnt[row].copy()
        # exact: fewest replicas first; greedy: experts without a choice first; ties by expert id (stable sort)
        key = np.minimum(logcnt, 2) if method == "greedy" else logcnt
        order = np.argsort(key, kind="stable").astype(np.int32)
        # copies: a read-only array is another type to numba and would be compiled for once more
        return cls(
            placement.phy2log[row].copy(), placement.log2phy[row].copy(), logcnt, order, placement.num_instances, cost
        )


class Workspace:
    """Scratch memory of one batch: one flat int32 array, because every array handed to numba costs time per call.

    The views name its parts; `numba_backend.carve` cuts the same parts in the same order.

    Attributes:
        tokens: int32 [E], routing entries of each expert.
        replica: int32 [E], physical id of each activated expert's (first) replica, else -1.
        load: int32 [G], activated slots of each instance.
        tokens_per_slot: int32 [R], routing entries sent to each physical slot.
        bound: int32 [1], lower bound of a_max.
        wide: int64, what method ``"cost"`` counts in picoseconds and where its search has been.
    """

    def __init__(self, num_experts: int, num_instances: int, num_slots: int) -> None:
        sizes = [num_experts + 1, num_experts + 1, num_slots, 1, *[num_instances] * 4]
        self.flat = np.zeros(sum(sizes), dtype=np.int32)
        tokens, replica, self.tokens_per_slot, self.bound, self.load, *_ = np.split(self.flat, np.cumsum(sizes)[:-1])
        self.tokens, self.replica = tokens[:num_experts], replica[:num_experts]
        self.wide = np.zeros(8 * num_instances + 2 * (num_experts + 1) + num_slots, dtype=np.int64)
