"""What the ranks must agree on before the first byte, compared field by field."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from janus.comm.store import Board, StoreGone
from janus.errors import JanusError, PeerLost

_ABSENT = "(absent)"


def agree(board: Board, mine: dict[str, Any], members: tuple[int, ...], rank: int, seconds: float) -> None:
    """Pin this rank's contract, read everybody's, and refuse the first field in which two ranks differ.

    Args:
        board: of this exchange.
        mine: JSON values by field name.
        members: ranks of the topology as this rank was told it.
        rank: this process.
        seconds: until every contract must be there.

    Raises:
        JanusError: ``comm.contract``, the same text on every rank.
        PeerLost: phase ``"rendezvous"``; a rank has pinned nothing in time.
    """
    deadline = time.monotonic() + seconds
    said: dict[int, Any] = {}
    wanted = set(members)
    while wanted - set(said):
        try:
            said |= collect(board, "contract", mine, tuple(sorted(wanted)), rank, deadline)
        except PeerLost:
            said |= _present(board, wanted)
            if difference(said):
                break
            raise
        # a rank that was told another topology may wait for ranks this one does not know: then all must hear of it
        wanted |= {r for contract in said.values() for r in _named(contract)}
    problem = difference(said)
    if problem:
        raise JanusError("comm.contract", problem)


def _named(contract: dict[str, Any]) -> set[int]:
    topology = contract.get("topology", {})
    return {r for pool in ("attention", "experts") for node in topology.get(pool, ()) for r in node}


def _present(board: Board, ranks: Iterable[int]) -> dict[int, Any]:
    try:
        found = board.read(f"contract/{r}" for r in ranks)
    except StoreGone:
        return {}
    return {int(key.split("/")[1]): value for key, value in found.items()}


def collect(
    board: Board,
    key: str,
    value: Any,
    members: tuple[int, ...],
    rank: int,
    deadline: float,
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, Any]:
    """Pin `value` under `key` and this rank, and return what every member pinned there.

    Raises:
        PeerLost: phase ``"rendezvous"``, naming the first member that pinned nothing before `deadline` or `stop()`.
    """
    try:
        board.put(f"{key}/{rank}", value)
        found = board.wait([f"{key}/{m}" for m in members], deadline, stop)
    except StoreGone as error:
        raise PeerLost("rendezvous", -1, rank, members[0], str(error)) from None
    for member in members:
        if f"{key}/{member}" not in found:
            raise PeerLost("rendezvous", -1, rank, member, f"it has said nothing under {key!r} in time")
    return {member: found[f"{key}/{member}"] for member in members}


def difference(said: dict[int, dict[str, Any]]) -> str:
    """The first field, in alphabetical order, that two ranks give different values, as a sentence; else "".

    Example:
        >>> difference({0: {"top_k": 2}, 3: {"top_k": 4}})
        'every rank must give the same top_k; rank 0 has 2, rank 3 has 4; make the arguments equal'
    """
    if not said:
        return ""
    first = min(said)
    fields = sorted({field for contract in said.values() for field in contract})
    for field in fields:
        for rank in sorted(said):
            a, b = (json.dumps(said[r].get(field, _ABSENT)) for r in (first, rank))
            if a != b:
                return (
                    f"every rank must give the same {field}; rank {first} has {a}, rank {rank} has {b}; "
                    "make the arguments equal"
                )
    return ""
