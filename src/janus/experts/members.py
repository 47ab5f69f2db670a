"""The ranks that share the experts of a model among them: what they agreed on, and how they exchange rows."""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from janus.comm import CostModel, all_to_all
from janus.comm.contract import agree
from janus.comm.group import default_store
from janus.comm.roster import roster_of
from janus.comm.shuffle import REGIMES
from janus.comm.store import Board
from janus.errors import JanusError, PeerLost, known
from janus.experts.terms import layer_terms
from janus.types import Placement
from janus.types.checks import instance, number

SCOPES = ("batch", "rank")
_BROKEN: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # what failed here, of each group
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
        """One `all_to_all` with the options of this group.

        Raises:
            JanusError: ``experts.broken`` after a failure in `between_exchanges`.
        """
        if (failed := _BROKEN.get(self.roster.group)) is not None:
            rule = f"a call failed on this rank while the others waited for it ({failed})"
            raise JanusError("experts.broken", f"{rule}; make a new process group")
        options: dict[str, Any] = {"regime": self.regime, "cost": self.cost, "timeout_s": self.timeout_s}
        all_to_all(output, input, expected, sent, topology_or_group=self.where, **options)
        row_bytes = input[:1].nbytes if len(input) else 0
        self.bytes_sent += (sum(sent) - sent[self.me]) * row_bytes

    @contextlib.contextmanager
    def between_exchanges(self) -> Iterator[None]:
        """What fails in here, fails on this rank alone: its next message would be taken for the one that is missing."""
        try:
            yield
        except PeerLost:
            raise  # and every later exchange raises it again
        except BaseException as error:
            _BROKEN[self.roster.group] = f"{type(error).__name__}: {error}"
            raise

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

    def own_instance(
        self, experts: nn.Module, placement: Placement, layer: int, asked: int | None, **alike: Any
    ) -> int:
        """The instance whose slots this member holds, once all members agree on the layer.

        Args:
            experts: the module to be replaced; shapes and dtype of its weights are compared, their values are not.
            placement: one instance per member.
            layer: row of a per-layer placement.
            asked: by the user, who need not.
            alike: options that must be equal, by name.

        Raises:
            JanusError: ``comm.contract``; ``placement.instances`` unless there is one instance for each member;
                ``placement.instance`` for another than its own.
            PeerLost: phase ``"rendezvous"``.
        """
        self.agree(layer_terms(experts, placement, layer, **alike))
        if placement.num_instances != self.world:
            raise JanusError(
                "placement.instances",
                f"every rank of the group holds one instance: the group has {self.world} ranks, the placement "
                f"{placement.num_instances} instances; make a placement for {self.world}",
            )
        if asked not in (None, self.me):
            rule = f"member {self.me} of the group holds instance {self.me}"
            raise JanusError("placement.instance", f"{rule}, got instance={asked}; leave it out")
        return self.me
