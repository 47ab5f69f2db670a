"""`Exchange`: one object per process, the same line on every rank; rows out, partial sums home."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from janus.comm import checks
from janus.comm.agreement import Agreement, Notice
from janus.comm.buffers import Size
from janus.comm.checks import order
from janus.comm.cost import CostModel
from janus.comm.lanes import Pending
from janus.comm.layout import REGIMES
from janus.comm.rows import Cargo
from janus.comm.session import Session
from janus.comm.terms import LinkTraffic, Step, Timeouts
from janus.comm.transport import Transport
from janus.comm.travel import Trail
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
        capacity: rows that each attention instance takes up in `x_all`, padding included; None: just its own.
        physical_ids: int64 [n, K], -1 where a choice lives elsewhere; None with gate "experts".
        weights: [n, K] as dispatched, 0 where `physical_ids` is -1; None with gate "experts".
    """

    layer: int
    counts: tuple[int, ...]
    capacity: int | None
    physical_ids: torch.Tensor | None
    weights: torch.Tensor | None
    rows: int
    trail: Trail
    posted: float

    @property
    def valid(self) -> torch.Tensor:
        """Bool [rows] on the CPU: which rows of `x_all` are tokens, the others being padding (zeros)."""
        if self.capacity is None or self.physical_ids is not None:
            return torch.ones(self.rows, dtype=torch.bool)
        return (torch.arange(self.capacity) < torch.tensor(self.counts).view(-1, 1)).view(-1)


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
        regime: ``"direct"``, ``"gather"``, ``"spread"``, ``"relay"`` or ``"auto"`` (chosen by `cost` once per step,
            alike on all ranks).
        capacity: rows that every attention rank takes up on the wire. ``"exact"``: just its own; ``"bucket"``: the
            largest count of the step, rounded up to a power of two; a number: always that many, and `begin` may be
            left out. What is fixed does not change sizes from step to step, as CUDA graphs need; padding is zeros.
        device: ``"cpu"`` (gloo) or a CUDA device (NCCL).
        timeouts: bounds of every wait.
        timeout_s: sets `timeouts.step_s` alone.
        contract: more JSON fields that must be equal on all ranks.
        cost: the model behind ``"auto"``; see `calibrate`.

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
        capacity: int | str = "exact",
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
        self.capacity = checks.capacity_of(capacity, max_tokens)
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
        self._open: Handle | str | None = None  # a string while a call of that name is under way
        terms = {
            "hidden_size": hidden_size, "dtype": str(self.dtype), "max_tokens": max_tokens, "gate": gate,
            "top_k": top_k, "slots_per_instance": slots_per_instance, "regime": regime, "capacity": capacity,
            "topology": topology.to_dict(), "cost": self.cost.to_dict(),
        }  # fmt: skip
        self._session = Session(topology, self.timeouts, terms, contract or {})
        self.rank: int = self._session.rank
        self.role: Role = self._session.role
        size = Size(hidden_size, self.dtype.itemsize, self._top_k if gate == "attention" else 0)
        self._transport = Transport(self._session, size, self.dtype, self._slots, regime, max_tokens, self.device)
        self._fixed = self._as_step(self._full()) if isinstance(self.capacity, int) else None  # needs no begin

    @property
    def regime(self) -> str:
        """How the rows of the last agreed step travel; before the first step what was asked for."""
        return self._regime

    @property
    def backend(self) -> str:
        """What carries the bytes: ``"gloo"``."""
        return "gloo"

    def buffer_bytes(self) -> int:
        """Bytes this rank takes for rows under way, at most `max_tokens` on every rank; taken at the first layer."""
        return 0 if self.role == "idle" else self._transport.buffer_bytes()

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
            checks.check_count(b, checks.most(self.capacity, self.max_tokens))
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
        return self._transport.out.run(self._dispatch(x, layer, physical_ids, weights))

    def dispatch_async(
        self,
        x: torch.Tensor,
        *,
        layer: int,
        physical_ids: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> Pending[Handle]:
        """Like `dispatch`, but goes on by itself: ``.wait()`` gives the handle. `x` must not change before.

        Arguments are checked, and counts agreed where `begin` was not called, before it returns.
        """
        return self._transport.out.submit(self._dispatch(x, layer, physical_ids, weights))

    def _dispatch(self, x: torch.Tensor, layer: int, ids: Any, weights: Any) -> Callable[[], Handle]:
        self._check_side("attention", "dispatch")
        self._check_idle("dispatch")
        checks.check_rows("x", x, (None, self.hidden_size), self.dtype, self.device)
        checks.check_count(len(x), checks.most(self.capacity, self.max_tokens))
        slots = self._slots * self.topology.n_experts
        checks.check_choices(self.gate, ids, weights, len(x), self._top_k, slots, self.dtype)
        step = self._step_for(layer, len(x))
        self._open = "dispatch"
        at = At.within("dispatch", layer, self.timeouts.step_s)
        own = Cargo(x.detach(), *(None if t is None else t.detach() for t in (ids, weights)))
        if own.ids is not None:
            own = replace(own, ids=own.ids.to(torch.int32))

        def carry() -> Handle:
            _, _, trail = self._transport.outward(step.route, step.sizes, own, at, None)
            self._open = Handle(layer, step.counts, step.capacity, ids, weights, len(x), trail, time.monotonic())
            return self._open

        return carry

    def receive(self, *, out: torch.Tensor | None = None) -> tuple[torch.Tensor, Handle]:
        """Wait for the rows of the next layer.

        Args:
            out: [n, H] with room for every row, to receive into; gate ``"experts"`` only. Without it `x_all` stands
                in memory of the exchange, which the next `receive` uses again.

        Returns:
            `x_all` and its handle. Gate ``"experts"``: [B, H], the same bytes in the same order on every expert
            rank (with a capacity: [n_a * capacity, H]); gate ``"attention"``: [n, H], this instance's rows, in the
            same order of tokens.

        Raises:
            JanusError: ``comm.role``, ``comm.order``, ``comm.out``; ``comm.closed`` when the attention side has closed.
            PeerLost: phase ``"receive"``.
        """
        return self._transport.out.run(self._receive(out))

    def receive_async(self, *, out: torch.Tensor | None = None) -> Pending[tuple[torch.Tensor, Handle]]:
        """Like `receive`, but goes on by itself: ``.wait()`` gives rows and handle."""
        return self._transport.out.submit(self._receive(out))

    def _receive(self, out: torch.Tensor | None) -> Callable[[], tuple[torch.Tensor, Handle]]:
        self._check_side("expert", "receive")
        self._check_idle("receive")
        step = self._step or self._fixed
        if step is None:
            heard = self._agree("receive", Notice("dispatch", 0, -1))
            step, layer = self._as_step(heard), heard.layer
        else:
            layer, self._layer = self._layer, self._layer + 1
        if step.closed:
            raise JanusError("comm.closed", "the attention side has closed this exchange; stop serving")
        if self._step and not step.total:
            order("no dispatch follows in a step of 0 tokens; call begin() for the next step")
        checks.check_out(out, sum(step.sizes), self.hidden_size, self.dtype, self.device, self.gate)
        self._open = "receive"
        waiting = self.timeouts.step_s if self._step else self.timeouts.idle_s

        def carry() -> tuple[torch.Tensor, Handle]:
            at = At.within("receive", layer, waiting)
            cargo, counts, trail = self._transport.outward(step.route, step.sizes, None, at, out)
            assert cargo is not None
            ids = None if cargo.ids is None else cargo.ids.to(torch.int64)
            counts = step.counts if cargo.ids is None else counts
            self._open = Handle(layer, counts, step.capacity, ids, cargo.weights, len(cargo.x), trail, time.monotonic())
            return cargo.x, self._open

        return carry

    def reply(self, y_partial: torch.Tensor, handle: Handle) -> None:
        """Send this instance's weighted partial outputs on their way home; they may change as soon as it returns.

        Args:
            y_partial: like `x_all`, row for row.
            handle: from `receive`.

        Raises:
            JanusError: ``comm.role``, ``comm.order``, ``comm.y_partial``.
            PeerLost: phase ``"reply"``.
        """
        self._transport.home.run(self._reply(y_partial, handle))

    def reply_async(self, y_partial: torch.Tensor, handle: Handle) -> Pending[None]:
        """Like `reply`, but goes on by itself; `y_partial` must not change before ``.wait()`` has returned."""
        return self._transport.home.submit(self._reply(y_partial, handle))

    def _reply(self, y_partial: torch.Tensor, handle: Handle) -> Callable[[], None]:
        self._check_side("expert", "reply")
        self._check_open(handle, "reply")
        checks.check_rows("y_partial", y_partial, (handle.rows, self.hidden_size), self.dtype, self.device)
        self._open = None
        at = At.within("reply", handle.layer, self.timeouts.step_s)
        return self._transport.reply(handle.trail, y_partial.detach(), at)

    def combine(self, handle: Handle, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Wait for the sums of the rows dispatched with `handle`.

        Args:
            handle: from `dispatch`.
            out: [b, H] for the result; a new tensor without it.

        Returns:
            [b, H]: per token the sum over its expert instances, in a fixed order (see `janus.comm.travel`).

        Raises:
            JanusError: ``comm.role``, ``comm.order``, ``comm.out``.
            PeerLost: phase ``"combine"``.
        """
        return self._transport.home.run(self._combine(handle, out))

    def combine_async(self, handle: Handle, *, out: torch.Tensor | None = None) -> Pending[torch.Tensor]:
        """Like `combine`, but goes on by itself: ``.wait()`` gives the sums."""
        return self._transport.home.submit(self._combine(handle, out))

    def _combine(self, handle: Handle, out: torch.Tensor | None) -> Callable[[], torch.Tensor]:
        self._check_side("attention", "combine")
        self._check_open(handle, "combine")
        if out is None:
            out = torch.empty(handle.rows, self.hidden_size, dtype=self.dtype, device=self.device)
        checks.check_rows("out", out, (handle.rows, self.hidden_size), self.dtype, self.device)
        self._open = None
        # counted from the dispatch, so that who waits for this rank gives up later than this rank does
        step_s = self.timeouts.step_s
        at = At("combine", handle.layer, max(handle.posted + step_s, time.monotonic() + step_s / 2))
        return lambda: self._transport.combine(handle.trail, out, at)

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
        self._session.reset_traffic()

    def close(self) -> None:
        """Leave in good order, within `close_s`; may be called again, and after a failure."""
        if self.role == "attention" and self._session.usable and self._open is None:
            notice = Notice("close", 0, -1)
            self._session.say_goodbye(lambda at: Agreement(self._session).exchange(notice, at))
        self._session.close()
        if self.role != "idle":
            self._transport.close()
        self._open = None

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the steps behind the calls ------------------------------------------------------------------------------

    def _full(self) -> Notice:
        """What all ranks would agree on if every one of them had as many tokens as the fixed capacity."""
        n = checks.most(self.capacity, self.max_tokens)
        return Notice("begin", n, -1, (n,) * self.topology.n_attention)

    def _step_for(self, layer: int, b: int) -> Step:
        """The step a dispatch belongs to; without `begin` the ranks agree on counts and layer here."""
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise JanusError("comm.layer", f"layer must be an integer >= 0, got {layer!r}")
        step = self._step
        if step is None:
            return self._fixed or self._as_step(self._agree("dispatch", Notice("dispatch", b, layer)))
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
        size = checks.rounded(self.capacity, heard.counts, self.max_tokens)
        counts = heard.counts if size is None else (size,) * len(heard.counts)
        route = self.cost.route(
            self._asked, topology=self.topology, counts=counts, row_bytes=self._row_bytes,
            gate=self.gate, top_k=self._top_k or None,
        )  # fmt: skip
        self._regime = route.regime
        return Step(heard.counts, route.regime, heard.kind == "close", route.depth, size)

    @property
    def _row_bytes(self) -> int:
        return self.hidden_size * self.dtype.itemsize

    def _check_side(self, wanted: Role, what: str) -> None:
        checks.check_role(self.role, wanted, self.rank, what)
        self._session.check_usable("dispatch" if what == "gather_topk" else what)

    def _check_idle(self, what: str) -> None:
        if self.role == "idle":
            raise JanusError("comm.role", f"rank {self.rank} is idle in topology {self.topology}; it only closes")
        self._session.check_usable(what)
        if isinstance(self._open, str):
            order(f"{what} while {self._open}_async is under way; wait() for it first")
        if self._open is not None:
            verb = "combine" if self.role == "attention" else "reply"
            order(f"{what} while layer {self._open.layer} is under way; call {verb}(handle) first")

    def _check_open(self, handle: Any, what: str) -> None:
        if not isinstance(self._open, Handle) or handle is not self._open:
            given = f"a handle of layer {handle.layer}" if isinstance(handle, Handle) else repr(handle)
            order(f"{what} takes the handle of the layer under way, once; got {given}")


__all__ = ["Exchange", "Handle", "PeerLost"]
