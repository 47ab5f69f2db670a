"""What carries the rows: gloo on CPUs, over the connections that are there anyway, or NCCL on CUDA devices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from janus.comm.lanes import Lane
from janus.comm.stream import StreamLane, StreamWire, Watchdog
from janus.comm.watch import Watch
from janus.comm.wire import At, Links, Wire

dist: Any = torch.distributed  # its type information leaves out what a build lacks


@dataclass(frozen=True)
class Carrier:
    """Where the rows are, and how they may travel.

    Args:
        device: of the rows.
        told_lengths: whether the lengths of messages are known to their senders alone (gate ``"attention"``).
        max_ctas: most thread blocks that NCCL may take from the computation; None: NCCL's choice.
    """

    device: torch.device
    told_lengths: bool = False
    max_ctas: int | None = None

    @property
    def backend(self) -> str:
        """``"gloo"`` or ``"nccl"``."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def lane(self, name: str) -> Lane | StreamLane:
        """Where calls in one direction run."""
        return Lane(name) if self.device.type == "cpu" else StreamLane(self.device)

    def wire(self, control: Wire, watch: Watch, links: Links, opening: Opening) -> Wire | StreamWire:
        """The connections that rows take; `control` itself where gloo carries them."""
        if self.backend == "gloo":
            return control
        return stream_wire(opening.nccl(self.max_ctas), links, watch, self)


@dataclass(frozen=True)
class Opening:
    """What a further process group over the same ranks needs.

    Args:
        store: all ranks share it.
        prefix: of the keys in it.
        number: of this rank in the group.
        size: of the group.
        deadline: `time.monotonic`, until all must have joined.
    """

    store: Any
    prefix: str
    number: int
    size: int
    deadline: float

    def nccl(self, max_ctas: int | None) -> Any:
        """An NCCL group of its own; it connects at the first batch."""
        options = dist.ProcessGroupNCCL.Options()
        options.is_high_priority_stream = True  # an exchange that waits for compute to end helps nobody
        options._timeout = timedelta(seconds=max(self.deadline - time.monotonic(), 1.0))
        if max_ctas is not None:
            options.config.max_ctas = max_ctas
        return dist.ProcessGroupNCCL(
            dist.PrefixStore(f"{self.prefix}/nccl", self.store), self.number, self.size, options
        )


def stream_wire(group: Any, links: Links, watch: Watch, carrier: Carrier) -> StreamWire:
    """Batches over `group`, watched: the first that is late is a lost peer, and ends the group."""

    def late(peers: list[int], at: At) -> None:
        watch.lost(peers[0], at.phase, at.layer, "no answer before the deadline", silent=True)
        group.abort()  # so that the stream, and who waits for it, goes on

    streams: Any = torch.get_device_module(carrier.device)

    def record() -> Any | None:
        if carrier.device.type == "cuda" and streams.is_current_stream_capturing():
            return None  # a captured event cannot be asked: bound a replay with Exchange.fence
        event = streams.Event()
        event.record(streams.current_stream())
        return event

    return StreamWire(group, links, Watchdog(late, record), told_lengths=carrier.told_lengths)
