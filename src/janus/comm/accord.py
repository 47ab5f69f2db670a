"""The agreement of an all-to-all: all ranks tell all others what they send and expect; small rows ride along."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch

from janus.comm.mail import Letter, Mail
from janus.comm.parcels import Held
from janus.comm.ports import IntArray
from janus.comm.roster import Roster
from janus.comm.shuffle import Message, contradiction, loads, part_of, phases
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
        self._header = header_bytes(roster.world)
        self._held: Held = {(roster.me, t): order.outgoing(t) for t in range(roster.world)}

    def reach(self, terms: dict[str, Any], mail: Mail) -> tuple[IntArray, Held | None]:
        """[W, W], the rows of all pieces; and the pieces for this rank, if all rows of all ranks have ridden along.

        Raises:
            JanusError: ``alltoall.contract``, ``alltoall.splits``: the same on every rank.
            PeerLost: a rank said nothing.
        """
        world, me, order = self._roster.world, self._roster.me, self._order
        terms = terms | {"dtype": str(order.dtype), "topology_or_group": [self._roster.numbers, self._boxes]}
        words = torch.zeros(world, self._header // 8, dtype=torch.int64)
        mine = [_digest(terms[name]) for name in _TERMS[:-1]]
        words[me] = torch.tensor([*mine, order.row_bytes, *order.sent, *order.expected])
        words = words.to(order.input.device)
        parts = part_of(me, "gather", self._boxes)
        rooms = [[self._room(m) for m in part.coming] for part in parts]
        expected = [
            mail.expect(_TAG + turn, [(m.src, r) for m, r in zip(part.coming, rooms[turn], strict=True)])
            for turn, part in enumerate(parts)
        ]
        for turn, part in enumerate(parts):
            mail.exchange(expected[turn], [self._letter(m, words) for m in part.sent])
            for message, room in zip(part.coming, rooms[turn], strict=True):
                self._read(message, room, words)
        sizes = self._checked(words.cpu().numpy())  # host sync here
        rode = self._all_rode(sizes * order.row_bytes)
        return sizes, {piece: rows for piece, rows in self._held.items() if piece[1] == me} if rode else None

    def _letter(self, message: Message, words: torch.Tensor) -> Letter:
        said = words[list(message.sources)].view(-1).view(torch.uint8)
        found = [self._held.get(piece) for piece in message.pieces]
        pieces = [rows for rows in found if rows is not None]
        if len(pieces) < len(found) or sum(map(len, pieces)) > self._most(message):
            return message.dst, said
        return message.dst, torch.cat([said, *pieces])

    def _room(self, message: Message) -> torch.Tensor:
        size = self._header * len(message.sources) + self._most(message)
        return torch.empty(size, dtype=torch.uint8, device=self._order.output.device)

    def _read(self, message: Message, room: torch.Tensor, words: torch.Tensor) -> None:
        sources = list(message.sources)
        said = self._header * len(sources)
        words[sources] = room[:said].view(torch.int64).view(len(sources), -1)
        if not self._riding:
            return
        first, row_bytes = len(_TERMS), self._order.row_bytes
        rows = dict(zip(sources, words[sources, first : first + self._roster.world].tolist(), strict=True))
        sizes = [rows[s][t] * row_bytes for s, t in message.pieces]
        if sum(sizes) <= self._most(message):
            parts = room[said : said + sum(sizes)].split(sizes)
            self._held |= dict(zip(message.pieces, parts, strict=True))

    def _most(self, message: Message) -> int:
        return self._riding * len(message.pieces)

    def _all_rode(self, sizes: IntArray) -> bool:
        found = zip(loads("gather", self._boxes, sizes), phases("gather", self._boxes), strict=True)
        return all((load[:, 2] <= [self._most(m) for m in phase]).all() for load, phase in found)

    def _checked(self, said: IntArray) -> IntArray:
        rank_of, n = self._roster.rank, len(_TERMS)
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


def _digest(value: Any) -> int:
    found = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)
