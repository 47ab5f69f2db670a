"""How rows are chosen, packed and unpacked at each hop: every row (gate "experts") or the wanted ones ("attention")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from janus.comm.layout import Hop, offsets

Select = slice | torch.Tensor  # rows of what a rank holds: consecutive, or int64 [n] ascending


@dataclass(frozen=True)
class Held:
    """The rows a rank holds between two phases, in order of their attention instance.

    Args:
        x: [n, H].
        counts: rows of each attention instance, [n_a]; 0 for those whose rows are elsewhere.
        ids: int32 [n, K] physical ids, -1 where the choice is not for this place; None with gate "experts".
        weights: [n, K], 0 where `ids` is -1; None with gate "experts".
    """

    x: torch.Tensor
    counts: tuple[int, ...]
    ids: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def span(self, sources: Sequence[int]) -> slice:
        """The rows of consecutive attention instances."""
        starts = offsets(self.counts)
        return slice(starts[sources[0]], starts[sources[-1] + 1])


class Whole:
    """Gate "experts": all rows of `hop.sources` travel, so sizes follow from the counts and nothing is packed.

    Args:
        counts: tokens of each attention instance.
        hidden_size: H.
        dtype: of the rows.
    """

    def __init__(self, counts: tuple[int, ...], hidden_size: int, dtype: torch.dtype) -> None:
        self.counts, self._width, self._dtype = counts, hidden_size, dtype

    def select(self, held: Held, hop: Hop) -> Select:
        """The rows of `held` that travel over `hop`."""
        return held.span(hop.sources)

    def pack(self, held: Held, hop: Hop, select: Select) -> torch.Tensor:
        """The message of `hop`; empty when there is nothing to say."""
        return held.x[select]

    def inbox(self, hops: Sequence[Hop]) -> list[torch.Tensor]:
        """One buffer per arriving hop: consecutive slices of one tensor, so that no copy follows."""
        starts = offsets(hop.rows(self.counts) for hop in hops)
        x = torch.empty(starts[-1], self._width, dtype=self._dtype)
        return [x[starts[i] : starts[i + 1]] for i in range(len(hops))]

    def unpack(self, hops: Sequence[Hop], inbox: Sequence[torch.Tensor]) -> Held:
        """What the arrived hops add up to."""
        here = {s for hop in hops for s in hop.sources}
        counts = tuple(n if s in here else 0 for s, n in enumerate(self.counts))
        x = torch.empty(0, self._width, dtype=self._dtype)
        if inbox:
            x = torch.as_strided(inbox[0], (sum(counts), self._width), (self._width, 1))
        return Held(x, counts)


class Sliced:
    """Gate "attention": a row travels over a hop when one of its choices is a slot of `hop.targets`.

    A message is packed: int32 [1 + sources] (dtype of the weights, rows of each source), int32 ids [n, K],
    weights [n, K], rows [n, H]. Its length is known to the sender alone; the receiver offers room for all rows.

    Args:
        counts: tokens of each attention instance.
        hidden_size: H.
        dtype: of the rows.
        top_k: K.
        slots: C, slots per expert instance.
    """

    def __init__(self, counts: tuple[int, ...], hidden_size: int, dtype: torch.dtype, top_k: int, slots: int) -> None:
        self.counts, self._width, self._dtype, self._top_k, self._slots = counts, hidden_size, dtype, top_k, slots

    def select(self, held: Held, hop: Hop) -> Select:
        """The rows of `held` that travel over `hop`, int64 ascending."""
        span = held.span(hop.sources)
        wanted = self._wanted(held, hop)[span].any(dim=1)
        return wanted.nonzero().view(-1) + span.start

    def pack(self, held: Held, hop: Hop, select: Select) -> torch.Tensor:
        """The message of `hop`; never empty, since it carries its own counts."""
        assert held.ids is not None
        assert held.weights is not None
        assert isinstance(select, torch.Tensor)
        starts = torch.tensor(offsets(held.counts)[hop.sources[0] : hop.sources[-1] + 2])
        per_source = torch.searchsorted(select, starts).diff().to(torch.int32)
        keep = self._wanted(held, hop)[select]
        kind = torch.tensor([int(held.weights.dtype == self._dtype)], dtype=torch.int32)
        pieces = (
            kind,
            per_source,
            held.ids[select].masked_fill(~keep, -1),
            held.weights[select].masked_fill(~keep, 0),
            held.x[select],
        )
        return torch.cat([piece.reshape(-1).view(torch.uint8) for piece in pieces])

    def inbox(self, hops: Sequence[Hop]) -> list[torch.Tensor]:
        """One buffer per arriving hop, large enough for every row of its sources."""
        row = self._top_k * (4 + 4) + self._width * self._dtype.itemsize
        sizes = [4 * (1 + len(hop.sources)) + hop.rows(self.counts) * row for hop in hops]
        return [torch.empty(size, dtype=torch.uint8) for size in sizes]

    def unpack(self, hops: Sequence[Hop], inbox: Sequence[torch.Tensor]) -> Held:
        """What the arrived hops add up to; weights of two dtypes meet in float32, which holds both exactly."""
        counts = [0] * len(self.counts)
        ids = [torch.empty(0, self._top_k, dtype=torch.int32)]
        weights: list[torch.Tensor] = []
        x = [torch.empty(0, self._width, dtype=self._dtype)]
        for hop, box in zip(hops, inbox, strict=True):
            head = box[: 4 * (1 + len(hop.sources))].view(torch.int32).tolist()
            for source, n in zip(hop.sources, head[1:], strict=True):
                counts[source] = n
            ids_nk, weights_nk, x_nh = self._read(box, len(hop.sources), sum(head[1:]), own=bool(head[0]))
            ids.append(ids_nk)
            weights.append(weights_nk)
            x.append(x_nh)
        common = torch.float32 if any(w.dtype == torch.float32 for w in weights) else self._dtype
        none = torch.empty(0, self._top_k, dtype=common)
        return Held(torch.cat(x), tuple(counts), torch.cat(ids), torch.cat([none, *(w.to(common) for w in weights)]))

    def _wanted(self, held: Held, hop: Hop) -> torch.Tensor:
        """bool [n, K]: the choices that are slots of `hop.targets` (ascending, not always consecutive)."""
        assert held.ids is not None
        host = held.ids.div(self._slots, rounding_mode="floor")  # -1 stays below 0
        return torch.isin(host, torch.tensor(hop.targets, dtype=torch.int32))

    def _read(self, box: torch.Tensor, sources: int, n: int, *, own: bool) -> tuple[torch.Tensor, ...]:
        dtype = self._dtype if own else torch.float32
        kinds = ((torch.int32, self._top_k), (dtype, self._top_k), (self._dtype, self._width))
        out, start = [], 4 * (1 + sources)
        for kind, width in kinds:
            stop = start + n * width * kind.itemsize
            out.append(box[start:stop].view(kind).view(n, width))
            start = stop
        return tuple(out)
