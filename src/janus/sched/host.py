"""A balancer on the CPU: buffers made once, the steps by numba or by the plain reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.sched.arrays import Room, host_ids, is_native, is_tensor
from janus.sched.backends import Backend
from janus.sched.stats import SUMS
from janus.sched.tables import LayerTables, Workspace
from janus.types.placement import IntArray, Placement


class HostEngine:
    """What a `Balancer` runs on the CPU.

    Args:
        placement: where the replicas are.
        method: checked name.
        backend: the module of a backend.
        max_tokens: most tokens of one call.
        cost: picoseconds of (reading one expert, one token) for method ``"cost"``.
        num_layers: L, rows of the statistics.
        record_load: count the entries of each expert.

    Attributes:
        sums: int64 [L, 8], see `stats.SUMS`.
        expert_load: int64 [L, E], or [0, E] when not recorded.
    """

    device = "cpu"

    def __init__(
        self,
        placement: Placement,
        method: str,
        backend: Backend,
        max_tokens: int,
        *,
        cost: tuple[int, int] | None = None,
        num_layers: int = 1,
        record_load: bool = False,
    ) -> None:
        self.method, self._backend, self.max_tokens = method, backend, max_tokens
        self._tables = [LayerTables.build(placement, row, method, cost) for row in range(placement.num_layers)]
        first = self._tables[0]
        self.work = Workspace(first.num_experts, first.num_instances, first.num_slots)
        self.sums: npt.NDArray[np.int64] = np.zeros((num_layers, len(SUMS)), dtype=np.int64)
        rows = num_layers if record_load else 0
        self.expert_load: npt.NDArray[np.int64] = np.zeros((rows, first.num_experts), dtype=np.int64)
        self._no_load = np.zeros(0, dtype=np.int64)
        self._rooms: dict[tuple[Any, ...], Room] = {}
        # compile now what the first batch would wait for: seconds, once per machine
        for dtype in (np.int64, np.int32):
            self._run(np.empty((0, 1), dtype=dtype), 0, 0, as_tensor=False)
        self.sums[:] = 0

    def __call__(self, topk_ids: Any, row: int, layer: int) -> Any:
        """Physical ids [T, K] by map `row`, counted for `layer`: a view that the next call overwrites."""
        as_tensor = is_tensor(topk_ids)
        if as_tensor and topk_ids.device.type != "cpu":
            remedy = "make the Balancer with device='cuda' (backend 'triton'), or move topk_ids to the CPU"
            got = str(topk_ids.device)
            raise JanusError("sched.device", f"this Balancer runs on the CPU, got topk_ids on device {got!r}; {remedy}")
        return self._run(host_ids(topk_ids, self._tables[row].num_slots), row, layer, as_tensor=as_tensor)

    def _run(self, ids: npt.NDArray[np.integer], row: int, layer: int, *, as_tensor: bool) -> Any:
        tokens, top_k = ids.shape
        check_tokens(tokens, self.max_tokens)
        key = (ids.dtype, top_k, as_tensor, is_native(ids))
        if key not in self._rooms:  # the only allocation, once per kind of input
            self._rooms[key] = Room(ids, self.max_tokens, as_tensor=as_tensor)
        room, tables = self._rooms[key], self._tables[row]
        room.run(self._backend.fill, self.method, ids, tables, self.work)
        seen = self.expert_load[layer] if len(self.expert_load) else self._no_load
        self._backend.tally(tables, self.work, self.sums[layer], seen)
        return room.shown[:tokens]

    @property
    def load(self) -> IntArray:
        """int32 [G]: activated slots of each instance in the last batch; a view."""
        return self.work.load

    def reset(self) -> None:
        """Forget the sums and the recorded load."""
        self.sums[:] = 0
        self.expert_load[:] = 0


def check_tokens(tokens: int, max_tokens: int) -> None:
    """Refuse a batch that the buffers cannot hold."""
    if tokens > max_tokens:
        rule = f"a batch holds at most max_tokens={max_tokens} tokens, got {tokens}"
        raise JanusError("sched.max_tokens", f"{rule}; make the Balancer with a larger max_tokens")
