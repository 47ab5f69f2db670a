"""Pure integers: who hands what to whom in an all-to-all, and when. Nothing here knows about tensors or sockets.

Ranks are numbered by their place in the world, 0 .. W-1. A *piece* ``(s, t)`` is what rank s has for rank t; a message
carries pieces. ``"direct"`` sends every piece by itself. ``"gather"`` takes two phases: inside a node, each rank hands
each fellow what is for it and what is for those ranks of other nodes that the fellow is in charge of; then one message
goes from each node to each rank outside, sent by the fellow in charge. So a piece crosses once inside and once between
nodes, whatever the sizes of the nodes, and no third phase is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from janus.comm.ports import IntArray
from janus.errors import known

REGIMES = ("direct", "gather")

Piece = tuple[int, int]  # source, target


@dataclass(frozen=True)
class Message:
    """What one rank sends another in one phase.

    Args:
        src: who sends.
        dst: who receives.
        pieces: what travels, in order.
    """

    src: int
    dst: int
    pieces: tuple[Piece, ...]

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """Whose pieces these are; ascending."""
        return tuple(sorted({source for source, _ in self.pieces}))


Phases = tuple[tuple[Message, ...], ...]


@lru_cache(maxsize=64)
def phases(regime: str, boxes: tuple[int, ...]) -> Phases:
    """All messages of `regime`, phase by phase; what a rank has for itself does not travel.

    Args:
        regime: one of `REGIMES`.
        boxes: which node each rank sits in.

    Raises:
        JanusError: ``alltoall.regime`` for a name that is not in `REGIMES`.

    Example:
        Two nodes of two ranks: direct takes 8 messages between the nodes, gather 4.

        >>> [[(m.src, m.dst) for m in phase] for phase in phases("gather", (0, 0, 1, 1))]
        [[(0, 1), (1, 0), (2, 3), (3, 2)], [(0, 2), (1, 3), (2, 0), (3, 1)]]
        >>> phases("gather", (0, 0, 1, 1))[0][0].pieces
        ((0, 1), (0, 3))
    """
    known(regime, REGIMES, "regime", "alltoall.regime")
    world = range(len(boxes))
    if regime == "direct":
        return (tuple(Message(s, t, ((s, t),)) for s in world for t in world if s != t),)
    charge = charges(boxes)
    nodes = nodes_of(boxes)
    inside, across = [], []
    for node in nodes:
        for sender in node:
            for fellow in node:
                if fellow != sender:
                    wanted = (fellow, *charge[fellow])
                    inside.append(Message(sender, fellow, tuple((sender, t) for t in wanted)))
            across += [Message(sender, t, tuple((s, t) for s in node)) for t in charge[sender]]
    return tuple(tuple(phase) for phase in (inside, across) if phase)


def charges(boxes: Sequence[int]) -> list[tuple[int, ...]]:
    """Of each rank, the ranks of other nodes to which it sends what its whole node has for them; shared out in turn.

    Example:
        >>> charges((0, 0, 1, 1, 1))
        [(2, 4), (3,), (0,), (1,), ()]
    """
    found: list[tuple[int, ...]] = [()] * len(boxes)
    for node in nodes_of(boxes):
        strangers = [t for t in range(len(boxes)) if boxes[t] != boxes[node[0]]]
        for i, fellow in enumerate(node):
            found[fellow] = tuple(strangers[i :: len(node)])
    return found


def nodes_of(boxes: Sequence[int]) -> list[tuple[int, ...]]:
    """The ranks of each node, nodes in order of their first rank.

    Example:
        >>> nodes_of((3, 1, 3))
        [(0, 2), (1,)]
    """
    found: dict[int, list[int]] = {}
    for rank, box in enumerate(boxes):
        found.setdefault(box, []).append(rank)
    return [tuple(node) for node in found.values()]


@lru_cache(maxsize=64)
def candidates(regime: str, boxes: tuple[int, ...]) -> tuple[str, ...]:
    """The regimes that `regime` (or ``"auto"``) may take; where "gather" saves no message it is "direct".

    Example:
        >>> candidates("auto", (0, 0, 1)), candidates("auto", (0, 0, 0)), candidates("gather", (0, 1))
        (('direct', 'gather'), ('direct',), ('direct',))
    """
    known(regime, (*REGIMES, "auto"), "regime", "alltoall.regime")
    nodes = len(nodes_of(boxes))
    if regime == "direct" or nodes in (1, len(boxes)):
        return ("direct",)
    return REGIMES if regime == "auto" else (regime,)


class Part(NamedTuple):
    """What one rank does in one phase: the messages that it sends, and those that it receives."""

    sent: tuple[Message, ...]
    coming: tuple[Message, ...]


@lru_cache(maxsize=256)
def part_of(rank: int, regime: str, boxes: tuple[int, ...]) -> tuple[Part, ...]:
    """The phases as `rank` sees them; each rank begins with the one after it, so that nobody is besieged."""
    world = len(boxes)
    return tuple(
        Part(
            tuple(sorted((m for m in phase if m.src == rank), key=lambda m: (m.dst - rank) % world)),
            tuple(sorted((m for m in phase if m.dst == rank), key=lambda m: (rank - m.src) % world)),
        )
        for phase in phases(regime, boxes)
    )


def loads(regime: str, boxes: tuple[int, ...], sizes: IntArray) -> list[IntArray]:
    """Per phase, [M, 3]: sender, receiver and size of every message, for `CostModel.messages_seconds`.

    Args:
        regime: one of `REGIMES`.
        boxes: which node each rank sits in.
        sizes: [W, W], of the pieces.

    Example:
        >>> [phase.tolist() for phase in loads("direct", (0, 1), np.array([[9, 2], [3, 9]]))]
        [[[0, 1, 2], [1, 0, 3]]]
    """
    flat = sizes.ravel()
    return [
        np.column_stack((ends, np.add.reduceat(flat[pieces], starts)))
        for ends, pieces, starts in _arrays(regime, boxes)
    ]


@lru_cache(maxsize=64)
def _arrays(regime: str, boxes: tuple[int, ...]) -> list[tuple[IntArray, IntArray, IntArray]]:
    """Per phase: [M, 2] sender and receiver; the pieces of all messages as places in the matrix; where each begins."""
    found = []
    for phase in phases(regime, boxes):
        ends = np.array([(m.src, m.dst) for m in phase], dtype=np.int64)
        pieces = np.array([s * len(boxes) + t for m in phase for s, t in m.pieces], dtype=np.int64)
        starts = np.cumsum([0, *(len(m.pieces) for m in phase)], dtype=np.int64)[:-1]
        found.append((ends, pieces, starts))
    return found


def contradiction(sent: IntArray, expected: IntArray) -> tuple[int, int] | None:
    """The first sender and receiver that disagree about their piece, or None.

    Args:
        sent: [W, W], what each row's rank sends each rank.
        expected: [W, W], what each row's rank expects from each rank.

    Example:
        >>> contradiction(np.array([[1, 2], [3, 4]]), np.array([[1, 3], [5, 4]]))
        (0, 1)
    """
    differs = np.argwhere(sent != expected.T)
    return (int(differs[0][0]), int(differs[0][1])) if len(differs) else None
