"""The agreement of an all-to-all: all ranks tell all others what they send and expect; small rows ride along."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from janus.comm.mail import Mail
from janus.comm.parcels import Held
from janus.comm.ports import IntArray
from janus.comm.roster import Roster
from janus.comm.shuffle import Message, contradiction, loads, part_of
from janus.comm.splits import Order, contradicted, refuse

_TERMS = ("dtype", "regime", "cost", "topology_or_group", "row_bytes")
_TAG = 1  # a phase adds its number


def header_bytes(world: int) -> int:
    """What one rank says: the terms, and rows for and from each of `world` ranks; 8 bytes each.

    Example:
        >>> header_bytes(4)
        104
    """
    return 8 * (len(_TERMS) + 2 * world)


class Accord:
    """One agreement. Its messages are those of "gather": what a rank says travels with what is small enough.

    Args:
        order: what this rank gives and asks.
        roster: who takes part.
        boxes: which node each member sits in.
        riding: bytes per piece that a message may carry beside what its ranks say; equal on all ranks.
    """

    def __init__(self, order: Order, roster: Roster, boxes: tuple[int, ...], riding: int) -> None:
        self._order, self._roster, self._boxes, self._riding = order, roster, boxes, riding
        self._said = np.zeros((roster.world, header_bytes(roster.world) // 8), dtype=np.int64)
        self._held: Held = {(roster.me, t): order.outgoing(t) for t in range(roster.world)}

    def reach(self, regime: str, cost: str, mail: Mail) -> tuple[IntArray, Held | None]:
        """[W, W], the rows of all pieces; and the pieces for this rank, if all rows of all ranks have ridden along.

        Args:
            regime: as asked for.
            cost: JSON of the cost model.
            mail: the messages.

        Raises:
            JanusError: ``alltoall.contract``, ``alltoall.splits``: the same on every rank.
            PeerLost: a rank said nothing.
        """
        me, order = self._roster.me, self._order
        terms = (str(order.dtype), regime, cost, str((self._roster.numbers, self._boxes)))
        self._said[me] = [*map(_digest, terms), order.row_bytes, *order.sent, *order.expected]
        parts = part_of(me, "gather", self._boxes)
        rooms = [[self._room(m) for m in part.coming] for part in parts]
        expected = [
            mail.expect(_TAG + turn, [(m.src, r) for m, r in zip(part.coming, rooms[turn], strict=True)])
            for turn, part in enumerate(parts)
        ]
        for turn, part in enumerate(parts):
            mail.exchange(expected[turn], [(m.dst, self._letter(m)) for m in part.sent])
            for message, room in zip(part.coming, rooms[turn], strict=True):
                self._read(message, room)
        sizes = self._checked()
        rode = self._all_rode(sizes * order.row_bytes)
        return sizes, self._held if rode else None

    def _letter(self, message: Message) -> torch.Tensor:
        said = torch.from_numpy(self._said[list(message.sources)].view(np.uint8).ravel()).to(self._order.input.device)
        pieces = [self._held.get(piece) for piece in message.pieces] if self._riding else [None]
        full = [rows for rows in pieces if rows is not None]
        if len(full) < len(pieces) or sum(rows.numel() for rows in full) > self._most(message):
            return said
        return torch.cat([said, *full])

    def _room(self, message: Message) -> torch.Tensor:
        size = self._said[0].nbytes * len(message.sources) + self._most(message)
        return torch.empty(size, dtype=torch.uint8, device=self._order.output.device)

    def _read(self, message: Message, room: torch.Tensor) -> None:
        sources = list(message.sources)
        end = self._said[0].nbytes * len(sources)
        self._said[sources] = room[:end].cpu().numpy().view(np.int64).reshape(len(sources), -1)  # host sync here
        if not self._riding:
            return
        rows = self._said[:, len(_TERMS) :]
        sizes = [int(rows[piece]) * self._order.row_bytes for piece in message.pieces]
        if sum(sizes) <= self._most(message):
            parts = room[end : end + sum(sizes)].split(sizes)
            self._held |= zip(message.pieces, parts, strict=True)

    def _most(self, message: Message) -> int:
        return self._riding * len(message.pieces)

    def _all_rode(self, sizes: IntArray) -> bool:
        found = loads("gather", self._boxes, sizes), loads("gather", self._boxes, np.ones_like(sizes))
        return all((load[:, 2] <= self._riding * pieces[:, 2]).all() for load, pieces in zip(*found, strict=True))

    def _checked(self) -> IntArray:
        said, rank_of, n = self._said, self._roster.rank, len(_TERMS)
        for member, term in np.argwhere(said[:, :n] != said[0, :n]).tolist()[:1]:
            pair = f"rank {rank_of(0)} and rank {rank_of(member)} differ"
            shown = f" ({said[0, term]} and {said[member, term]})" if _TERMS[term] == "row_bytes" else ""
            refuse("contract", f"every rank must give the same {_TERMS[term]}; {pair}{shown}; make the arguments equal")
        sent, expected = said[:, n : n + len(said)], said[:, n + len(said) :]
        if (pair := contradiction(sent, expected)) is not None:
            source, target = pair
            numbers = int(sent[pair]), int(expected[target, source])
            refuse("splits", contradicted(rank_of(source), rank_of(target), *numbers))
        return sent


@lru_cache(maxsize=256)
def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
