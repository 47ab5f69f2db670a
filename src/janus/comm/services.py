"""What an exchange offers besides carrying rows: ids and small values for all, measured costs, counted traffic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from janus.comm import checks
from janus.comm.checks import order
from janus.comm.comparison import Explanation, explain
from janus.comm.cost import CostModel
from janus.comm.session import Session
from janus.comm.steps import Course, Rules
from janus.comm.stream import StreamWire
from janus.comm.terms import LinkTraffic, Timeouts
from janus.comm.wire import At
from janus.errors import JanusError
from janus.types import Topology
from janus.types.topology import Role


class Services:
    """The part of an `Exchange` that carries no rows of hidden states."""

    topology: Topology
    timeouts: Timeouts
    device: torch.device
    rank: int
    role: Role
    _session: Session
    _course: Course
    _rules: Rules

    @property
    def regime(self) -> str:
        """How the rows of the last agreed step travel; before the first step what was asked for."""
        return self._course.regime

    @property
    def cost(self) -> CostModel:
        """The model behind ``"auto"``; alike on all ranks."""
        return self._course.cost

    @property
    def backend(self) -> str:
        """What carries the rows: ``"gloo"`` or ``"nccl"``."""
        return self._session.carrier.backend

    def gather_topk(self, ids_bK: torch.Tensor) -> tuple[torch.Tensor, int]:
        """All-gather the top-k ids of a begun step among the attention ranks.

        Args:
            ids_bK: int32 or int64 [b, K].

        Returns:
            [B, K] in instance order, same dtype, and the row of this rank's first token.

        Raises:
            JanusError: ``comm.role``, ``comm.order``, ``comm.count``, ``comm.ids``.
            PeerLost: phase ``"dispatch"``.
        """
        self._course.check_side("attention", "gather_topk")
        step = self._course.step
        if step is None:
            order("gather_topk needs the counts of all ranks; call begin(b) first")
        if self._rules.top_k is None:  # ranks that differ in K would end each other's processes
            raise JanusError("comm.top_k", "gather_topk needs the exchange to know K; make it with top_k=...")
        mine = self.topology.instance(self.rank)
        checks.check_ids("ids", ids_bK, step.counts[mine], self._rules.top_k, None, self.device)
        at = At.within("dispatch", self._course.layer, self.timeouts.step_s)
        return self._session.gather(ids_bK, step.counts, at)

    def share(
        self, name: str, value: Any, ranks: tuple[int, ...] | None = None, *, timeout_s: float | None = None
    ) -> dict[int, Any]:
        """All-gather a small JSON value through the rendezvous store.

        Args:
            name: the same on all of `ranks`; may be used again, then it is a new round.
            value: JSON.
            ranks: who takes part, this rank included; all ranks of the topology by default.
            timeout_s: bound of the wait; default `rendezvous_s`.

        Raises:
            JanusError: ``comm.share`` for a value that is not JSON, a rank outside the topology or a bound <= 0.
            PeerLost: phase ``"rendezvous"``, naming a rank that has not shared in time; at once when one is lost or
                has closed.
        """
        if timeout_s is not None and not timeout_s > 0:
            raise JanusError("comm.share", f"timeout_s must be > 0 seconds, got {timeout_s!r}")
        return self._session.share(name, value, ranks, timeout_s)

    def explain(self, counts: Sequence[int] | None = None) -> Explanation:
        """Messages, bytes and predicted seconds of a layer under each regime; ``print`` shows a table.

        Args:
            counts: tokens of each attention instance; those of the last step if left out.

        Raises:
            JanusError: ``comm.order`` without counts before the first step, ``comm.count``.
        """
        step = self._course.step
        if counts is None:
            if step is None:
                order("explain needs counts, or a step that was begun; give counts=(...)")
            counts = step.sizes
        return explain(self.topology, counts, self._rules.row_bytes, self.cost)

    def traffic(self) -> dict[str, LinkTraffic]:
        """What this rank has sent so far, ``"in_node"`` and ``"between_nodes"``, payload and metadata."""
        return self._session.traffic()

    def reset_traffic(self) -> None:
        """Count traffic from zero again."""
        self._session.reset_traffic()

    def fence(self) -> None:
        """Bound what is on the current stream by `step_s`, e.g. after replaying a CUDA graph; nothing on the CPU.

        The graph's own waits cannot be watched. Call it after every replay: a peer that does not answer then becomes
        a `PeerLost` of the next call.
        """
        if self.role != "idle" and isinstance(self._session.payload, StreamWire):
            others = [rank for rank in self._session.members if rank != self.rank]
            self._session.payload.watchdog.guard(At.within("graph", -1, self.timeouts.step_s), others)
