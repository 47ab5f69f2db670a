"""The few integers the ranks tell each other: token counts and layer of a step, or that they leave."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from janus.comm.session import Session
from janus.comm.wire import At
from janus.errors import JanusError, PeerLost

KINDS = ("begin", "dispatch", "close")
_TAG = 1


@dataclass(frozen=True)
class Notice:
    """What one rank says, or what all attention ranks said together.

    Args:
        kind: ``"begin"``, ``"dispatch"`` (without a begun step) or ``"close"``.
        b: tokens of the rank that speaks.
        layer: of the dispatch, else -1.
        counts: tokens of every attention instance, once all were heard.
    """

    kind: str
    b: int
    layer: int
    counts: tuple[int, ...] = ()


class Agreement:
    """Every attention rank tells every other rank; 24 bytes each, A * (A - 1 + E) messages.

    Args:
        session: the open connections.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def exchange(self, mine: Notice, at: At) -> Notice:
        """Say `mine` (attention ranks), hear everybody's, and return what they add up to.

        Args:
            mine: on expert ranks only its kind counts: what this rank expects to hear.
            at: phase, layer, deadline.

        Raises:
            JanusError: ``comm.order`` when the ranks are at different points; ``comm.closed`` on an attention rank
                that goes on after another has closed.
            PeerLost: a rank did not speak.
        """
        watch = self._session.watch
        watch.listening = time.monotonic()
        try:
            heard = self._hear(mine, at)
        except PeerLost as error:
            if self._session.role == "expert" and watch.left(error.peer):
                return Notice("close", 0, -1, (0,) * self._session.topology.n_attention)
            raise
        finally:
            watch.listening = None
        counts = tuple(notice.b for notice in heard.values())
        if mine.kind != "close":
            try:
                self._check(mine, heard)
            except JanusError:
                self._session.wire.settle(at)  # the others must hear of it before this program ends
                raise
        kind = "close" if any(notice.kind == "close" for notice in heard.values()) else mine.kind
        return Notice(kind, mine.b, next(iter(heard.values())).layer, counts)

    def _hear(self, mine: Notice, at: At) -> dict[int, Notice]:
        me, wire, topology = self._session.rank, self._session.wire, self._session.topology
        boxes = {peer: torch.empty(3, dtype=torch.int64) for peer in topology.attention_ranks}
        posts = [wire.recv(peer, box, _TAG, at) for peer, box in boxes.items() if peer != me]
        if me in boxes:
            wire.settle(at)
            boxes[me] = torch.tensor([KINDS.index(mine.kind), mine.b, mine.layer], dtype=torch.int64)
            for peer in topology.attention_ranks + topology.expert_ranks:
                if peer != me:
                    wire.send(peer, boxes[me], _TAG, at)
        wire.wait(posts, at)
        if me not in boxes:
            wire.settle(at)
        return {peer: _read(box) for peer, box in boxes.items()}

    def _check(self, mine: Notice, heard: dict[int, Notice]) -> None:
        gone = [rank for rank, notice in heard.items() if notice.kind == "close"]
        if gone:
            if self._session.role == "expert":
                return
            raise JanusError(
                "comm.closed",
                f"attention rank {gone[0]} has closed the exchange, rank {self._session.rank} goes on; "
                "attention ranks make equal numbers of steps, those without work with 0 tokens",
            )
        said = {rank: (notice.kind, notice.layer) for rank, notice in heard.items()}
        if len(set(said.values())) > 1 or next(iter(heard.values())).kind != mine.kind:
            raise JanusError(
                "comm.order",
                f"all ranks must be at the same point; rank {self._session.rank} is at {mine.kind!r}, the attention "
                f"ranks at {said}; call begin on all ranks or on none, and dispatch the same layer",
            )


def _read(box: torch.Tensor) -> Notice:
    kind, b, layer = box.tolist()
    return Notice(KINDS[kind], b, layer)
