"""`all_to_all`: rows from every rank to every rank, by way of the nodes where that is cheaper."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from janus.comm.cost import CostModel
from janus.comm.mail import Mail
from janus.comm.ports import IntArray
from janus.comm.roster import Roster, host_identity, roster_of
from janus.comm.shuffle import REGIMES, Message, candidates, contradiction, loads, part_of
from janus.comm.splits import Order, contradicted, order_of, refuse
from janus.comm.wire import At
from janus.errors import known
from janus.types.checks import instance, number

_HOSTS, _WORDS, _ROWS = 0, 1, 3  # tags; a phase adds its number
_COST = CostModel()


def all_to_all(
    output: torch.Tensor,
    input: torch.Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    *,
    topology_or_group: Any = None,
    regime: str = "auto",
    cost: CostModel | None = None,
    timeout_s: float = 30.0,
) -> None:
    """Do what `torch.distributed.all_to_all_single` does, with few messages between nodes where that is cheaper.

    The result is that of torch bit for bit, in every regime. With ``"gather"`` and ``"auto"`` all ranks first tell each
    other their splits, in messages of 16 * W bytes per rank, which travel as gather's do; ``"direct"`` agrees on nothing.
    After a `PeerLost` the group's connections are closed: make a new group.

    Args:
        output: where the rows go, in order of source; contiguous, any dtype, any trailing shape.
        input: the rows, in order of target; contiguous, of the same dtype and trailing shape.
        output_split_sizes: rows of `output` from each rank; None: equal.
        input_split_sizes: rows of `input` for each rank; None: equal.
        topology_or_group: a `Topology` whose two pools, attention first, are the world; or a process group, None for the
            default one, whose nodes are found by comparing hosts at the first call.
        regime: ``"direct"``, ``"gather"``, or ``"auto"``: the cheaper one by `cost`.
        cost: behind ``"auto"``, equal on all ranks; see `CostModel`.
        timeout_s: until everything must have arrived.

    Raises:
        JanusError: ``alltoall.*``, before a row is sent.
        PeerLost: phase ``"all_to_all"``.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> out = torch.empty(2, 3)
        >>> all_to_all(out, torch.ones(2, 3))
        >>> out.sum()
        tensor(6.)
        >>> dist.destroy_process_group()
    """
    known(regime, (*REGIMES, "auto"), "regime", "alltoall.regime")
    remedy = "leave it out for the default"
    cost = _COST if cost is None else cost
    model = instance(cost, CostModel, "cost must be a janus.comm.CostModel", "alltoall.cost", remedy)
    seconds = _seconds(timeout_s)
    roster = roster_of(topology_or_group)
    order = order_of(output, input, output_split_sizes, input_split_sizes, roster)
    mail = Mail(roster, At.within("all_to_all", -1, seconds))
    boxes = (0,) * roster.world if regime == "direct" else _boxes(roster, mail, input.device)
    found = candidates(regime, boxes)
    if found == ("direct",):
        carry(order, found[0], boxes, order.sizes(roster.me), roster.me, mail)
        return
    sizes = _agree(order, roster, boxes, regime, model, mail)
    carry(order, choice(found, model, boxes, sizes * order.row_bytes), boxes, sizes, roster.me, mail)


def choice(found: tuple[str, ...], model: CostModel, boxes: tuple[int, ...], sizes: IntArray) -> str:
    """The cheapest of the regimes `found`, the first one when equal.

    Args:
        found: names.
        model: gives the times.
        boxes: which node each rank sits in.
        sizes: [W, W], bytes from each rank for each rank.

    Example:
        >>> model = CostModel({"in_node": 1e-6, "between_nodes": 1e-4}, {"in_node": 1e-10, "between_nodes": 1e-9})
        >>> [choice(("direct", "gather"), model, (0, 0, 1, 1), np.full((4, 4), n)) for n in (100, 10**7)]
        ['gather', 'direct']
    """
    if len(found) == 1:
        return found[0]
    times = [model.messages_seconds(loads(regime, boxes, sizes), boxes) for regime in found]
    return found[times.index(min(times))]


def _boxes(roster: Roster, mail: Mail, device: torch.device) -> tuple[int, ...]:
    """Which node each member sits in; the first call of a group compares the hosts."""
    if roster.boxes is not None:
        return roster.boxes
    mine = torch.tensor(list(host_identity()), dtype=torch.uint8, device=device)
    hosts = mine.repeat(roster.world, 1)
    others = [m for m in range(roster.world) if m != roster.me]
    mail.exchange(_HOSTS, [(m, mine) for m in others], [(m, hosts[m]) for m in others])
    return roster.settled([bytes(host) for host in hosts.tolist()])


def _agree(order: Order, roster: Roster, boxes: tuple[int, ...], regime: str, model: CostModel, mail: Mail) -> IntArray:
    """[W, W]: rows of every piece, once all ranks have told all others what they send, expect and were told."""
    world, me = roster.world, roster.me
    terms = {
        "regime": (*REGIMES, "auto").index(regime),
        "row_bytes": order.row_bytes,
        "dtype": _digest(str(order.dtype)),
        "cost": _digest(json.dumps(model.to_dict())),
        "topology_or_group": _digest(str((roster.numbers, boxes))),
    }
    words = torch.zeros(world, len(terms) + 2 * world, dtype=torch.int64)
    words[me] = torch.tensor([*terms.values(), *order.sent, *order.expected])
    words = words.to(order.input.device)
    for turn, part in enumerate(part_of(me, "gather", boxes)):
        boxed = [
            (m, torch.empty(len(m.sources), words.shape[1], dtype=torch.int64, device=words.device))
            for m in part.coming
        ]
        sent = [(m.dst, words[list(m.sources)]) for m in part.sent]
        mail.exchange(_WORDS + turn, [(to, _raw(w)) for to, w in sent], [(m.src, _raw(box)) for m, box in boxed])
        for message, box in boxed:
            words[list(message.sources)] = box
    table = words.cpu().numpy()  # host sync here
    _compare(table[:, : len(terms)], tuple(terms), roster)
    sent, expected = table[:, len(terms) : -world], table[:, -world:]
    if (pair := contradiction(sent, expected)) is not None:
        source, target = pair
        ranks = roster.rank(source), roster.rank(target)
        refuse("splits", contradicted(*ranks, int(sent[pair]), int(expected[target, source])))
    return sent


def _compare(said: IntArray, names: tuple[str, ...], roster: Roster) -> None:
    for rank, name in np.argwhere(said != said[0]).tolist()[:1]:
        pair = roster.rank(0), roster.rank(rank)
        refuse("contract", f"every rank must give the same {names[name]}; rank {pair[0]} and rank {pair[1]} differ")


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
    for turn, part in enumerate(part_of(me, regime, boxes)):
        sent = [(m.dst, _packed(m, held)) for m in part.sent]
        coming = [(m, _room(m, size_of, order, me)) for m in part.coming]
        mail.exchange(_ROWS + turn, sent, [(m.src, room) for m, room in coming])
        for message, room in coming:
            parts = room.split([size_of[s][t] for s, t in message.pieces])
            for piece, rows in zip(message.pieces, parts, strict=True):
                if piece[1] != me:
                    held[piece] = rows
                elif not _lands(message, me):
                    order.incoming(piece[0], piece[0] + 1).copy_(rows)


def _packed(message: Message, held: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
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


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _raw(words: torch.Tensor) -> torch.Tensor:
    return words.view(-1).view(torch.uint8)


def _seconds(value: Any) -> float:
    rule = "timeout_s must be a finite number of seconds > 0"
    found = number(value, rule, "alltoall.timeout")
    return found if found > 0 else refuse("timeout", f"{rule}, got {value!r}; try 30.0")
