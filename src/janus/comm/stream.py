"""The seam for devices with streams (NCCL): batches in stream order, no wait on the host, deadlines kept by a watchdog.

The same calls as `janus.comm.wire`, but nothing waits on the host: `wait` hands one batch of sends and receives to the
group, in the order of the current stream. With one batch per phase on every rank the batches match, and a CUDA graph
can capture them. A deadline cannot be met by waiting then; a thread polls events instead and ends the group when one
stays out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from janus.comm.lanes import Pending
from janus.comm.terms import LinkTraffic
from janus.comm.wire import At, Links, flat_bytes

T = TypeVar("T")
_POLL_S = 0.02
_STOP_S = 1.0


@dataclass(frozen=True)
class Slot:
    """A message that waits for its batch."""

    peer: int
    buffer: torch.Tensor
    tag: int


class StreamWire:
    """Point-to-point messages in batches on the current stream, addressed by global rank.

    Args:
        group: process group over the ranks of `links`.
        links: numbers and links of the peers.
        watchdog: told of every batch.
        told_lengths: messages may be shorter than the room offered: then their lengths travel first, in a batch of
            their own, and the host waits for them.
    """

    batched = True  # one batch per round, so that the batches of all ranks match

    def __init__(self, group: Any, links: Links, watchdog: Watchdog, *, told_lengths: bool) -> None:
        self._group, self._links, self.watchdog, self._told = group, links, watchdog, told_lengths
        self._waiting: list[Slot] = []
        self.reset_traffic()

    def send(self, peer: int, rows: torch.Tensor, tag: int, at: At) -> None:
        """Put contiguous `rows` into the next batch."""
        slot = Slot(peer, flat_bytes(rows), tag)
        link = self._links.link(peer)
        self.traffic[link] = self.traffic[link].plus(slot.buffer.numel())
        self._waiting.append(slot)

    def recv(self, peer: int, into: torch.Tensor, tag: int, at: At) -> Slot:
        """Offer contiguous `into`, to the batch of the `wait` that names it."""
        return Slot(peer, flat_bytes(into), tag)

    def wait(self, posts: Iterable[Slot], at: At) -> None:
        """One batch of everything sent since the last one and of `posts`; later work of the stream comes after it."""
        sends, self._waiting = self._waiting, []
        receives = list(posts)
        if not sends and not receives:
            return
        if self._told:
            receives = self._lengths(sends, receives)
        self._batch(sends, receives)
        self.watchdog.guard(at, [slot.peer for slot in (*receives, *sends)])

    def settle(self, at: At, *tags: int) -> None:
        """Nothing: what uses a buffer again comes later in the stream."""

    def reset_traffic(self) -> None:
        """Count from zero again."""
        self.traffic = {"in_node": LinkTraffic(), "between_nodes": LinkTraffic()}

    def drop(self) -> None:
        """End the watchdog, let go of the group and of all buffers."""
        self.watchdog.stop()
        self._waiting, self._group = [], None

    def _lengths(self, sends: list[Slot], receives: list[Slot]) -> list[Slot]:
        """The receives, cut to what really comes."""
        size = torch.int64
        told = [
            Slot(s.peer, flat_bytes(torch.tensor([s.buffer.numel()], device=s.buffer.device)), s.tag) for s in sends
        ]
        heard = [Slot(r.peer, flat_bytes(torch.zeros(1, dtype=size, device=r.buffer.device)), r.tag) for r in receives]
        self._batch(told, heard)
        lengths = [int(slot.buffer.view(size).item()) for slot in heard]  # host sync here
        return [Slot(r.peer, r.buffer[:n], r.tag) for r, n in zip(receives, lengths, strict=True)]

    def _batch(self, sends: list[Slot], receives: list[Slot]) -> None:
        group: Any = self._group
        number = self._links.number
        together = getattr(group, "supports_coalescing", False)
        if together:
            group._start_coalescing()
        works = [group.recv([r.buffer], number[r.peer], r.tag) for r in receives]
        works += [group.send([s.buffer], number[s.peer], s.tag) for s in sends]
        if together:
            works = [group._end_coalescing()]
        for work in works:
            work.wait()  # on a device: the current stream waits, the host does not


class Watchdog:
    """A thread that polls events and calls `late` for the first one that stays out past its deadline.

    Args:
        late: gets the peers of the batch, phase and layer.
        record: makes an event on the current stream; None while a graph is being captured, when there is nothing to
            poll.
    """

    def __init__(self, late: Callable[[list[int], At], None], record: Callable[[], Any | None]) -> None:
        self._late, self._record = late, record
        self._out: list[tuple[Any, list[int], At]] = []
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def guard(self, at: At, peers: list[int]) -> None:
        """Bound everything on the current stream so far by the deadline of `at`."""
        event = self._record()
        if event is None:
            return
        with self._lock:
            self._out.append((event, peers, at))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="janus-watchdog")
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_S):
            with self._lock:
                self._out = [entry for entry in self._out if not entry[0].query()]
                overdue = next((entry for entry in self._out if time.monotonic() > entry[2].deadline), None)
            if overdue is not None:
                self._late(overdue[1], overdue[2])
                return


class StreamPending(Pending[T]):
    """What an ``*_async`` call returns on a device: its work is on a stream of its own.

    Args:
        value: of the call.
        event: after its work.
        streams: module of the device, e.g. `torch.cuda`.
    """

    def __init__(self, value: T, event: Any, streams: Any) -> None:
        self._value, self._event, self._streams = value, event, streams

    def wait(self) -> T:
        """The result; the current stream waits for it, the host does not."""
        self._event.wait(self._streams.current_stream())
        return self._value

    @property
    def done(self) -> bool:
        """Whether its work is over."""
        return self._event.query()


class StreamLane:
    """Runs calls one after another on a stream of its own; see `janus.comm.lanes.Lane`.

    Args:
        device: of the stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._streams: Any = torch.get_device_module(device)
        self._stream: Any = None

    def run(self, call: Callable[[], T]) -> T:
        """`call` on the current stream, after everything submitted before."""
        if self._stream is not None:
            self._streams.current_stream().wait_stream(self._stream)
        return call()

    def submit(self, call: Callable[[], T]) -> StreamPending[T]:
        """`call` on the lane's stream, after what is on the current stream now."""
        if self._stream is None:
            self._stream = self._streams.Stream()
        self._stream.wait_stream(self._streams.current_stream())
        with self._streams.stream(self._stream):
            value = call()
            event = self._streams.Event()
            event.record(self._stream)
        return StreamPending(value, event, self._streams)

    def finish(self, seconds: float) -> None:
        """Nothing: who uses the device next comes later in its streams."""

    def close(self, seconds: float = 1.0) -> None:
        """Nothing to end."""
