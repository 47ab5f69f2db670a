"""What the tests and the benchmark on a GPU share: the sums of a combine, graphs, and an NCCL group of one rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comm_memory import Load, travelled

from janus.comm.arena import Arena
from janus.comm.buffers import Size, homeward_bytes
from janus.comm.carrier import Opening, _allow_capture_elsewhere
from janus.comm.layout import Route, itinerary
from janus.comm.stream import StreamWire, Watchdog
from janus.comm.travel import Answers, Trail
from janus.comm.wire import At, Links
from janus.errors import PeerLost
from janus.types import Topology

WIDE = Topology(((0,),), (tuple(range(1, 9)), tuple(range(9, 17))))  # one attention rank, two boxes of eight experts


class Sums:
    """The sums of one attention rank's combine: blocks that answers are received into, and what adds them up."""

    def __init__(self, route: Route, rows: int, hidden: int, dtype: torch.dtype, device: str) -> None:
        load = Load(WIDE, (rows,), "experts", dtype, 1)  # a trail knows rows, not how long they are
        trail: Trail = travelled(load, route, "cpu")[0].trail
        arena = Arena(
            homeward_bytes(itinerary(route, WIDE, 0), (rows,), Size(hidden, dtype.itemsize)), torch.device(device)
        )
        self.answers = Answers(trail, torch.empty(0, hidden, dtype=dtype, device=device), arena)
        self.blocks = [self.answers.room(hop, segments) for turn in trail.sent for hop, segments in turn]
        self.out = torch.empty(rows, hidden, dtype=dtype, device=device)
        self.bytes, self._device = sum(block.nbytes for block in self.blocks) + self.out.nbytes, device

    def renew(self, seed: int) -> None:
        """Other contents."""
        rng = torch.Generator(device=self._device).manual_seed(seed)
        for block in self.blocks:
            block.copy_(torch.randn(block.shape, generator=rng, device=block.device))

    def __call__(self, out: torch.Tensor) -> None:
        self.answers.total(0, out)


def graph_of(call: Callable[[], None], device: str) -> Callable[[], None]:
    """Replays `call` as a CUDA graph; calls it again without a GPU."""
    call()
    if device == "cpu":
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def event() -> Any:
    """Of what is on the current stream now."""
    made = torch.cuda.Event()
    made.record()
    return made


@contextmanager
def alone(*, told: bool = False) -> Iterator[tuple[StreamWire, Any]]:
    """A wire over an NCCL group of this rank alone, with a watch that has nobody else to suspect."""
    opening = Opening(torch.distributed.HashStore(), "alone", 0, 1, time.monotonic() + 60)
    group = opening.nccl(torch.device("cuda"), 4)

    def record() -> Any | None:
        if torch.cuda.is_current_stream_capturing():
            return None
        return event()

    def lost(peers: list[int], at: At, why: str) -> PeerLost:
        return PeerLost(at.phase, at.layer, 0, peers[0], why)

    dog = Watchdog(lambda peers, at: None, record, settle_in=_allow_capture_elsewhere)
    wire = StreamWire(group, Links(Topology.parse("1A1E"), 0), dog, lost, told_lengths=told)
    try:
        yield wire, group
    finally:
        wire.drop()


def to_itself(wire: StreamWire, rows: torch.Tensor, room: torch.Tensor) -> None:
    """One batch: a send to this rank and a receive from it."""
    at = At.within("graph", 0, 30)
    wire.send(0, rows, 10, at)
    wire.wait([wire.recv(0, room, 10, at)], at)
