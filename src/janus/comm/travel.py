"""The two directions of a layer, for any regime: rows out over the hops, partial sums home over the same hops.

The sum of a token is a fixed tree: float32 from +0 over the instances of one expert node in order, rounded to the
model's dtype; then float32 from +0 over the expert nodes in order, rounded again. The tree depends on the topology
alone, so neither timing nor the regime changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from janus.comm.layout import Hop, Part, Stop, expert_nodes, parts
from janus.comm.rows import Held, Select, Sliced, Whole
from janus.comm.wire import At, Wire
from janus.types import Topology

DISPATCH_TAG, COMBINE_TAG = 10, 11


@dataclass(frozen=True)
class Footprint:
    """What one phase of a dispatch leaves behind for its combine.

    Args:
        sent: each hop this rank sent, with the rows of what it held before the phase.
        arrived: each hop that reached it, with the rows of what it held after the phase.
        held: rows it held before the phase.
    """

    sent: tuple[tuple[Hop, Select], ...]
    arrived: tuple[tuple[Hop, slice], ...]
    held: int


def outward(
    wire: Wire, stops: Sequence[Stop], rank: int, held: Held, codec: Whole | Sliced, at: At
) -> tuple[Held, tuple[Footprint, ...]]:
    """Carry rows over all phases; returns what this rank holds at the end, and its footprints."""
    trail: list[Footprint] = []
    for stop in stops:
        inbox = codec.inbox(stop.arriving)
        coming = [(hop, box) for hop, box in zip(stop.arriving, inbox, strict=True) if hop.src != rank and len(box)]
        posts = [wire.recv(hop.src, box, DISPATCH_TAG, at) for hop, box in coming]
        sent = tuple((hop, codec.select(held, hop)) for hop in stop.sent)
        for hop, select in sent:
            message = codec.pack(held, hop, select)
            if hop.dst == rank:
                inbox[stop.arriving.index(hop)][: len(message)] = message
            elif len(message):
                wire.send(hop.dst, message, DISPATCH_TAG, at)
        wire.wait(posts, at)
        before, held = len(held.x), codec.unpack(stop.arriving, inbox)
        arrived = tuple((hop, held.span(hop.sources)) for hop in stop.arriving)
        trail.append(Footprint(sent, arrived, before))
    return held, tuple(trail)


def homeward(
    wire: Wire,
    topology: Topology,
    rank: int,
    trail: Sequence[Footprint],
    y: torch.Tensor,
    at: At,
) -> torch.Tensor:
    """Carry partial sums back over the hops of `trail`, last phase first.

    Args:
        wire: to send over.
        topology: fixes the order of the sums.
        rank: this process.
        trail: footprints of the dispatch.
        y: [n, H], an expert instance's partial outputs; [0, H] on attention ranks.
        at: phase, layer, deadline.

    Returns:
        [b, H] sums on attention ranks; a tensor without meaning on expert ranks.
    """
    answers = Answers(topology, (), (), 0, y)
    for foot in reversed(trail):
        width = y.shape[1]
        coming = [(hop, len(parts(hop.targets, topology)), _length(select)) for hop, select in foot.sent]
        blocks = {hop: y.new_empty(p, n, width) for hop, p, n in coming}
        posts = [wire.recv(h.dst, b, COMBINE_TAG, at) for h, b in blocks.items() if h.dst != rank and b.numel()]
        for hop, rows in foot.arrived:
            block = torch.stack([answers.part(part)[rows] for part in parts(hop.targets, topology)])
            if hop.src == rank:
                blocks[hop].copy_(block)
            elif block.numel():
                wire.send(hop.src, block, COMBINE_TAG, at)
        wire.wait(posts, at)
        answers = Answers(topology, foot.sent, tuple(blocks.values()), foot.held, y)
    return answers.total()


class Answers:
    """What came back over the hops a rank had sent, ready to be summed for the rows it held.

    Args:
        topology: fixes the order of the sums.
        sent: hops with the rows they carried, in order of targets.
        blocks: [parts, n, H] per hop.
        held: rows held before those hops.
        y: the rank's own partial outputs; they are the answer where nothing was sent on.
    """

    def __init__(
        self,
        topology: Topology,
        sent: Sequence[tuple[Hop, Select]],
        blocks: Sequence[torch.Tensor],
        held: int,
        y: torch.Tensor,
    ) -> None:
        self._topology, self._sent, self._blocks, self._held, self._y = topology, sent, blocks, held, y
        self._sums: dict[Part, torch.Tensor] = {}

    def part(self, part: Part) -> torch.Tensor:
        """Sum over the expert instances of `part`, [held, H] in the model's dtype."""
        if not self._sent:
            return self._y
        if part not in self._sums:
            acc = self._zeros()
            for (hop, select), block in zip(self._sent, self._blocks, strict=True):
                for piece, rows in zip(parts(hop.targets, self._topology), block, strict=True):
                    if piece[0] in part:
                        _add(acc, select, rows)
            self._sums[part] = acc.to(self._y.dtype)
        return self._sums[part]

    def total(self) -> torch.Tensor:
        """Sum over all expert nodes, [held, H] in the model's dtype."""
        acc = self._zeros()
        for node in expert_nodes(self._topology) if self._sent else ():
            acc += self.part(node)
        return acc.to(self._y.dtype)

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(self._held, self._y.shape[1], dtype=torch.float32)


def _add(acc: torch.Tensor, select: Select, rows: torch.Tensor) -> None:
    if isinstance(select, slice):
        acc[select] += rows
    else:
        acc.index_add_(0, select, rows.to(acc.dtype))  # no row twice: the order of additions is fixed


def _length(select: Select) -> int:
    return select.stop - select.start if isinstance(select, slice) else len(select)
