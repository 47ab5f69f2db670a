"""How many bytes an exchange needs for its rows, in whole numbers, before any of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus.comm.arena import aligned
from janus.comm.layout import Hop, Itinerary, offsets, parts
from janus.comm.rows import sliced_bytes


@dataclass(frozen=True)
class Size:
    """Of one row, and of its choices.

    Args:
        hidden_size: H.
        itemsize: bytes of an element.
        top_k: K with gate ``"attention"``, 0 with gate ``"experts"``.
    """

    hidden_size: int
    itemsize: int
    top_k: int = 0

    @property
    def row(self) -> int:
        """Bytes of one row."""
        return self.hidden_size * self.itemsize


def outward_bytes(trip: Itinerary, counts: Sequence[int], size: Size) -> int:
    """Bytes of a dispatch on one rank, for at most `counts` rows of each attention instance."""
    if size.top_k:
        return _sliced(trip, counts, size)
    starts = offsets(counts)
    spans = [hop.span(starts) for hop in trip.arrivals]
    # pieces may grow by a row where another instance has fewer: their whole sources are the bound
    whole = [(starts[hop.sources[0]], starts[hop.sources[-1] + 1]) for hop in trip.arrivals]
    return aligned((max(b for _, b in whole) - min(a for a, _ in whole)) * size.row) if spans else 0


def _sliced(trip: Itinerary, counts: Sequence[int], size: Size) -> int:
    sent = [leg.hop for turn in trip.rounds for leg in turn.sent]
    coming = [trip.arrivals[i] for turn in trip.rounds for i in turn.arriving]
    packed = sum(
        aligned(sliced_bytes(len(hop.sources), _most(hop, counts), size.top_k, size.row)) for hop in (*sent, *coming)
    )
    landed = sum(counts) if trip.landed else 0
    return packed + aligned(landed * size.row) + 2 * aligned(landed * size.top_k * 4)


def homeward_bytes(trip: Itinerary, counts: Sequence[int], size: Size) -> int:
    """Bytes of a combine on one rank, for at most `counts` rows of each attention instance."""
    most = max((_most(hop, counts) for hop in trip.arrivals), default=0)
    sums = 2 * aligned(most * size.hidden_size * 4) + aligned(most * size.row)
    hops = [leg.hop for turn in trip.rounds for leg in turn.sent] + list(trip.arrivals)
    blocks = sum(aligned(len(parts(h.targets, trip.topology)) * _most(h, counts) * size.row) for h in hops)
    answers = sum(counts) if trip.landed else 0
    return sums + blocks + aligned(answers * size.row)


def _most(hop: Hop, counts: Sequence[int]) -> int:
    """Rows of a hop at most: how a remainder falls on the pieces depends on the count."""
    return -(-sum(counts[s] for s in hop.sources) // hop.pieces)
