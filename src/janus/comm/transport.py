"""Both directions of a layer on one rank: the lanes, and the memory that every layer uses again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from janus.comm.arena import Arena
from janus.comm.buffers import Size, homeward_bytes, outward_bytes
from janus.comm.layout import Itinerary, Route, candidates, itinerary, possible
from janus.comm.rows import Cargo, Sliced, Whole
from janus.comm.session import Session
from janus.comm.travel import COMBINE_TAG, DISPATCH_TAG, Trail, homeward, outward
from janus.comm.wire import At


class Transport:
    """Carries one layer out and home over the connections of a session.

    Args:
        session: connected; nothing is carried on an idle rank.
        size: of a row; its `top_k` is 0 with gate ``"experts"``.
        dtype: of the rows.
        slots: C, with gate ``"attention"``.
        regime: as asked for; bounds the memory.
        max_tokens: of any rank.
        device: of the rows.
    """

    def __init__(
        self,
        session: Session,
        size: Size,
        dtype: torch.dtype,
        slots: int,
        regime: str,
        max_tokens: int,
        device: torch.device,
    ) -> None:
        self._session, self._size, self._slots, self._regime = session, size, slots, regime
        self._most = (max_tokens,) * session.topology.n_attention
        self._none = torch.empty(0, size.hidden_size, dtype=dtype, device=device)
        self._device = device
        self._arenas: tuple[Arena, Arena] | None = None
        self.out, self.home = (session.carrier.lane(name) for name in ("out", "home"))

    def buffer_bytes(self) -> int:
        """Bytes of both arenas together."""
        return sum(self._sizes())

    def outward(
        self, route: Route, counts: tuple[int, ...], own: Cargo | None, at: At, into: torch.Tensor | None
    ) -> tuple[Cargo | None, tuple[int, ...], Trail]:
        """Carry `own` rows (attention ranks) out; returns what an expert rank got, rows per instance, and the trail."""
        wire, (arena, _) = self._session.payload, self._memory()
        wire.settle(at, DISPATCH_TAG)  # of the layer before: long gone, but for a peer in trouble
        arena.reset()
        trip = self._trip(route)
        if self._size.top_k:
            codec = Sliced(trip, counts, arena, self._none, self._size.top_k, self._slots, own)
        else:
            codec = Whole(trip, counts, arena, self._none, own, into)
        cargo, trail = outward(wire, trip, codec, at)
        if isinstance(codec, Whole) and cargo is not None:
            wire.settle(at, DISPATCH_TAG)  # rows are passed on from where they stand, and the caller may change them
        return cargo, codec.counts, trail

    def reply(self, trail: Trail, y: torch.Tensor, at: At) -> Callable[[], None]:
        """Take a copy of `y` on an expert rank; the call that is returned sends its sums home."""
        _, arena = self._memory()

        def send() -> None:
            self._session.payload.settle(at, COMBINE_TAG)
            arena.reset()
            mine = arena.take(tuple(y.shape), y.dtype)
            mine.copy_(y)
            homeward(self._session.payload, trail, mine, arena, at, None)

        return send

    def combine(self, trail: Trail, out: torch.Tensor, at: At) -> torch.Tensor:
        """Wait for the sums of an attention rank's rows."""
        wire, (_, arena) = self._session.payload, self._memory()
        wire.settle(at, COMBINE_TAG)
        arena.reset()
        homeward(wire, trail, self._none, arena, at, out)
        wire.settle(at, DISPATCH_TAG)
        return out

    def close(self, seconds: float) -> None:
        """End the threads, each within `seconds`, let go of the memory."""
        for lane in (self.out, self.home):
            lane.close(seconds)
        self._arenas = None

    def _trip(self, route: Route) -> Itinerary:
        return itinerary(route, self._session.topology, self._session.rank)

    def _sizes(self) -> tuple[int, int]:
        topology = self._session.topology  # a calibration runs every regime
        routes = possible(topology) if self._regime == "auto" else candidates(self._regime, topology)
        trips = [self._trip(route) for route in routes]
        counts, size = self._most, self._size
        return max(outward_bytes(t, counts, size) for t in trips), max(homeward_bytes(t, counts, size) for t in trips)

    def _memory(self) -> tuple[Arena, Arena]:
        if self._arenas is None:
            out, home = self._sizes()
            self._arenas = Arena(out, self._device), Arena(home, self._device)
        return self._arenas
