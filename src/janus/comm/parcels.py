"""Rows packed and taken apart: what an all-to-all does with its tensors, apart from the messages themselves."""

from __future__ import annotations

import torch

from janus.comm.mail import Mail
from janus.comm.ports import IntArray
from janus.comm.roster import Roster
from janus.comm.shuffle import Message, part_of
from janus.comm.splits import Order

_TAG = 3  # a phase adds its number
Held = dict[tuple[int, int], torch.Tensor]  # the bytes of pieces that a rank has


def direct(order: Order, roster: Roster, mail: Mail) -> None:
    """Every piece by itself: by the group's own collective over gloo, which posts faster, else by messages."""
    if mail.collective(order):
        return
    boxes = (0,) * roster.world
    carry(order, "direct", boxes, order.sizes(roster.me), roster.me, mail)


def land(order: Order, held: Held, me: int) -> None:
    """Write `output` at once, from the pieces for this rank."""
    torch.cat([held[source, me] for source in range(len(order.expected))], out=order.output)


def carry(order: Order, regime: str, boxes: tuple[int, ...], sizes: IntArray, me: int, mail: Mail) -> None:
    """Move the rows: every phase packs what leaves, and takes apart what comes in.

    Args:
        order: the rows.
        regime: one of `janus.comm.shuffle.REGIMES`.
        boxes: which node each rank sits in.
        sizes: [W, W], rows of the pieces; for "direct" those of this rank are enough.
        me: this rank's place.
        mail: the messages.
    """
    size_of = (sizes * order.row_bytes).tolist()
    held = {(me, target): order.outgoing(target) for target in range(len(boxes))}
    order.incoming(me, me + 1).copy_(held[me, me])
    parts = part_of(me, regime, boxes)
    coming = [[(m, _room(m, size_of, order, me)) for m in part.coming] for part in parts]
    expected = [mail.expect(_TAG + turn, [(m.src, room) for m, room in found]) for turn, found in enumerate(coming)]
    for turn, part in enumerate(parts):
        mail.exchange(expected[turn], [(m.dst, _packed(m, held)) for m in part.sent])
        for message, room in coming[turn]:
            if not _lands(message, me):
                rows = room.split([size_of[s][t] for s, t in message.pieces])
                held |= zip(message.pieces, rows, strict=True)
                for source, target in message.pieces:
                    if target == me:
                        order.incoming(source, source + 1).copy_(held[source, me])


def _packed(message: Message, held: Held) -> torch.Tensor:
    """The bytes of a message; one piece goes as it stands."""
    full = [held[piece] for piece in message.pieces if held[piece].numel()]
    return full[0] if len(full) == 1 else torch.cat(full) if full else held[message.pieces[0]]


def _room(message: Message, size_of: list[list[int]], order: Order, me: int) -> torch.Tensor:
    """Where a message is received: in `output` itself, if its pieces stand there as they travel."""
    if _lands(message, me):
        return order.incoming(message.pieces[0][0], message.pieces[-1][0] + 1)
    size = sum(size_of[s][t] for s, t in message.pieces)
    return torch.empty(size, dtype=torch.uint8, device=order.output.device)


def _lands(message: Message, me: int) -> bool:
    first = message.pieces[0][0]
    return message.pieces == tuple((first + i, me) for i in range(len(message.pieces)))
