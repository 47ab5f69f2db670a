"""`Exchange`: one object per process, the same line on every rank; rows out, partial sums home."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from janus.comm import checks
from janus.comm.agreement import Agreement, Notice
from janus.comm.checks import order
from janus.comm.cost import CostModel
from janus.comm.layout import REGIMES, stops
from janus.comm.rows import Held, Sliced, Whole
from janus.comm.session import Session
from janus.comm.terms import LinkTraffic, Step, Timeouts
from janus.comm.travel import Footprint, homeward, outward
from janus.comm.wire import At
from janus.errors import JanusError, PeerLost, known
from janus.types import Topology
from janus.types.checks import instance
from janus.types.topology import Role


@dataclass(frozen=True, eq=False)
class Handle:
    """What a dispatch leaves for its combine, on either side.

    Args:
        layer: MoE layer.
        counts: rows of each attention instance, in the order of `x_all` on an expert rank.
        physical_ids: int64 [n, K], -1 where a choice lives elsewhere; None with gate "experts".
        weights: [n, K] as dispatched, 0 where `physical_ids` is -1; None with gate "experts".
    """

    layer: int
    counts: tuple[int, ...]
    physical_ids: torch.Tensor | None
    weights: torch.Tensor | None
    rows: int
    trail: tuple[Footprint, ...]
    posted: float


class Exchange:
    """Carries rows from every attention instance to the expert instances and their partial sums back.

    Args:
        topology: the two pools; the same on every rank.
        hidden_size: H.
        dtype: of the rows: float32, bfloat16 or float16.
        max_tokens: largest b of any rank in one step.
        gate: ``"experts"``: every expert instance gets every row; ``"attention"``: only the rows that chose a slot
            of that instance, with the choices.
        top_k: K, needed with gate ``"attention"``.
        slots_per_instance: C, needed with gate ``"attention"``.
        regime: ``"direct"``, ``"gather"`` or ``"auto"`` (chosen by `cost` once per step, alike on all ranks).
        device: ``"cpu"``.
        timeouts: bounds of every wait.
        timeout_s: sets `timeouts.step_s` alone.
        contract: more JSON fields that must be equal on all ranks.
        cost: the model behind ``"auto"``.

    Raises:
        JanusError: ``comm.*`` for a wrong argument; ``comm.contract`` when two ranks were told different things.
        PeerLost: phase ``"rendezvous"``.

    Example:
        On attention ranks ``ex.begin(len(x)); handle = ex.dispatch(x, layer=0); y = ex.combine(handle)``; on expert
        ranks ``ex.begin(); x_all, handle = ex.receive(); ex.reply(experts(x_all), handle)``.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        hidden_size: int,
        dtype: Any,
        max_tokens: int,
        gate: Literal["experts", "attention"] = "experts",
        top_k: int | None = None,
        slots_per_instance: int | None = None,
        regime: str = "auto",
        device: Any = "cpu",
        timeouts: Timeouts | None = None,
        timeout_s: float | None = None,
        contract: dict[str, Any] | None = None,
        cost: CostModel | None = None,
    ) -> None:
        remedy = "try Topology.parse('2A4E')"
        instance(topology, Topology, "topology must be a janus.Topology", "comm.topology", remedy)
        checks.at_least_one(hidden_size=hidden_size, max_tokens=max_tokens)
        self.gate = known(gate, checks.GATES, "gate", "comm.gate")
        self._asked = known(regime, (*REGIMES, "auto"), "regime", "comm.regime")
        if gate == "attention":
            checks.at_least_one(top_k=top_k, slots_per_instance=slots_per_instance)
        self.topology, self.hidden_size, self.max_tokens = topology, hidden_size, max_tokens
        self.dtype, self.device = checks.dtype_of(dtype), checks.device_of(device)
        self._top_k, self._slots = top_k or 0, slots_per_instance or 0
        self.timeouts = timeouts or Timeouts()
        if timeout_s is not None:
            self.timeouts = replace(self.timeouts, step_s=timeout_s)
        self.cost = cost or CostModel()
        self._regime = regime
        self._step: Step | None = None
        self._layer = 0
        self._open: Handle | None = None
        terms = {
            "hidden_size": hidden_size, "dtype": str(self.dtype), "max_tokens": max_tokens, "gate": gate,
            "top_k": top_k, "slots_per_instance": slots_per_instance, "regime": regime,
            "topology": topology.to_dict(), "cost": self.cost.to_dict(),
        }  # fmt: skip
        self._session = Session(topology, self.timeouts, terms, contract or {})
        self.rank: int = self._session.rank
        self.role: Role = self._session.role

    @property
    def regime(self) -> str:
        """How the rows of the last agreed step travel; before the first step what was asked for."""
        return self._regime

    @property
    def backend(self) -> str:
        """What carries the bytes: ``"gloo"``."""
        return "gloo"

    def begin(self, b: int | None = None) -> Step:
        """Agree on the next model step: attention ranks say their token count, expert ranks wait for it.

        Args:
            b: tokens of this rank, 0..max_tokens; attention ranks only.

        Returns:
            The same `Step` on every rank; on expert ranks `.closed` when the attention side has closed.

        Raises:
            JanusError: ``comm.role``, ``comm.count``, ``comm.order``, ``comm.closed``.
            PeerLost: phase ``"begin"``.
        """
        self._check_idle("begin")
        if self.role == "expert":
            if b is not None:
                raise JanusError("comm.role", f"an expert rank begins a step without a count, got b={b!r}")
        else:
            checks.check_count(b, self.max_tokens)
        heard = self._agree("begin", Notice("begin", b or 0, -1))
        self._step, self._layer = self._as_step(heard), 0
        return self._step

    def dispatch(
        self,
        x: torch.Tensor,
        *,
        layer: int,
        physical_ids: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> Handle:
        """Send this attention rank's rows on their way; `x` may change as soon as it returns.

        Args:
            x: [b, H] in the exchange's dtype.
            layer: MoE layer; 0, 1, 2, ... within a begun step.
            physical_ids: int32 or int64 [b, K], -1 for no choice; gate ``"attention"`` only.
            weights: [b, K], float32 or the exchange's dtype; gate ``"attention"`` only.

        Raises:
            JanusError: ``comm.*``, before a byte is sent.
            PeerLost: phase ``"dispatch"``.
        """
        self._check_side("attention", "dispatch")
        self._check_idle("dispatch")
        checks.check_rows("x", x, (None, self.hidden_size), self.dtype)
        checks.check_count(len(x), self.max_tokens)
        checks.check_choices(
            self.gate, physical_ids, weights, len(x), self._top_k, self._slots * self.topology.n_experts, self.dtype
        )
        step = self._step_for(layer, len(x))
        mine = self.topology.instance(self.rank)
        counts = tuple(n if a == mine else 0 for a, n in enumerate(step.counts))
        ids = None if physical_ids is None else physical_ids.to(torch.int32)
        held = Held(
            x.detach().clone(memory_format=torch.contiguous_format),
            counts,
            ids,
            None if weights is None else weights.detach(),
        )
        at = At.within("dispatch", layer, self.timeouts.step_s)
        _, trail = self._travel(step, held, at)
        self._open = Handle(layer, step.counts, physical_ids, weights, len(x), trail, time.monotonic())
        return self._open

    def receive(self) -> tuple[torch.Tensor, Handle]:
        """Wait for the rows of the next layer.

        Returns:
            `x_all` and its handle. Gate ``"experts"``: [B, H], the same bytes in the same order on every expert
            rank; gate ``"attention"``: [n, H], this instance's rows, in the same order of tokens.

        Raises:
            JanusError: ``comm.role``, ``comm.order``; ``comm.closed`` when the attention side has closed.
            PeerLost: phase ``"receive"``.
        """
        self._check_side("expert", "receive")
        self._check_idle("receive")
        step = self._step
        if step is None:
            heard = self._agree("receive", Notice("dispatch", 0, -1))
            step, layer = self._as_step(heard), heard.layer
        else:
            layer, self._layer = self._layer, self._layer + 1
        if step.closed:
            raise JanusError("comm.closed", "the attention side has closed this exchange; stop serving")
        if self._step and not step.total:
            order("no dispatch follows in a step of 0 tokens; call begin() for the next step")
        at = At.within("receive", layer, self.timeouts.step_s)
        none = torch.empty(0, self.hidden_size, dtype=self.dtype)
        replies = self._session.wire.pending
        held, trail = self._travel(step, Held(none, (0,) * len(step.counts)), at)
        self._session.wire.settle(at, replies)  # of the layer before: long gone, since its sums were needed for this
        ids = None if held.ids is None else held.ids.to(torch.int64)
        self._open = Handle(layer, held.counts, ids, held.weights, len(held.x), trail, time.monotonic())
        return held.x, self._open

    def reply(self, y_partial: torch.Tensor, handle: Handle) -> None:
        """Send this instance's weighted partial outputs on their way home.

        Args:
            y_partial: like `x_all`, row for row.
            handle: from `receive`.

        Raises:
            JanusError: ``comm.role``, ``comm.order``, ``comm.y_partial``.
            PeerLost: phase ``"reply"``.
        """
        self._check_side("expert", "reply")
        self._check_open(handle, "reply")
        checks.check_rows("y_partial", y_partial, (handle.rows, self.hidden_size), self.dtype)
        self._open = None
        at = At.within("reply", handle.layer, self.timeouts.step_s)
        homeward(self._session.wire, self.topology, self.rank, handle.trail, y_partial.detach(), at)

    def combine(self, handle: Handle) -> torch.Tensor:
        """Wait for the sums of the rows dispatched with `handle`.

        Returns:
            [b, H]: per token the sum over its expert instances, in a fixed order (see `janus.comm.travel`).

        Raises:
            JanusError: ``comm.role``, ``comm.order``.
            PeerLost: phase ``"combine"``.
        """
        self._check_side("attention", "combine")
        self._check_open(handle, "combine")
        self._open = None
        # counted from the dispatch, so that who waits for this rank gives up later than this rank does
        step_s = self.timeouts.step_s
        deadline = max(handle.posted + step_s, time.monotonic() + step_s / 2)
        at = At("combine", handle.layer, deadline)
        none = torch.empty(0, self.hidden_size, dtype=self.dtype)
        y = homeward(self._session.wire, self.topology, self.rank, handle.trail, none, at)
        self._session.wire.settle(at)
        return y

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
        self._check_side("attention", "gather_topk")
        step = self._step
        if step is None:
            order("gather_topk needs the counts of all ranks; call begin(b) first")
        mine = self.topology.instance(self.rank)
        checks.check_ids("ids", ids_bK, step.counts[mine], self._top_k or None, None)
        at = At.within("dispatch", self._layer, self.timeouts.step_s)
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

    def traffic(self) -> dict[str, LinkTraffic]:
        """What this rank has sent so far, ``"in_node"`` and ``"between_nodes"``, payload and metadata."""
        return self._session.traffic()

    def reset_traffic(self) -> None:
        """Count traffic from zero again."""
        self._session.wire.reset_traffic()

    def close(self) -> None:
        """Leave in good order, within `close_s`; may be called again, and after a failure."""
        if self.role == "attention" and self._session.usable and self._open is None:
            notice = Notice("close", 0, -1)
            self._session.say_goodbye(lambda at: Agreement(self._session).exchange(notice, at))
        self._session.close()
        self._open = None

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the steps behind the calls ------------------------------------------------------------------------------

    def _travel(self, step: Step, held: Held, at: At) -> tuple[Held, tuple[Footprint, ...]]:
        codec: Whole | Sliced = Whole(step.counts, self.hidden_size, self.dtype)
        if self.gate == "attention":
            codec = Sliced(step.counts, self.hidden_size, self.dtype, self._top_k, self._slots)
        route = stops(step.regime, self.topology, self.rank)
        return outward(self._session.wire, route, self.rank, held, codec, at)

    def _step_for(self, layer: int, b: int) -> Step:
        """The step a dispatch belongs to; without `begin` the ranks agree on counts and layer here."""
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise JanusError("comm.layer", f"layer must be an integer >= 0, got {layer!r}")
        step = self._step
        if step is None:
            return self._as_step(self._agree("dispatch", Notice("dispatch", b, layer)))
        if not step.total:
            order("no dispatch follows in a step of 0 tokens; call begin(b) for the next step")
        if layer != self._layer:
            raise JanusError("comm.layer", f"a step runs its layers in order; expected {self._layer}, got {layer}")
        begun = step.counts[self.topology.instance(self.rank)]
        if b != begun:
            raise JanusError("comm.count", f"this step was begun with b={begun} on this rank, got x of {b} rows")
        self._layer += 1
        return step

    def _agree(self, phase: str, notice: Notice) -> Notice:
        waiting = self.timeouts.idle_s if self.role == "expert" else self.timeouts.step_s
        return Agreement(self._session).exchange(notice, At.within(phase, notice.layer, waiting))

    def _as_step(self, heard: Notice) -> Step:
        regime = self._asked
        if regime == "auto":
            row_bytes = self.hidden_size * self.dtype.itemsize
            regime = self.cost.choose(topology=self.topology, counts=heard.counts, row_bytes=row_bytes, gate=self.gate)
        self._regime = regime
        return Step(heard.counts, regime, heard.kind == "close")

    def _check_side(self, wanted: Role, what: str) -> None:
        checks.check_role(self.role, wanted, self.rank, what)
        self._session.check_usable("dispatch" if what == "gather_topk" else what)

    def _check_idle(self, what: str) -> None:
        if self.role == "idle":
            raise JanusError("comm.role", f"rank {self.rank} is idle in topology {self.topology}; it only closes")
        self._session.check_usable(what)
        if self._open is not None:
            verb = "combine" if self.role == "attention" else "reply"
            order(f"{what} while layer {self._open.layer} is under way; call {verb}(handle) first")

    def _check_open(self, handle: Any, what: str) -> None:
        if self._open is None or handle is not self._open:
            given = f"a handle of layer {handle.layer}" if isinstance(handle, Handle) else repr(handle)
            order(f"{what} takes the handle of the layer under way, once; got {given}")


__all__ = ["Exchange", "Handle", "PeerLost"]
