"""`Exchange`: one object per process, the same line on every rank; rows out, partial sums home."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from janus.comm import calibration, checks
from janus.comm.buffers import Size
from janus.comm.carrier import Carrier
from janus.comm.cost import CostModel
from janus.comm.handle import Handle
from janus.comm.lanes import Pending
from janus.comm.layout import REGIMES
from janus.comm.rows import Cargo
from janus.comm.services import Services
from janus.comm.session import Session
from janus.comm.steps import Course, Rules
from janus.comm.terms import Step, Timeouts
from janus.comm.transport import Transport
from janus.comm.wire import At
from janus.errors import JanusError, PeerLost, known
from janus.types import Topology
from janus.types.checks import instance
from janus.types.topology import Role


class Exchange(Services):
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
        max_ctas: most thread blocks that NCCL may take from the computation.

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
        max_ctas: int | None = None,
    ) -> None:
        remedy = "try Topology.parse('2A4E')"
        instance(topology, Topology, "topology must be a janus.Topology", "comm.topology", remedy)
        checks.at_least_one(hidden_size=hidden_size, max_tokens=max_tokens)
        self.gate = known(gate, checks.GATES, "gate", "comm.gate")
        known(regime, (*REGIMES, "auto"), "regime", "comm.regime")
        self.capacity = checks.capacity_of(capacity, max_tokens)
        numbers = {"max_ctas": max_ctas, "top_k": top_k, "slots_per_instance": slots_per_instance}
        needed = ("top_k", "slots_per_instance") if gate == "attention" else ()
        checks.at_least_one(**{name: n for name, n in numbers.items() if n is not None or name in needed})
        checks.check_values(timeouts, contract, cost)
        self.topology, self.hidden_size, self.max_tokens = topology, hidden_size, max_tokens
        self.dtype, self.device = checks.dtype_of(dtype), checks.device_of(device)
        self.top_k, self.slots_per_instance = top_k or 0, slots_per_instance or 0
        self.timeouts = timeouts or Timeouts()
        if timeout_s is not None:
            self.timeouts = replace(self.timeouts, step_s=timeout_s)
        cost = cost or CostModel()
        terms = {
            "hidden_size": hidden_size, "dtype": str(self.dtype), "max_tokens": max_tokens, "gate": gate,
            "top_k": top_k, "slots_per_instance": slots_per_instance, "regime": regime, "capacity": capacity,
            "topology": topology.to_dict(), "device": self.device.type, "cost": cost.to_dict(),
        }  # fmt: skip
        carrier = Carrier(self.device, gate == "attention", max_ctas)
        self._session = Session(topology, self.timeouts, terms, contract or {}, carrier)
        self.rank: int = self._session.rank
        self.role: Role = self._session.role
        row_bytes = hidden_size * self.dtype.itemsize
        self._rules = rules = Rules(regime, self.capacity, max_tokens, row_bytes, gate, self.top_k or None)
        self._course = Course(self._session, self.timeouts, rules, cost)
        size = Size(hidden_size, self.dtype.itemsize, self.top_k if gate == "attention" else 0)
        self._transport = Transport(
            self._session, size, self.dtype, self.slots_per_instance, regime, max_tokens, self.device
        )

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
        return self._course.begin(b)

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
        course = self._course
        course.check_side("attention", "dispatch")
        course.check_idle("dispatch")
        checks.check_rows("x", x, (None, self.hidden_size), self.dtype, self.device)
        checks.check_count(len(x), self._rules.most)
        slots = self.slots_per_instance * self.topology.n_experts
        checks.check_choices(self.gate, ids, weights, len(x), self.top_k, slots, x)
        step = course.to_dispatch(layer, len(x))
        course.open = "dispatch"
        at = At.within("dispatch", layer, self.timeouts.step_s)
        own = Cargo(x.detach(), *(None if t is None else t.detach() for t in (ids, weights)))
        if own.ids is not None:
            own = replace(own, ids=own.ids.to(torch.int32))

        def carry() -> Handle:
            _, _, trail = self._transport.outward(step.route, step.sizes, own, at, None)
            course.open = Handle(layer, step.counts, step.capacity, ids, weights, len(x), trail, time.monotonic())
            return course.open

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
        course = self._course
        course.check_side("expert", "receive")
        course.check_idle("receive")
        step, layer = course.to_receive()
        checks.check_out(out, sum(step.sizes), self.hidden_size, self.dtype, self.device, self.gate)
        course.take()
        waiting = self.timeouts.step_s if course.step else self.timeouts.idle_s

        def carry() -> tuple[torch.Tensor, Handle]:
            at = At.within("receive", layer, waiting)
            try:
                cargo, counts, trail = self._transport.outward(step.route, step.sizes, None, at, out)
            except PeerLost as error:
                course.check_left(error)
                raise
            assert cargo is not None
            ids = None if cargo.ids is None else cargo.ids.to(torch.int64)
            counts = step.counts if cargo.ids is None else counts
            rows = len(cargo.x)
            course.open = Handle(layer, counts, step.capacity, ids, cargo.weights, rows, trail, time.monotonic())
            return cargo.x, course.open

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
        """Like `reply`, but goes on by itself; `y_partial` must not change before ``.wait()`` has returned.

        Nor does the next `receive` wait for it: a `y_partial` in the memory of `x_all` has to be waited for first.
        """
        return self._transport.home.submit(self._reply(y_partial, handle))

    def _reply(self, y_partial: torch.Tensor, handle: Handle) -> Callable[[], None]:
        self._course.check_side("expert", "reply")
        self._course.check_open(handle, "reply")
        checks.check_rows("y_partial", y_partial, (handle.rows, self.hidden_size), self.dtype, self.device)
        self._course.open = None
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
        self._course.check_side("attention", "combine")
        self._course.check_open(handle, "combine")
        if out is None:
            out = torch.empty(handle.rows, self.hidden_size, dtype=self.dtype, device=self.device)
        checks.check_rows("out", out, (handle.rows, self.hidden_size), self.dtype, self.device)
        if out.requires_grad:
            raise JanusError("comm.out", "out must not require grad: sums are written into it; give out.detach()")
        self._course.open = None
        # counted from the dispatch, so that who waits for this rank gives up later than this rank does
        step_s = self.timeouts.step_s
        at = At("combine", handle.layer, max(handle.posted + step_s, time.monotonic() + step_s / 2))
        return lambda: self._transport.combine(handle.trail, out, at)

    def calibrate(self, *, seconds: float = 5.0) -> CostModel:
        """Time the routes between the ranks as they are, and choose by that from now on; all ranks call it together.

        Between two steps. Rows of zeros travel over every route that this exchange may take (with `regime`
        ``"auto"`` over all), with few and with many tokens.

        Args:
            seconds: about how long it may take, the largest that any rank gives; at least one run of everything is made.
                5 is enough up to some 30 ranks.

        Returns:
            The same `CostModel` on every rank, which is also `cost` from now on.

        Raises:
            JanusError: ``comm.role``, ``comm.order``, ``comm.calibrate``.
            PeerLost: as for a step.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
            raise JanusError("comm.calibrate", f"seconds must be a finite number > 0, got {seconds!r}; try 5.0")
        self._course.check_idle("calibrate")
        self._course.cost = calibration.calibrate(self, seconds)
        return self.cost

    def close(self) -> None:
        """Leave in good order, within `close_s`; may be called again, and after a failure."""
        self._course.say_close(self._transport.home.finish)
        self._session.close()
        if self.role != "idle":
            self._transport.close(self.timeouts.close_s)
        self._course.open = None

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


__all__ = ["Exchange", "Handle", "PeerLost"]
