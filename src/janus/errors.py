"""The two kinds of error Janus raises: what a user can cause, and what the network can cause."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable


class JanusError(ValueError):
    """A mistake a user can make and mend; the message says the rule, the values received and the remedy.

    Args:
        code: stable, dotted, lower case (``"topology.overlap"``); programs may match on it.
        message: for people; may change between versions.

    Example:
        >>> try:
        ...     raise JanusError("slo.range", "tpot_ms must be > 0, got -1; give a time in milliseconds")
        ... except JanusError as error:
        ...     error.code
        'slo.range'
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[JanusError], tuple[str, str]]:
        return type(self), (self.code, self.message)


class PeerLost(RuntimeError):
    """A peer closed its connection or stayed silent past the deadline; nothing the caller passed was wrong.

    Args:
        phase: what was being done: ``"rendezvous"``, ``"begin"``, ``"dispatch"``, ``"receive"``, ``"reply"``,
            ``"combine"``, ``"serve"``, ``"close"`` or ``"all_to_all"``.
        layer: MoE layer index, or -1 outside a layer.
        rank: global rank of the process that raises.
        peer: global rank of the peer that was lost.
        detail: what was seen (connection closed, deadline of so many seconds), for people.

    Example:
        >>> str(PeerLost("combine", 3, rank=0, peer=4, detail="connection closed"))
        'rank 0 lost rank 4 in phase combine, layer 3: connection closed'
    """

    def __init__(self, phase: str, layer: int, rank: int, peer: int, detail: str = "") -> None:
        where = f"phase {phase}" + (f", layer {layer}" if layer >= 0 else "")
        super().__init__(f"rank {rank} lost rank {peer} in {where}" + (f": {detail}" if detail else ""))
        self.phase, self.layer, self.rank, self.peer, self.detail = phase, layer, rank, peer, detail

    def __reduce__(self) -> tuple[type[PeerLost], tuple[str, int, int, int, str]]:
        return type(self), (self.phase, self.layer, self.rank, self.peer, self.detail)


def known(value: str, names: Iterable[str], what: str, code: str) -> str:
    """Return `value` if it is one of `names`, else raise a `JanusError` that lists them.

    Example:
        >>> known("exact", ("exact", "greedy"), "method", "sched.method")
        'exact'
    """
    names = tuple(names)
    if not isinstance(value, str) or value not in names:  # `in` would compare an array element by element
        listed = ", ".join(repr(n) for n in names)
        raise JanusError(code, f"{what} must be one of {listed}; got {reprlib.repr(value)}")
    return value
