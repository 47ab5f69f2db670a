"""The small frozen values an exchange speaks in: time limits, the agreement of one step, traffic so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from janus.comm.layout import Route
from janus.errors import JanusError


@dataclass(frozen=True)
class Timeouts:
    """How long each kind of wait may last, in seconds; no wait is unbounded.

    Args:
        rendezvous_s: until every rank has come up, and for `Exchange.share`.
        step_s: until a peer that must answer within a step does.
        idle_s: how long an expert rank waits for the next step; an idle server is not a lost peer.
        close_s: for an orderly `close`.

    Raises:
        JanusError: ``comm.timeouts`` for a value that is not a finite number > 0.

    Example:
        >>> Timeouts(step_s=5).step_s
        5.0
    """

    rendezvous_s: float = 60.0
    step_s: float = 30.0
    idle_s: float = 600.0
    close_s: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise JanusError(
                    "comm.timeouts", f"{field.name} must be a finite number of seconds > 0, got {value!r}; try 30.0"
                )
            object.__setattr__(self, field.name, float(value))


@dataclass(frozen=True)
class Step:
    """What all ranks agreed on for one model step.

    Args:
        counts: tokens of each attention instance, in instance order.
        regime: how this step's rows travel, one of `janus.comm.layout.REGIMES`.
        closed: the attention side has closed; no step follows.
        depth: how many turns of pieces follow one another in the regimes that cut rows into pieces, else 1.
        capacity: rows that every attention instance takes up on the wire, padding included; None: just its own.

    Example:
        >>> Step((3, 0, 2), "direct").total
        5
    """

    counts: tuple[int, ...]
    regime: str
    closed: bool = False
    depth: int = 1
    capacity: int | None = None

    @property
    def route(self) -> Route:
        """Regime and depth together."""
        return Route(self.regime, self.depth)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each attention instance on the wire."""
        return self.counts if self.capacity is None else (self.capacity,) * len(self.counts)

    @property
    def total(self) -> int:
        """B, the tokens of all attention instances; 0 means that no dispatch follows in this step on any rank."""
        return sum(self.counts)


@dataclass(frozen=True)
class LinkTraffic:
    """What one rank has sent over one class of links: payload and metadata alike.

    Example:
        >>> LinkTraffic(1, 100).plus(28)
        LinkTraffic(messages=2, bytes=128)
    """

    messages: int = 0
    bytes: int = 0

    def plus(self, size: int) -> LinkTraffic:
        """One more message of `size` bytes."""
        return LinkTraffic(self.messages + 1, self.bytes + size)
