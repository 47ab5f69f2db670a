"""The front door: `balance` for one batch, `Balancer` for a serving loop."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.sched.arrays import Room, check_placement, host_ids, is_tensor
from janus.sched.backends import KERNEL_LIMITS, check_method, choose, load
from janus.sched.cost import RooflineCost, check_cost
from janus.sched.host import HostEngine
from janus.sched.stats import BalancerStats
from janus.sched.tables import LayerTables, Workspace
from janus.types.checks import integer, shown
from janus.types.placement import IntArray, Placement

# keep a mistyped number from filling the memory
MAX_TOKENS = 2**24
MAX_LAYERS = 2**16


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
    cost: RooflineCost | None = None,
) -> Assignment:
    """Choose a replica for every activated expert of a batch, and rewrite the ids to physical slots.

    The same input gives the same ids, bit for bit, on every rank, run and backend.

    Args:
        topk_ids: integers [T, K], NumPy or torch; logical experts, -1 passes through, duplicates allowed.
        placement: where the replicas are.
        layer: MoE layer of the placement.
        method: ``"exact"`` (minimum possible a_max), ``"greedy"`` (AEBS as the paper prints it), ``"cost"`` (smallest
            cost of the costliest instance by `cost`, may split an expert's tokens over its replicas), or a baseline
            that may split them: ``"tokens"``, ``"random"``, ``"round_robin"``.
        backend: ``"numba"``, ``"reference"`` (plain Python), ``"triton"`` (methods exact and greedy, on a GPU), or
            ``"auto"``: triton for a tensor on a GPU, else numba. A CPU backend copies such a tensor there and back.
        cost: of one expert, for method ``"cost"`` and no other.

    Raises:
        JanusError: ``sched.method``, ``sched.cost``, ``sched.backend``, ``sched.input``, ``sched.dtype``, ``sched.shape``,
            ``sched.range``, ``sched.limit``, ``sched.placement``, ``placement.layer``.

    Example:
        >>> import numpy as np
        >>> p = Placement([[0, 1, 2], [2, 3, 0]], num_experts=4)  # experts 0 and 2 have two replicas
        >>> a = balance(np.array([[0, 1], [2, 0]]), p)
        >>> a.physical_ids.tolist(), a.load.tolist(), a.a_max  # 1 is forced on instance 0; 0 goes to 1; 2 joins 1
        ([[5, 1], [2, 5]], [2, 1], 2)
    """
    check_method(method, cost)
    device_type = topk_ids.device.type if is_tensor(topk_ids) else "cpu"
    row = check_placement(placement).layer(layer)
    name = choose(backend, method, device_type, may_copy=True)
    if name == "triton" and backend == "auto" and not _kernel_takes(topk_ids, placement):
        name = choose(backend, method, "cpu")
    if name == "triton":
        return _on_device(topk_ids, placement, row, method)
    tables = LayerTables.build(placement, row, method, check_cost(method, cost))
    work = Workspace(tables.num_experts, tables.num_instances, tables.num_slots)
    ids = host_ids(topk_ids, tables.num_slots)  # host sync here when topk_ids is on an accelerator
    room = Room(ids, len(ids), as_tensor=is_tensor(topk_ids))
    room.run(load(name).fill, method, ids, tables, work)
    physical_ids = room.shown.to(topk_ids.device) if is_tensor(topk_ids) else room.shown
    top, bound = int(work.load.max()), int(work.bound[0])
    return Assignment(physical_ids, work.replica, work.load, work.tokens_per_slot, top, bound, name)


def _kernel_takes(ids: Any, placement: Placement) -> bool:
    """Is this batch within what the kernel was made for? What ``"auto"`` asks; by name, it is refused with the reason."""
    experts, instances, slots, top_k, tokens = KERNEL_LIMITS.values()
    fits = placement.num_experts <= experts and placement.num_instances <= instances and ids.ndim == 2
    fits &= placement.slots_per_instance <= slots
    kind = str(ids.dtype) in ("torch.int32", "torch.int64") and ids.is_contiguous()
    return fits and kind and len(ids) <= tokens and ids.shape[1] <= top_k


def _on_device(topk_ids: Any, placement: Placement, row: int, method: str) -> Assignment:
    """One batch through the kernel; everything but the ids comes to the host."""
    from janus.sched.device import DeviceEngine, as_tensor

    ids = as_tensor(topk_ids)
    one = Placement(placement.slots[row], placement.num_experts)
    engine = DeviceEngine(one, method, max(ids.shape[:1], default=0), ids.device, check_ids=True)
    physical_ids = engine(ids, 0, 0)
    last = engine.last_batch()
    shown = physical_ids if is_tensor(topk_ids) else physical_ids.numpy()
    return Assignment(shown, *last, "triton")


class Balancer:
    """`balance` for a serving loop, one batch at a time: compiled when it is made, memory reused.

    On a GPU a call launches two kernels on the current stream: no host sync, no allocation, and it can be captured in
    a CUDA graph. On the CPU the buffers of the output depend on K and dtype; they are made when a (K, dtype) is first
    seen, and from then on a call allocates no array on the numba backend.

    Args:
        placement: where the replicas are.
        method: as in `balance`; ``"exact"`` and ``"greedy"`` on a GPU.
        backend: as in `balance`; ``"auto"`` takes numba on the CPU and triton on a GPU.
        cost: as in `balance`.
        max_tokens: most tokens T of one call, at most 2**24 (16,384 on a GPU).
        device: ``"cpu"`` or ``"cuda"`` (or one of several: ``"cuda:1"``); where topk_ids will be.
        num_layers: L, for a placement whose one map serves every layer: rows of `stats` and `expert_load`. Default 1
            there, which adds all layers up; a placement of several maps has its own.
        record_load: count the entries of each expert in `expert_load`.
        check_ids: refuse ids out of range with ``sched.range``. Default: on the CPU, where it costs nothing. On a GPU
            it costs a host sync per call, which no CUDA graph captures; unchecked, such an id becomes -1 and `stats`
            counts it in ``bad_ids``.

    Raises:
        JanusError: as `balance`, and ``sched.device``, ``sched.max_tokens``, ``sched.option``, ``sched.limit`` (a GPU
            takes at most 512 experts, 128 instances and 16 experts per token), ``sched.contiguous`` (on a GPU).

    Example:
        >>> import numpy as np
        >>> balancer = Balancer(Placement([[0, 1, 2], [2, 3, 0]], num_experts=4), max_tokens=8)
        >>> balancer(np.array([[0, 1], [2, 0]]), layer=0).tolist()
        [[5, 1], [2, 5]]
        >>> balancer.stats.a_max.tolist()
        [2.0]
    """

    def __init__(
        self,
        placement: Placement,
        *,
        method: str = "exact",
        backend: str = "auto",
        max_tokens: int,
        device: Any = "cpu",
        cost: RooflineCost | None = None,
        num_layers: int | None = None,
        record_load: bool = False,
        check_ids: bool | None = None,
    ) -> None:
        self.method = check_method(method, cost)
        self.placement, self.max_tokens = check_placement(placement), _check_max_tokens(max_tokens)
        self.backend = choose(backend, method, _device_type(device))
        self.num_layers = _check_num_layers(num_layers, placement)
        record_load = _check_switch(record_load, "record_load")
        check_ids = None if check_ids is None else _check_switch(check_ids, "check_ids")
        self._engine = self._make_engine(device, cost, check_ids, record_load)

    def _make_engine(self, device: Any, cost: RooflineCost | None, check_ids: bool | None, record_load: bool) -> Any:
        if self.backend == "triton":
            from janus.sched.device import DeviceEngine

            options = {"num_layers": self.num_layers, "check_ids": bool(check_ids), "record_load": record_load}
            return DeviceEngine(self.placement, self.method, self.max_tokens, device, **options)
        if check_ids is False:
            rule = "check_ids=False is for a GPU; on the CPU the check is part of counting"
            raise JanusError("sched.option", f"{rule}, got backend {self.backend!r}; leave check_ids out")
        options = {"cost": check_cost(self.method, cost), "num_layers": self.num_layers, "record_load": record_load}
        return HostEngine(self.placement, self.method, load(self.backend), self.max_tokens, **options)

    def __call__(self, topk_ids: Any, layer: int) -> Any:
        """Physical ids [T, K] of one batch: a view that the next call overwrites."""
        row = self.placement.layer(layer)
        if self.num_layers == 1:
            return self._engine(topk_ids, row, 0)
        if layer >= self.num_layers:
            rule = f"layer must lie in 0..{self.num_layers - 1}"
            raise JanusError("placement.layer", f"{rule}, got {layer}; give the model's MoE layers as num_layers")
        return self._engine(topk_ids, row, operator.index(layer))  # an array of one number would index a copy

    @property
    def load(self) -> Any:
        """int32 [G]: activated slots of each instance in the last batch; a view that the next call overwrites.

        An array on the CPU, a tensor on the device of a GPU's balancer.
        """
        return self._engine.load

    @property
    def stats(self) -> BalancerStats:
        """Sums over all batches since the start or `reset_stats`; reading them is a host sync on a GPU."""
        return BalancerStats(np.array(self._engine.sums.tolist(), dtype=np.int64), self.placement.num_instances)

    @property
    def expert_load(self) -> npt.NDArray[np.int64]:
        """int64 [L, E]: routing entries of each expert since the start or `reset_stats`; needs record_load=True.

        What `place` takes as counts. Reading it is a host sync on a GPU.
        """
        if not len(self._engine.expert_load):
            rule = "expert loads are counted only when asked for"
            raise JanusError("sched.option", f"{rule}: make the Balancer with record_load=True")
        return np.array(self._engine.expert_load.tolist(), dtype=np.int64)

    def reset_stats(self) -> None:
        """Start `stats` and `expert_load` anew."""
        self._engine.reset()


def _check_num_layers(num_layers: int | None, placement: Placement) -> int:
    if num_layers is None:
        return placement.num_layers
    layers = integer(num_layers, "num_layers", "sched.option", low=1, high=MAX_LAYERS)
    if not placement.uniform and layers != placement.num_layers:
        rule = f"this placement has {placement.num_layers} maps, one per layer"
        raise JanusError("sched.option", f"{rule}, got num_layers={layers}; leave it out")
    return layers


def _check_max_tokens(max_tokens: Any) -> int:
    return integer(max_tokens, "max_tokens", "sched.max_tokens", high=MAX_TOKENS)


def _check_switch(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise JanusError("sched.option", f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def _device_type(device: Any) -> str:
    """ "cpu" or "cuda" of "cpu", "cuda:1", ...; other words are left to `choose`."""
    name, colon, index = str(device).partition(":")
    if colon and not index.isdecimal():
        raise JanusError("sched.device", f"a device is 'cpu', 'cuda' or 'cuda:1', got {shown(device)}")
    return name
