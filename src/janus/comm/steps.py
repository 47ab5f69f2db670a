"""Where an exchange stands: what was agreed for the step, which layer is next, what is under way; what may be called now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from janus.comm import checks
from janus.comm.agreement import Agreement, Notice
from janus.comm.checks import order
from janus.comm.cost import CostModel
from janus.comm.handle import Handle
from janus.comm.layout import Route
from janus.comm.session import Session
from janus.comm.terms import Step, Timeouts
from janus.comm.wire import At
from janus.errors import JanusError, PeerLost
from janus.types.topology import Role


def _closed() -> JanusError:
    return JanusError("comm.closed", "the attention side has closed this exchange; stop serving")


@dataclass(frozen=True)
class Rules:
    """What the steps of an exchange have in common; see `Exchange`."""

    regime: str
    capacity: int | str
    max_tokens: int
    row_bytes: int
    gate: str
    top_k: int | None

    @property
    def most(self) -> int:
        """Most tokens of a rank."""
        return self.capacity if isinstance(self.capacity, int) else self.max_tokens

    def rows(self, counts: tuple[int, ...]) -> int | None:
        """Rows that every attention instance takes up on the wire; None: just its own.

        Example:
            >>> [Rules("auto", c, 12, 4, "experts", None).rows((3, 9)) for c in ("exact", "bucket", 10)]
            [None, 12, 10]
        """
        if self.capacity == "exact":
            return None
        if isinstance(self.capacity, int):
            return self.capacity
        return min(1 << max(max(counts) - 1, 0).bit_length(), self.max_tokens)


class Course:
    """The steps of one exchange on one rank.

    Args:
        session: to agree over.
        timeouts: bounds of every wait.
        rules: of all steps.
        cost: chooses the route of each step.
    """

    def __init__(self, session: Session, timeouts: Timeouts, rules: Rules, cost: CostModel) -> None:
        self._session, self._timeouts, self._rules, self.cost = session, timeouts, rules, cost
        self.regime = rules.regime
        self.step: Step | None = None  # as begun
        self.layer = 0  # the next of a begun step
        self._told: tuple[Step, int] | None = None  # of a dispatch without `begin`, until it is received
        self.open: Handle | str | None = None  # a string while a call of that name is under way
        self.forced: Route | None = None  # taken instead of a choice, while routes are being measured

    def begin(self, b: int | None) -> Step:
        """Agree on the next step."""
        self.check_idle("begin")
        if self._session.role == "expert":
            if b is not None:
                raise JanusError("comm.role", f"an expert rank begins a step without a count, got b={b!r}")
        else:
            checks.check_count(b, self._rules.most)
        heard = self._agree("begin", Notice("begin", b or 0, -1))
        self.step, self.layer = self._as_step(heard), 0
        return self.step

    def to_dispatch(self, layer: int, b: int) -> Step:
        """The step a dispatch belongs to; without `begin`, and without a fixed capacity, it is agreed on here."""
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise JanusError("comm.layer", f"layer must be an integer >= 0, got {layer!r}")
        step = self.step
        if step is None:
            return self._fixed() or self._as_step(self._agree("dispatch", Notice("dispatch", b, layer)))
        if not step.total:
            order("no dispatch follows in a step of 0 tokens; call begin(b) for the next step")
        if layer != self.layer:
            raise JanusError("comm.layer", f"a step runs its layers in order; expected {self.layer}, got {layer}")
        begun = step.counts[self._session.topology.instance(self._session.rank)]
        if b != begun:
            raise JanusError("comm.count", f"this step was begun with b={begun} on this rank, got x of {b} rows")
        self.layer += 1
        return step

    def to_receive(self) -> tuple[Step, int]:
        """The step and layer that the next receive belongs to; a refusal leaves them so, until `take`."""
        step, layer = self.step or self._fixed(), self.layer
        if step is None:
            if self._told is None:
                heard = self._agree("receive", Notice("dispatch", 0, -1))
                self._told = self._as_step(heard), heard.layer
            step, layer = self._told
        if step.closed:
            raise _closed()
        if self.step and not step.total:
            order("no dispatch follows in a step of 0 tokens; call begin() for the next step")
        return step, layer

    def take(self) -> None:
        """The layer of `to_receive` is being received: the next one comes after it."""
        self.layer, self._told, self.open = self.layer + 1, None, "receive"

    def say_close(self, finish: Callable[[float], None]) -> None:
        """Let what is on its way home arrive, and tell all others that this attention rank leaves; nothing after a loss.

        Where steps are never begun nobody listens: the closed connections tell it, see `check_left`.

        Args:
            finish: waits, for so many seconds, for the calls under way.
        """
        if not self._session.usable or self.open is not None:
            return
        heard = self.step is not None or not isinstance(self._rules.capacity, int)

        def speak(at: At) -> None:
            finish(at.deadline - time.monotonic())
            if self._session.role == "attention" and heard:
                Agreement(self._session).exchange(Notice("close", 0, -1), at)

        self._session.say_goodbye(speak)

    def check_left(self, error: PeerLost) -> None:
        """Where steps are never begun: say that the attention side has closed, if that is what `error` comes from."""
        if self.step is None and self._session.watch.left(error.peer):
            raise _closed() from None

    def check_side(self, wanted: Role, what: str) -> None:
        """Refuse a call that belongs to the other side, or comes after a loss."""
        checks.check_role(self._session.role, wanted, self._session.rank, what)
        self._session.check_usable("dispatch" if what == "gather_topk" else what)

    def check_idle(self, what: str) -> None:
        """Refuse a call that has to wait for the end of a layer."""
        session = self._session
        if session.role == "idle":
            raise JanusError("comm.role", f"rank {session.rank} is idle in topology {session.topology}; it only closes")
        session.check_usable(what)
        if isinstance(self.open, str):
            order(
                f"{what} while {self.open} is under way; wait() for it first, or close the exchange if it was interrupted"
            )
        if self.open is not None:
            verb = "combine" if session.role == "attention" else "reply"
            order(f"{what} while layer {self.open.layer} is under way; call {verb}(handle) first")

    def check_open(self, handle: Any, what: str) -> None:
        """Refuse a handle that is not that of the layer under way."""
        if not isinstance(self.open, Handle) or handle is not self.open:
            given = f"a handle of layer {handle.layer}" if isinstance(handle, Handle) else repr(handle)
            order(f"{what} takes the handle of the layer under way, once; got {given}")

    def _fixed(self) -> Step | None:
        """The step that a fixed capacity makes without a word: all ranks full."""
        if not isinstance(self._rules.capacity, int):
            return None
        counts = (self._rules.capacity,) * self._session.topology.n_attention
        return self._as_step(Notice("begin", 0, -1, counts))

    def _agree(self, phase: str, notice: Notice) -> Notice:
        waiting = self._timeouts.idle_s if self._session.role == "expert" else self._timeouts.step_s
        return Agreement(self._session).exchange(notice, At.within(phase, notice.layer, waiting))

    def _as_step(self, heard: Notice) -> Step:
        rules = self._rules
        size = None if self.forced else rules.rows(heard.counts)  # a measurement takes the rows it asks for
        counts = heard.counts if size is None else (size,) * len(heard.counts)
        route = self.forced or self.cost.route(
            rules.regime, topology=self._session.topology, counts=counts, row_bytes=rules.row_bytes,
            gate=rules.gate, top_k=rules.top_k,
        )  # fmt: skip
        self.regime = route.regime
        return Step(heard.counts, route.regime, heard.kind == "close", route.depth, size)
