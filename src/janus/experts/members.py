"""The ranks that share the experts of a model among them: what they agreed on, and how they exchange rows."""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

import torch
from torch import nn

from janus.comm import CostModel, all_to_all
from janus.comm.contract import agree
from janus.comm.group import default_store
from janus.comm.roster import roster_of
from janus.comm.shuffle import REGIMES
from janus.comm.store import Board
from janus.errors import JanusError, known
from janus.types import Placement
from janus.types.checks import instance, number

SCOPES = ("batch", "rank")
_TURNS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # agreements of each group so far


class ExpertGroup:
    """The ranks of a colocated expert-parallel model; member g holds the slots of instance g of the placement.

    Args:
        topology_or_group: as `janus.comm.all_to_all` takes it: a process group, a `Topology` over the world, or None for
            the default group.
        scope: what is balanced: ``"batch"``, the tokens of all ranks together, or ``"rank"``, those of each rank alone.
        regime: of the exchanges, as in `janus.comm.all_to_all`.
        cost: behind regime ``"auto"``, equal on all ranks.
        timeout_s: until a peer must have answered, in each exchange.

    Raises:
        JanusError: ``experts.scope``, ``alltoall.regime``, ``alltoall.cost``, ``alltoall.timeout``, ``alltoall.group``,
            ``alltoall.world``.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> group = ExpertGroup(scope="rank")
        >>> group.me, group.world
        (0, 1)
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        topology_or_group: Any = None,
        *,
        scope: str = "batch",
        regime: str = "auto",
        cost: CostModel | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.scope = known(scope, SCOPES, "scope", "experts.scope")
        self.regime = known(regime, (*REGIMES, "auto"), "regime", "alltoall.regime")
        if cost is not None:
            instance(cost, CostModel, "cost must be a janus.comm.CostModel", "alltoall.cost", "leave it out")
        rule = "timeout_s must be a finite number of seconds > 0"
        self.timeout_s = number(timeout_s, rule, "alltoall.timeout")
        if self.timeout_s <= 0:
            raise JanusError("alltoall.timeout", f"{rule}, got {timeout_s!r}; try 30.0")
        self.where, self.cost, self.roster = topology_or_group, cost, roster_of(topology_or_group)
        self.bytes_sent = 0  # to other members, since the group was made
        self._agreed: set[str] = set()

    @classmethod
    def of(cls, group: Any) -> ExpertGroup:
        """`group` itself, or one with the default options."""
        return group if isinstance(group, cls) else cls(group)

    @property
    def me(self) -> int:
        """Which member, and so which instance, this process is."""
        return self.roster.me

    @property
    def world(self) -> int:
        """How many members there are."""
        return self.roster.world

    def exchange(self, output: torch.Tensor, input: torch.Tensor, expected: list[int], sent: list[int]) -> None:
        """One `all_to_all` with the options of this group."""
        options: dict[str, Any] = {"regime": self.regime, "cost": self.cost, "timeout_s": self.timeout_s}
        all_to_all(output, input, expected, sent, topology_or_group=self.where, **options)
        row_bytes = input[:1].nbytes if len(input) else 0
        self.bytes_sent += (sum(sent) - sent[self.me]) * row_bytes

    def agree(self, terms: dict[str, Any]) -> None:
        """Compare `terms` with those of all members, once for each set of terms.

        Args:
            terms: JSON values by name.

        Raises:
            JanusError: ``comm.contract``, the same text on every rank.
            PeerLost: phase ``"rendezvous"``; a member said nothing in time.
        """
        said = json.dumps(terms, sort_keys=True)
        if said in self._agreed:
            return
        group, roster = self.roster.group, self.roster
        _TURNS[group] = turn = _TURNS.get(group, 0) + 1
        board = Board(default_store(), f"janus/experts/{group.group_name}/{turn}")
        ranks = tuple(roster.rank(member) for member in range(roster.world))
        options = {"scope": self.scope, "regime": self.regime, "cost": self.cost and self.cost.to_dict()}
        agree(board, {**terms, **options, "group": list(ranks)}, ranks, roster.rank(roster.me), self.timeout_s)
        self._agreed.add(said)

    def own_slots(self, experts: nn.Module, placement: Placement, layer: int, **balancer: Any) -> list[int]:
        """The logical experts of this member's slots, -1 for an empty one, once all members agree on the layer.

        Args:
            experts: the module to be replaced; shapes and dtype of its weights are compared, their values are not.
            placement: one instance per member.
            layer: row of a per-layer placement.
            balancer: method and cost.

        Raises:
            JanusError: ``comm.contract``; ``placement.instances`` unless there is one instance for each member.
            PeerLost: phase ``"rendezvous"``.
        """
        name = digest(placement.slots.tolist())
        weights = {name: [str(p.dtype).removeprefix("torch."), *p.shape] for name, p in experts.named_parameters()}
        options = {name: repr(value) for name, value in balancer.items()}
        shape = f"{placement.num_instances} instances of {placement.slots_per_instance} slots"
        self.agree({"weights": weights, "placement": f"{shape}, {name}", "layer": layer, **options})
        if placement.num_instances != self.world:
            raise JanusError(
                "placement.instances",
                f"every rank of the group holds one instance: the group has {self.world} ranks, the placement "
                f"{placement.num_instances} instances; make a placement for {self.world}",
            )
        return placement.slots[layer, self.me].tolist()


def digest(value: Any) -> str:
    """A few hex digits that differ where the JSON values do.

    Example:
        >>> digest([0, 1]) == digest([0, 1]), digest([0, 1]) == digest([1, 0])
        (True, False)
    """
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=6).hexdigest()
