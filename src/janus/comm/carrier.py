"""What carries the rows: gloo on CPUs, over the connections that are there anyway, or NCCL on CUDA devices."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from janus.comm.lanes import Lane
from janus.comm.stream import StreamLane, StreamWire, Watchdog, bounded
from janus.comm.watch import Watch
from janus.comm.wire import At, Links, Wire
from janus.errors import JanusError, PeerLost

dist: Any = torch.distributed  # its type information leaves out what a build lacks
_NEVER = timedelta(days=30)  # an idle expert rank may wait for long; deadlines are kept by `Watchdog`
_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


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
        peer = next((member for member, number in links.number.items() if number != opening.number), -1)
        try:
            group = opening.nccl(self.device, self.max_ctas)
        except TimeoutError:
            raise watch.lost(peer, "rendezvous", -1, "NCCL has not connected in time", silent=True) from None
        except RuntimeError as error:
            if watch.broken:
                raise watch.again("rendezvous") from None
            watch.abandon()
            raise JanusError(
                "comm.device",
                f"NCCL could not connect the ranks: {str(error).partition(chr(10))[0]}; every rank needs a GPU of its "
                "own (torch.cuda.set_device), and NCCL_DEBUG=INFO says more",
            ) from None
        return stream_wire(group, links, watch, self)


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

    def nccl(self, device: torch.device, max_ctas: int | None) -> Any:
        """An NCCL group of its own, connected: a first batch that not all ranks take part in would wait for the others.

        Raises:
            TimeoutError: not all ranks have connected by the deadline.
            RuntimeError: what NCCL says.
        """
        options = dist.ProcessGroupNCCL.Options()
        options.is_high_priority_stream = True  # an exchange that waits for compute to end helps nobody
        options._timeout = _NEVER
        if max_ctas is not None:
            options.config.max_ctas = max_ctas
        store = dist.PrefixStore(f"{self.prefix}/nccl", self.store)
        with _own_deadlines():
            group = dist.ProcessGroupNCCL(store, self.number, self.size, options)
        index = torch.cuda.current_device() if device.index is None else device.index
        left = max(self.deadline - time.monotonic(), 1.0)
        bounded(lambda: group.eager_connect_single_device(torch.device("cuda", index)), left)
        return group


@contextlib.contextmanager
def _own_deadlines() -> Iterator[None]:
    """A group made here leaves errors to Janus: by default its own watchdog ends the whole process."""
    if _HANDLING in os.environ:
        yield
        return
    os.environ[_HANDLING] = "0"
    try:
        yield
    finally:
        del os.environ[_HANDLING]


def stream_wire(group: Any, links: Links, watch: Watch, carrier: Carrier) -> StreamWire:
    """Batches over `group`, watched: the first that is late is a lost peer, and ends the group."""

    def lost(peers: list[int], at: At, why: str, *, silent: bool = False) -> PeerLost:
        return watch.again(at.phase) if watch.broken else watch.lost(peers[0], at.phase, at.layer, why, silent=silent)

    def late(peers: list[int], at: At) -> None:
        lost(peers, at, "no answer before the deadline", silent=True)
        group.abort()  # so that the stream, and who waits for it, goes on

    streams: Any = torch.get_device_module(carrier.device)
    cuda = carrier.device.type == "cuda"
    index = streams.current_device() if cuda and carrier.device.index is None else carrier.device.index

    def record() -> Any | None:
        if cuda and streams.is_current_stream_capturing():
            return None  # a captured event cannot be asked: bound a replay with Exchange.fence
        event = streams.Event()
        event.record(streams.current_stream())
        return event

    def settle_in() -> None:
        if cuda:
            streams.set_device(index)  # else asking would open a context on the first device
            _allow_capture_elsewhere()

    watchdog = Watchdog(late, record, lambda: watch.broken, settle_in)
    return StreamWire(group, links, watchdog, lost, told_lengths=carrier.told_lengths)


def _allow_capture_elsewhere() -> None:
    """Let this thread ask for events while another one captures a graph, which CUDA takes for a mistake by default."""
    with contextlib.suppress(OSError, AttributeError):  # not CUDA's driver: then capture with mode "thread_local"
        mode = ctypes.c_int(_RELAXED)
        ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
