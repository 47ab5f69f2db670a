"""The front door: `balance` for one batch, `Balancer` for a serving loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from janus.errors import JanusError
from janus.sched.arrays import Room, check_placement, host_ids, is_native, is_tensor
from janus.sched.backends import check_method, pick
from janus.sched.tables import LayerTables, Workspace
from janus.types.placement import IntArray, Placement


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which physical slot serves which routing entry, and how evenly.

    Attributes:
        physical_ids: [T, K], kind, dtype and device of the input; -1 where the input had -1.
        replica: int32 [E], chosen physical id of each activated expert, else -1; the first one used when split.
        load: int32 [G], activated slots of each instance.
        tokens_per_slot: int32 [R], routing entries sent to each physical slot.
        a_max: max of `load`, 0 for an empty batch.
        lower_bound: no assignment of this batch has a smaller a_max (it need not be reachable).
        backend: the backend that ran.
    """

    physical_ids: Any
    replica: IntArray
    load: IntArray
    tokens_per_slot: IntArray
    a_max: int
    lower_bound: int
    backend: str


def balance(
    topk_ids: Any,
    placement: Placement,
    *,
    layer: int = 0,
    method: str = "exact",
    backend: str = "auto",
    cost: None = None,
) -> Assignment:
    """Choose a replica for every activated expert of a batch, and rewrite the ids to physical slots.

    The same input gives the same ids, bit for bit, on every rank, run and backend.

    Args:
        topk_ids: integers [T, K], NumPy or torch; logical experts, -1 passes through, duplicates allowed.
        placement: where the replicas are.
        layer: MoE layer of the placement.
        method: ``"exact"`` (minimum possible a_max), ``"greedy"`` (AEBS as the paper prints it), or a baseline that
            may split an expert's tokens over its replicas: ``"tokens"``, ``"random"``, ``"round_robin"``.
        backend: ``"numba"``, ``"reference"``, or ``"auto"``. A tensor on an accelerator is copied to the host and back.
        cost: reserved for method ``"cost"``, which is not in this version.

    Raises:
        JanusError: ``sched.method``, ``sched.backend``, ``sched.input``, ``sched.dtype``, ``sched.shape``,
            ``sched.range``, ``sched.placement``, ``placement.layer``.

    Example:
        >>> import numpy as np
        >>> p = Placement([[0, 1, 2], [2, 3, 0]], num_experts=4)  # experts 0 and 2 have two replicas
        >>> a = balance(np.array([[0, 1], [2, 0]]), p)
        >>> a.physical_ids.tolist(), a.load.tolist(), a.a_max  # 1 is forced on instance 0; 0 goes to 1; 2 joins 1
        ([[5, 1], [2, 5]], [2, 1], 2)
    """
    check_method(method, cost)
    name, fill = pick(backend)
    tables = LayerTables.build(check_placement(placement), placement.layer(layer), method)
    work = Workspace(tables.num_experts, tables.num_instances, tables.num_slots)
    ids = host_ids(topk_ids, tables.num_slots)  # host sync here when topk_ids is on an accelerator
    room = Room(ids, len(ids), as_tensor=is_tensor(topk_ids))
    room.run(fill, method, ids, tables, work)
    physical_ids = room.shown.to(topk_ids.device) if is_tensor(topk_ids) else room.shown
    top, bound = int(work.load.max()), int(work.bound[0])
    return Assignment(physical_ids, work.replica, work.load, work.tokens_per_slot, top, bound, name)


class Balancer:
    """`balance` for a serving loop on the CPU, one batch at a time: compiled when it is made, memory reused.

    The buffers of the output depend on K and dtype; they are made when a (K, dtype) is first seen, and from then on a
    call allocates no array on the numba backend.

    Args:
        placement: where the replicas are.
        method: as in `balance`.
        backend: as in `balance`.
        cost: as in `balance`.
        max_tokens: most tokens T of one call.
        device: ``"cpu"``; others are not in this version.

    Raises:
        JanusError: as `balance`, and ``sched.device``, ``sched.max_tokens``.

    Example:
        >>> import numpy as np
        >>> balancer = Balancer(Placement([[0, 1, 2], [2, 3, 0]], num_experts=4), max_tokens=8)
        >>> balancer(np.array([[0, 1], [2, 0]]), layer=0).tolist()
        [[5, 1], [2, 5]]
    """

    def __init__(
        self,
        placement: Placement,
        *,
        method: str = "exact",
        backend: str = "auto",
        max_tokens: int,
        device: Any = "cpu",
        cost: None = None,
    ) -> None:
        self.method = check_method(method, cost)
        self.backend, self._fill = pick(backend)
        if str(device).partition(":")[0] != "cpu":
            raise _not_cpu(device)
        if isinstance(max_tokens, bool) or not hasattr(max_tokens, "__index__") or max_tokens < 0:
            rule = "max_tokens must be an integer >= 0, the most tokens of one call"
            raise JanusError("sched.max_tokens", f"{rule}, got {max_tokens!r}")
        self.placement, self.max_tokens = check_placement(placement), int(max_tokens)
        self._tables = [LayerTables.build(placement, row, method) for row in range(placement.num_layers)]
        first = self._tables[0]
        self._work = Workspace(first.num_experts, first.num_instances, first.num_slots)
        self._rooms: dict[tuple[Any, ...], Room] = {}
        self._warm_up()

    def _warm_up(self) -> None:
        """Compile now what the first batch would wait for: seconds, once per machine."""
        for dtype in (np.int64, np.int32):
            ids = np.empty((0, 1), dtype=dtype)
            Room(ids, 0, as_tensor=False).run(self._fill, self.method, ids, self._tables[0], self._work)

    def __call__(self, topk_ids: Any, layer: int) -> Any:
        """Physical ids [T, K] of one batch: a view that the next call overwrites."""
        tables = self._tables[self.placement.layer(layer)]
        as_tensor = is_tensor(topk_ids)
        if as_tensor and topk_ids.device.type != "cpu":
            raise _not_cpu(topk_ids.device)
        ids = host_ids(topk_ids, tables.num_slots)
        tokens, top_k = ids.shape
        if tokens > self.max_tokens:
            remedy = "make the Balancer with a larger max_tokens"
            raise JanusError(
                "sched.max_tokens", f"a batch holds at most max_tokens={self.max_tokens} tokens, got {tokens}; {remedy}"
            )
        key = (ids.dtype, top_k, as_tensor, is_native(ids))
        if key not in self._rooms:  # the only allocation, once per kind of input
            self._rooms[key] = Room(ids, self.max_tokens, as_tensor=as_tensor)
        room = self._rooms[key]
        room.run(self._fill, self.method, ids, tables, self._work)
        return room.shown[:tokens]

    @property
    def load(self) -> IntArray:
        """int32 [G]: activated slots of each instance in the last batch; a view that the next call overwrites."""
        return self._work.load


def _not_cpu(device: Any) -> JanusError:
    remedy = "use device='cpu' and move topk_ids there, or call balance(), which copies to the host and back"
    return JanusError(
        "sched.device", f"a Balancer of this version works on the CPU, got device {str(device)!r}; {remedy}"
    )
