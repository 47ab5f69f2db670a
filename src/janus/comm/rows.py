"""How rows are chosen, packed and unpacked at each hop: every row (gate "experts") or the wanted ones ("attention").

Both codecs follow one `Itinerary`: `room` for what arrives, `arrived` once it is there, `message` for what is sent on,
`landing` at the end. Each remembers as `Segment`s which rows went where, for the sums that come home.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from janus.comm.arena import Arena
from janus.comm.layout import Hop, Itinerary, Leg, offsets

Select = slice | torch.Tensor  # rows of an arrival: consecutive, or int64 [n] ascending


@dataclass(frozen=True)
class Segment:
    """Rows of one arrival on their way: the rows `select` of arrival `index` stand from row `at` of the message on."""

    index: int
    select: Select
    at: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.select.stop - self.select.start if isinstance(self.select, slice) else len(self.select)


@dataclass(frozen=True)
class Cargo:
    """Rows with their choices.

    Args:
        x: [n, H].
        ids: int32 [n, K] physical ids, -1 where the choice is not for this place; None with gate "experts".
        weights: [n, K], 0 where `ids` is -1; None with gate "experts".
    """

    x: torch.Tensor
    ids: torch.Tensor | None = None
    weights: torch.Tensor | None = None


class Whole:
    """Gate "experts": all rows of a hop travel, so sizes follow from the counts and nothing is packed.

    The rows stand in one tensor in the order of all instances; a hop sends and receives a range of it, without a copy.

    Args:
        trip: hops of this rank.
        counts: rows of each attention instance.
        arena: for the rows.
        like: an empty [0, H] tensor of the rows' dtype.
        own: this attention rank's rows [b, H]; None on an expert rank.
        out: [n, H] to receive into, instead of a tensor from `arena`; expert ranks only.
    """

    def __init__(
        self,
        trip: Itinerary,
        counts: tuple[int, ...],
        arena: Arena,
        like: torch.Tensor,
        own: Cargo | None = None,
        out: torch.Tensor | None = None,
    ) -> None:
        self._trip, self.counts, self._starts = trip, counts, offsets(counts)
        spans = [hop.span(self._starts) for hop in trip.arrivals]
        self._first = min((s.start for s in spans), default=0)
        rows = max((s.stop for s in spans), default=0) - self._first
        self._x = arena.take((rows, like.shape[1]), like.dtype) if out is None else out[:rows]
        self.lengths = [s.stop - s.start for s in spans]
        if own is not None:
            mine = self._x[self._local(trip.arrivals[0])]
            mine[: len(own.x)] = own.x
            mine[len(own.x) :].zero_()  # padding up to an agreed capacity

    def room(self, index: int) -> torch.Tensor:
        """Where arrival `index` is to be received; empty when nothing comes."""
        return self._x[self._local(self._trip.arrivals[index])]

    def arrived(self, index: int) -> None:
        """Arrival `index` is there."""

    def message(self, leg: Leg) -> tuple[torch.Tensor, tuple[Segment, ...]]:
        """What to send over `leg`, empty for nothing, and the rows in it."""
        span = leg.hop.span(self._starts)
        segments = []
        for index in leg.feeds:
            theirs = self._trip.arrivals[index].span(self._starts)
            lo, hi = max(span.start, theirs.start), min(span.stop, theirs.stop)
            segments.append(Segment(index, slice(lo - theirs.start, hi - theirs.start), lo - span.start))
        return self._x[span.start - self._first : span.stop - self._first], tuple(segments)

    def landing(self) -> tuple[Cargo, tuple[Segment, ...]]:
        """All rows of an expert rank, in the order of instances."""
        spans = [(i, self._trip.arrivals[i].span(self._starts)) for i in self._trip.landed]
        return Cargo(self._x), tuple(Segment(i, slice(0, s.stop - s.start), s.start) for i, s in spans)

    def _local(self, hop: Hop) -> slice:
        span = hop.span(self._starts)
        return slice(span.start - self._first, span.stop - self._first)


class Sliced:
    """Gate "attention": a row travels over a hop when one of its choices is a slot of `hop.targets`.

    A message is packed, one payload per destination: int32 [1 + arrivals] (dtype of the weights, rows from each arrival
    that feeds it), int32 ids [n, K], weights [n, K], rows [n, H]. Its length is known to the sender alone; the receiver
    offers room for all rows.

    Args:
        trip: hops of this rank.
        counts: rows of each attention instance.
        arena: for the rows.
        like: an empty [0, H] tensor of the rows' dtype.
        top_k: K.
        slots: C, slots per expert instance.
        own: this attention rank's rows and choices; None on an expert rank.
    """

    def __init__(
        self,
        trip: Itinerary,
        counts: tuple[int, ...],
        arena: Arena,
        like: torch.Tensor,
        top_k: int,
        slots: int,
        own: Cargo | None = None,
    ) -> None:
        self._trip, self._counts, self._arena, self._like = trip, counts, arena, like
        self.counts = counts  # once landed: rows of each source on this instance
        self._top_k, self._slots = top_k, slots
        self._rooms: dict[int, torch.Tensor] = {}
        none = Cargo(like, like.new_empty(0, top_k, dtype=torch.int32), like.new_empty(0, top_k))
        self._cargo: list[Cargo] = [none] * len(trip.arrivals)
        self._per_source = [[0] * len(hop.sources) for hop in trip.arrivals]
        if own is not None and len(own.x):  # a rank without tokens has no say in the dtype of the weights
            self._cargo[0], self._per_source[0] = own, [len(own.x)]

    @property
    def lengths(self) -> list[int]:
        """Rows of each arrival."""
        return [len(cargo.x) for cargo in self._cargo]

    def room(self, index: int) -> torch.Tensor:
        """Where arrival `index` is to be received: every row of its sources fits; empty when nothing comes."""
        hop = self._trip.arrivals[index]
        rows = hop.rows(self._counts)
        size = sliced_bytes(len(hop.sources), rows, self._top_k, self._row_bytes) if rows else 0
        self._rooms[index] = self._arena.take((size,), torch.uint8)
        return self._rooms[index]

    def arrived(self, index: int) -> None:
        """Read arrival `index`."""
        box, n_sources = self._rooms[index], len(self._trip.arrivals[index].sources)
        if not len(box):
            return
        start = 4 * (1 + n_sources)
        own, *per_source = box[:start].view(torch.int32).tolist()
        dtype = self._like.dtype if own else torch.float32
        self._cargo[index], _ = self._views(box, start, sum(per_source), dtype)
        self._per_source[index] = per_source

    def message(self, leg: Leg) -> tuple[torch.Tensor, tuple[Segment, ...]]:
        """What to send over `leg`, empty only when its sources have no rows at all, and the rows in it."""
        hop = leg.hop
        bound = hop.rows(self._counts)
        if not bound:
            return self._arena.take((0,), torch.uint8), ()
        picks = [self._pick(index, hop) for index in leg.feeds]
        n, per_source = sum(len(p.select) for p in picks), [n for p in picks for n in p.per_source]
        common = self._common(leg.feeds)
        box = self._arena.take((sliced_bytes(len(hop.sources), bound, self._top_k, self._row_bytes),), torch.uint8)
        start = 4 * (1 + len(hop.sources))
        head = torch.tensor([int(common == self._like.dtype), *per_source], dtype=torch.int32)  # host sync, on a device
        box[:start].view(torch.int32).copy_(head)
        into, end = self._views(box, start, n, common)
        return box[:end], self._fill(picks, into)

    def landing(self) -> tuple[Cargo, tuple[Segment, ...]]:
        """The rows that chose this expert instance, in the order of tokens."""
        trip = self._trip
        own = (trip.topology.instance(trip.rank),)
        picks = [self._pick(index, replace(trip.arrivals[index], targets=own)) for index in trip.landed]
        counts = [0] * len(self._counts)
        for pick in picks:
            for source, n in zip(trip.arrivals[pick.index].sources, pick.per_source, strict=True):
                counts[source] += n
        self.counts, n = tuple(counts), sum(counts)
        into = Cargo(
            self._arena.take((n, self._like.shape[1]), self._like.dtype),
            self._arena.take((n, self._top_k), torch.int32),
            self._arena.take((n, self._top_k), self._common(trip.landed)),
        )
        return into, self._fill(picks, into)

    @property
    def _row_bytes(self) -> int:
        return self._like.shape[1] * self._like.dtype.itemsize

    def _common(self, indices: Sequence[int]) -> torch.dtype:
        """Weights of two dtypes meet in float32, which holds both exactly."""
        kinds = {cargo.weights.dtype for i in indices if (cargo := self._cargo[i]).weights is not None}
        return torch.float32 if torch.float32 in kinds else self._like.dtype

    def _views(self, box: torch.Tensor, start: int, n: int, weights: torch.dtype) -> tuple[Cargo, int]:
        """The fields of a packed message of `n` rows that begin at byte `start`, and where they end."""
        out = []
        kinds = ((torch.int32, self._top_k), (weights, self._top_k), (self._like.dtype, self._like.shape[1]))
        for kind, width in kinds:
            stop = start + n * width * kind.itemsize
            out.append(box[start:stop].view(kind).view(n, width))
            start = stop
        return Cargo(out[2], out[0], out[1]), start

    def _pick(self, index: int, hop: Hop) -> Pick:
        """The rows of arrival `index` that travel over `hop`, with the choices that are slots of its targets."""
        cargo, targets = self._cargo[index], hop.targets
        assert cargo.ids is not None
        host = cargo.ids.div(self._slots, rounding_mode="floor")  # -1 stays below 0
        if targets[-1] - targets[0] == len(targets) - 1:
            wanted = (host >= targets[0]) & (host <= targets[-1])
        else:
            wanted = torch.isin(host, torch.tensor(targets, dtype=torch.int32, device=host.device))
        rows = wanted.any(dim=1)
        if self._trip.arrivals[index].pieces < hop.pieces:
            cut = hop.cut(sum(self._counts[s] for s in hop.sources))  # as the receiver counts them, padding included
            rows[: cut.start] = False
            rows[cut.stop :] = False
        select = rows.nonzero().view(-1)
        starts = torch.tensor(offsets(self._per_source[index]), device=select.device)
        return Pick(index, select, wanted, torch.searchsorted(select, starts).diff().tolist())

    def _fill(self, picks: Sequence[Pick], into: Cargo) -> tuple[Segment, ...]:
        """Copy the picked rows one after another; choices that are not wanted become -1 and 0."""
        assert into.ids is not None
        assert into.weights is not None
        segments, at = [], 0
        for pick in picks:
            cargo, n = self._cargo[pick.index], len(pick.select)
            segments.append(Segment(pick.index, pick.select, at))
            if n:
                assert cargo.ids is not None
                assert cargo.weights is not None
                here, dropped = slice(at, at + n), ~pick.wanted[pick.select]
                torch.index_select(cargo.x, 0, pick.select, out=into.x[here])
                into.ids[here] = cargo.ids[pick.select].masked_fill_(dropped, -1)
                into.weights[here] = cargo.weights[pick.select].masked_fill_(dropped, 0)
            at += n
        return tuple(segments)


@dataclass(frozen=True)
class Pick:
    """Rows of one arrival that travel on: which ones, bool [n, K] of their choices, and how many of each source."""

    index: int
    select: torch.Tensor
    wanted: torch.Tensor
    per_source: list[int]


def sliced_bytes(sources: int, rows: int, top_k: int, row_bytes: int) -> int:
    """Bytes of a packed message of `rows` rows at most.

    Example:
        >>> sliced_bytes(sources=2, rows=3, top_k=4, row_bytes=10)
        138
    """
    return 4 * (1 + sources) + rows * (top_k * (4 + 4) + row_bytes)
