"""Logical ids of a batch to slots, at the price of as little host time as the placement allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from janus.experts.checks import NATIVE
from janus.sched import Assignment, Balancer, RooflineCost, balance
from janus.sched.backends import KERNEL_LIMITS, choose
from janus.types import Placement

# A balancer keeps buffers for this many tokens: 64 KiB on a CPU with K = 8, 2 MiB on a GPU. Larger batches are served
# by `balance`: its tables, made anew, cost nothing beside so many tokens.
MOST_TOKENS = {"cpu": 1024, "cuda": KERNEL_LIMITS["tokens"]}


class ReplicaChooser:
    """The slots that serve the ids of a batch, for one layer of a placement; what `balance` would give.

    Where every expert sits in one slot there is nothing to choose: the ids are checked and looked up in a table, or
    handed on as they are where the slots hold the experts in their order. Elsewhere a `Balancer` is kept.

    Calls at the same time must be kept apart by the caller: buffers are reused.

    Args:
        placement: where the experts are.
        layer: MoE layer of the placement, counted from 0.
        method: of `balance`.
        cost: of `balance`.
        backend: of `balance`.
        check_ids: refuse ids out of range on a GPU too, at the price of a host sync per call. Unchecked, such an id
            counts as -1 there, and in `bad_ids`.

    Example:
        >>> chooser = ReplicaChooser(Placement([[2, 0, 1, -1]], num_experts=3), 0, "exact", None, "auto")
        >>> chooser(torch.tensor([[0, 2], [-1, 1]])).tolist()
        [[1, 0], [-1, 2]]
    """

    def __init__(
        self,
        placement: Placement,
        layer: int,
        method: str,
        cost: RooflineCost | None,
        backend: str,
        check_ids: bool = False,
    ) -> None:
        self._made_from = placement, layer, method, cost, backend, check_ids
        self.placement = Placement(placement.slots[placement.layer(layer)], placement.num_experts)
        self.method, self.cost, self.backend, self.check_ids = method, cost, backend, check_ids
        self.has_choice = int(self.placement.logcnt.max()) > 1
        self._slot_of = np.append(self.placement.log2phy[0, :, 0], -1).astype(np.int64)  # -1 finds the last place
        self._in_order = np.array_equal(self._slot_of[:-1], np.arange(placement.num_experts))
        self._balancers: dict[torch.device, Balancer | None] = {}
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_from  # buffers are made anew

    def serving(self, placement: Placement) -> ReplicaChooser:
        """This one, or one with the same options for another placement."""
        if placement is self._made_from[0]:
            return self
        return type(self)(placement, *self._made_from[1:])

    def __call__(self, topk_ids: torch.Tensor) -> torch.Tensor:
        """Slots [T, K], int32 or int64: -1 where the id is -1. A view that the next call may overwrite.

        Raises:
            JanusError: ``sched.range`` for an id below -1 or of E and above; on a GPU with `check_ids` alone.
        """
        ids = topk_ids if topk_ids.dtype in NATIVE else topk_ids.long()
        on_host = ids.device.type == "cpu"
        if not self.has_choice:
            return self._look_up(ids) if on_host else self._look_up_on_device(ids)
        if len(ids) <= MOST_TOKENS.get(ids.device.type, 0) and (balancer := self._balancer(ids)):
            return balancer(ids.contiguous(), 0)
        return self.assignment(ids).physical_ids  # host sync here when the ids are on an accelerator

    def assignment(self, topk_ids: Any) -> Assignment:
        """Everything `balance` tells about a batch; made for people, not for a serving loop."""
        return balance(topk_ids, self.placement, method=self.method, backend=self.backend, cost=self.cost)

    @property
    def placed(self) -> Placement:
        """The placement it was made for, of all its layers."""
        return self._made_from[0]

    @property
    def bad_ids(self) -> int:
        """Ids out of range that counted as -1 on a GPU so far; reading it is a host sync."""
        looked_up = sum(int(counts[0] + counts[-1]) for _, counts, _ in self._tables.values())
        return looked_up + sum(int(b.stats.bad_ids.sum()) for b in self._balancers.values() if b)

    def _look_up(self, ids: torch.Tensor) -> torch.Tensor:
        array = ids.numpy()
        if array.size and (array.max() >= self.placement.num_experts or array.min() < -1):
            self.assignment(ids)  # says which id, and what to do
        return ids if self._in_order else torch.from_numpy(self._slot_of[array])

    def _look_up_on_device(self, ids: torch.Tensor) -> torch.Tensor:
        table, counts, one = self._tables.get(ids.device) or self._make_table(ids.device)
        last = len(table) - 1
        at = (ids + 2).clamp_(0, last).long()  # first and last place: out of range
        counts.scatter_add_(0, at.reshape(-1), one.expand(at.numel()))
        if self.check_ids and bool(((at == 0) | (at == last)).any()):  # host sync here
            self.assignment(ids)
        return table[at]

    def _make_table(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.inference_mode(False):  # made inside that mode, they could not be written to outside it
            slots = torch.tensor([-1, -1, *self._slot_of[:-1].tolist(), -1], dtype=torch.int64).to(device)
            self._tables[device] = slots, torch.zeros_like(slots), slots.new_ones(())
        return self._tables[device]

    def _balancer(self, ids: torch.Tensor) -> Balancer | None:
        """Kept for the device of the ids; None where only the host can serve that device, by copies."""
        where = ids.device
        if where not in self._balancers:
            self._balancers[where] = self._make_balancer(where)
        balancer = self._balancers[where]
        few = balancer is None or balancer.backend != "triton" or ids.shape[1] <= KERNEL_LIMITS["experts per token"]
        return balancer if few else None

    def _make_balancer(self, where: torch.device) -> Balancer | None:
        name = choose(self.backend, self.method, where.type, may_copy=True)
        sizes = self.placement.num_experts, self.placement.num_instances, self.placement.slots_per_instance
        too_large = any(n > most for n, most in zip(sizes, KERNEL_LIMITS.values(), strict=False))
        if (name == "triton" and too_large) or (name != "triton" and where.type != "cpu"):
            return None
        return Balancer(
            self.placement, method=self.method, backend=name, max_tokens=MOST_TOKENS[where.type], device=where,
            cost=self.cost, check_ids=True if self.check_ids or where.type == "cpu" else None,
        )  # fmt: skip
