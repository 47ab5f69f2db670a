"""How a command tells that it failed: one line for people, one object for programs, one exit code."""

from __future__ import annotations

import json
import sys
from typing import Any

from janus.errors import JanusError, PeerLost

Failure = JanusError | PeerLost


class RunFailed(RuntimeError):
    """The processes of a run did not end as they should, and none of them could say why.

    Args:
        code: ``"run.crash"`` (exit code 1), ``"run.killed"`` or ``"run.deadline"`` (3).
        message: for people: which rank, how it ended, what it said last.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.code, self.message = code, message


def fail(error: JanusError | PeerLost | RunFailed, as_json: bool) -> int:
    """Print `error` to stderr, with `as_json` also as an object to stdout; returns the exit code."""
    print(f"janus: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": to_dict(error)}))
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """2 for what the user can mend, 3 for a lost peer or a deadline, 1 for a crash."""
    if isinstance(error, JanusError):
        return 2
    return 1 if isinstance(error, RunFailed) and error.code == "run.crash" else 3


def to_dict(error: JanusError | PeerLost | RunFailed) -> dict[str, Any]:
    """Plain values, for JSON; `from_dict` reads those of a JanusError or PeerLost back.

    Example:
        >>> to_dict(JanusError("slo.range", "tpot_ms must be > 0"))
        {'code': 'slo.range', 'message': 'tpot_ms must be > 0'}
    """
    if isinstance(error, PeerLost):
        where = {"phase": error.phase, "layer": error.layer, "rank": error.rank, "peer": error.peer}
        return {"code": "peer.lost", "message": str(error), **where, "detail": error.detail}
    return {"code": error.code, "message": error.message}


def from_dict(data: dict[str, Any]) -> Failure:
    """Inverse of `to_dict`."""
    if data["code"] == "peer.lost":
        return PeerLost(data["phase"], data["layer"], data["rank"], data["peer"], data["detail"])
    return JanusError(data["code"], data["message"])
