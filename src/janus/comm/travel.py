"""The two directions of a layer, for any regime: rows out over the hops, partial sums home over the same hops.

The sum of a token is a fixed tree: float32 from +0 over the instances of one expert node in order, rounded to the
model's dtype; then float32 from +0 over the expert nodes in order, rounded again. The tree depends on the topology
alone, so neither timing nor the regime changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from janus.comm.arena import Arena
from janus.comm.layout import Hop, Itinerary, Part, expert_nodes, parts
from janus.comm.rows import Cargo, Segment, Sliced, Whole
from janus.comm.stream import StreamWire
from janus.comm.wire import At, Wire

DISPATCH_TAG, COMBINE_TAG = 10, 11


@dataclass(frozen=True)
class Trail:
    """What a dispatch leaves behind for its combine.

    Args:
        trip: the hops of this rank.
        lengths: rows of each arrival.
        sent: per round each hop this rank sent, with the rows in it.
        landed: the rows of the arrivals that are for this expert instance.
    """

    trip: Itinerary
    lengths: tuple[int, ...]
    sent: tuple[tuple[tuple[Hop, tuple[Segment, ...]], ...], ...]
    landed: tuple[Segment, ...] = ()


def outward(wire: Wire | StreamWire, trip: Itinerary, codec: Whole | Sliced, at: At) -> tuple[Cargo | None, Trail]:
    """Carry rows over all rounds; returns the rows of an expert rank (None on an attention rank) and the trail.

    All room is offered at once. A hop leaves as soon as the rows it carries are here; where messages go in batches, every
    round ends with its own.
    """
    rooms = {i: codec.room(i) for turn in trip.rounds for i in turn.arriving}
    coming: dict[int, Any] = {
        i: wire.recv(trip.arrivals[i].src, room, DISPATCH_TAG, at) for i, room in rooms.items() if room.numel()
    }

    def here(indices: Iterable[int], *, batch: bool = False) -> None:
        late = [i for i in indices if i in coming]
        if late or batch:
            wire.wait([coming.pop(i) for i in late], at)
        for i in late:
            codec.arrived(i)

    sent = []
    for turn in trip.rounds:
        legs = []
        for leg in turn.sent:
            here(leg.feeds)
            message, segments = codec.message(leg)
            if message.numel():
                wire.send(leg.hop.dst, message, DISPATCH_TAG, at)
            legs.append((leg.hop, segments))
        sent.append(tuple(legs))
        if wire.batched:
            here(turn.arriving, batch=True)
    here(tuple(coming))
    cargo, landed = codec.landing() if trip.landed else (None, ())
    return cargo, Trail(trip, tuple(codec.lengths), tuple(sent), landed)


def homeward(
    wire: Wire | StreamWire, trail: Trail, y: torch.Tensor, arena: Arena, at: At, out: torch.Tensor | None
) -> None:
    """Carry partial sums back over the hops of `trail`, last round first.

    Args:
        wire: to send over.
        trail: of the dispatch.
        y: [n, H], an expert instance's partial outputs; [0, H] on attention ranks.
        arena: for sums under way.
        at: phase, layer, deadline.
        out: [b, H] for the sums of an attention rank's rows; None on an expert rank.
    """
    trip, answers = trail.trip, Answers(trail, y, arena)
    coming: dict[Hop, Any] = {}
    for legs in reversed(trail.sent):
        for hop, segments in legs:
            block = answers.room(hop, segments)
            if block.numel():
                coming[hop] = wire.recv(hop.dst, block, COMBINE_TAG, at)

    def here(hops: Iterable[Hop], *, batch: bool = False) -> None:
        late = [coming.pop(hop) for hop in hops if hop in coming]
        if late or batch:
            wire.wait(late, at)

    for turn, legs in zip(reversed(trip.rounds), reversed(trail.sent), strict=True):
        for index in turn.arriving:
            here(answers.asked(index))
            block = answers.block(index)
            if block.numel():
                wire.send(trip.arrivals[index].src, block, COMBINE_TAG, at)
        if wire.batched:
            here((hop for hop, _ in legs), batch=True)
    here(tuple(coming))
    if out is not None:
        answers.total(0, out)


@dataclass(frozen=True)
class Answer:
    """Sums over the instances of `part` for some rows of an arrival."""

    part: Part
    segment: Segment
    rows: torch.Tensor


class Answers:
    """What comes back for the rows of each arrival, and the sums of it.

    Args:
        trail: of the dispatch.
        y: the rank's own partial outputs.
        arena: for blocks and sums under way.
    """

    def __init__(self, trail: Trail, y: torch.Tensor, arena: Arena) -> None:
        self._trail, self._topology, self._arena, self._y = trail, trail.trip.topology, arena, y
        self._for: list[list[Answer]] = [[] for _ in trail.trip.arrivals]
        self._asked: list[list[Hop]] = [[] for _ in trail.trip.arrivals]
        most = max(trail.lengths, default=0)
        self._scratch = [arena.take((most, y.shape[1]), torch.float32) for _ in range(2)]
        self._rounded = arena.take((most, y.shape[1]), y.dtype)
        if trail.landed:
            own = (self._topology.instance(trail.trip.rank),)
            for segment in trail.landed:
                self._for[segment.index].append(Answer(own, segment, y[segment.at : segment.at + segment.rows]))

    def room(self, hop: Hop, segments: Sequence[Segment]) -> torch.Tensor:
        """[parts, n, H]: where the answers to a sent hop are to be received."""
        pieces = parts(hop.targets, self._topology)
        block = self._arena.take((len(pieces), sum(s.rows for s in segments), self._y.shape[1]), self._y.dtype)
        for s in segments:
            self._asked[s.index].append(hop)
        for piece, rows in zip(pieces, block, strict=True):
            for s in segments:
                self._for[s.index].append(Answer(piece, s, rows[s.at : s.at + s.rows]))
        return block

    def asked(self, index: int) -> list[Hop]:
        """The hops whose answers `block` and `total` of arrival `index` need."""
        return self._asked[index]

    def block(self, index: int) -> torch.Tensor:
        """[parts, n, H]: what goes home over arrival `index`."""
        hop, n = self._trail.trip.arrivals[index], self._trail.lengths[index]
        pieces = parts(hop.targets, self._topology)
        (first, *more) = self._for[index] or [None]
        if first is not None and not more and first.rows.shape[0] == n and first.part == pieces[0]:
            return first.rows[None]  # a lone instance's own rows need no sum
        block = self._arena.take((len(pieces), n, self._y.shape[1]), self._y.dtype)
        for piece, rows in zip(pieces, block, strict=True):
            self._sum(index, piece, rows)
        return block

    def total(self, index: int, out: torch.Tensor) -> None:
        """The sums over all expert instances of the first len(out) rows of arrival `index`."""
        if len(out) == self._trail.lengths[index]:
            self._sum(index, tuple(range(self._topology.n_experts)), out)
            return
        rows = self._arena.take((self._trail.lengths[index], out.shape[1]), out.dtype)  # without the padding
        self._sum(index, tuple(range(self._topology.n_experts)), rows)
        out.copy_(rows[: len(out)])

    def _sum(self, index: int, part: Part, out: torch.Tensor) -> None:
        """Sum over the instances of `part`, in the order of the topology."""
        given = sorted(self._for[index], key=lambda answer: answer.part)
        ready = [answer for answer in given if answer.part == part]
        if ready:
            self._add_up(ready, out, self._scratch[0])
            return
        nodes = [node for node in expert_nodes(self._topology) if set(node) <= set(part)]
        if len(nodes) <= 1:
            self._add_up([answer for answer in given if set(answer.part) <= set(part)], out, self._scratch[0])
            return
        n = len(out)
        acc, rounded = self._scratch[1][:n].zero_(), self._rounded[:n]
        for node in nodes:
            self._add_up([answer for answer in given if set(answer.part) <= set(node)], rounded, self._scratch[0])
            acc += rounded
        out.copy_(acc)

    def _add_up(self, answers: Sequence[Answer], out: torch.Tensor, scratch: torch.Tensor) -> None:
        """Float32 from +0 in the order given, rounded into `out`."""
        acc = out if out.dtype == torch.float32 else scratch[: len(out)]
        acc.zero_()
        for answer in answers:
            select = answer.segment.select
            if isinstance(select, slice):
                acc[select] += answer.rows
            else:
                acc.index_add_(0, select, answer.rows.to(acc.dtype))  # no row twice: the order of additions is fixed
        if acc is not out:
            out.copy_(acc)
