"""The seam for devices with streams (NCCL): batches in stream order, no wait on the host, deadlines kept by a watchdog.

The same calls as `janus.comm.wire`, but nothing waits on the host: `wait` hands one batch of sends and receives to the
group, in the order of the current stream. With one batch per phase on every rank the batches match, and a CUDA graph
can capture them. A deadline cannot be met by waiting then; a thread polls events instead and ends the group when one
stays out, or as soon as somebody is known to be lost: what waits on the device would never end by itself.
"""

from __future__ import annotations

import contextlib
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
Lost = Callable[[list[int], At, str], Exception]
_POLL_S = 0.02
_STOP_S = 1.0
_DRAIN_S = 3.0  # of a close in good order: how long what is under way may take to reach its receivers


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
        lost: makes the error for a batch that the group refuses, from the peers in it, where it was, and what was said.
        told_lengths: messages may be shorter than the room offered: then their lengths travel first, in a batch of
            their own, and the host waits for them.
    """

    batched = True  # one batch per round, so that the batches of all ranks match

    def __init__(self, group: Any, links: Links, watchdog: Watchdog, lost: Lost, *, told_lengths: bool) -> None:
        self._group, self._links, self.watchdog, self._lost, self._told = group, links, watchdog, lost, told_lengths
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
            receives = self._lengths(sends, receives, at)
        self._batch(sends, receives, at)

    def settle(self, at: At, *tags: int) -> None:
        """Nothing: what uses a buffer again comes later in the stream."""

    def reset_traffic(self) -> None:
        """Count from zero again."""
        self.traffic = {"in_node": LinkTraffic(), "between_nodes": LinkTraffic()}

    def drop(self) -> None:
        """End the watchdog, let go of the group and of all buffers; what is under way may still reach its receivers."""
        group, self._group, self._waiting = self._group, None, []
        well = self.watchdog.drain(_DRAIN_S)
        self.watchdog.stop()
        if group is None or self.watchdog.fired:
            return  # ended already
        if not well:
            group.abort()
            return
        # NCCL ends neither before its peers do nor before the graphs that hold batches are gone: then it is left behind
        with contextlib.suppress(TimeoutError, RuntimeError):
            bounded(group.shutdown, _DRAIN_S)

    def _lengths(self, sends: list[Slot], receives: list[Slot], at: At) -> list[Slot]:
        """The receives, cut to what really comes."""
        size = torch.int64
        told = [
            Slot(s.peer, flat_bytes(torch.tensor([s.buffer.numel()], device=s.buffer.device)), s.tag) for s in sends
        ]
        heard = [Slot(r.peer, flat_bytes(torch.zeros(1, dtype=size, device=r.buffer.device)), r.tag) for r in receives]
        self._batch(told, heard, at)
        lengths = [int(slot.buffer.view(size).item()) for slot in heard]  # host sync here; ends when the group does
        if self.watchdog.fired:
            raise self._lost([slot.peer for slot in (*heard, *told)], at, "the group was ended")
        return [Slot(r.peer, r.buffer[:n], r.tag) for r, n in zip(receives, lengths, strict=True)]

    def _batch(self, sends: list[Slot], receives: list[Slot], at: At) -> None:
        peers = [slot.peer for slot in (*receives, *sends)]
        try:
            self._post(sends, receives)
        except RuntimeError as error:
            raise self._lost(peers, at, str(error).partition("\n")[0]) from None
        self.watchdog.guard(at, peers)

    def _post(self, sends: list[Slot], receives: list[Slot]) -> None:
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
        broken: whether somebody is known to be lost: then no event that is out is waited for any longer.
        settle_in: called once in the thread, before it polls.
    """

    def __init__(
        self,
        late: Callable[[list[int], At], None],
        record: Callable[[], Any | None],
        broken: Callable[[], bool] = lambda: False,
        settle_in: Callable[[], None] = lambda: None,
    ) -> None:
        self._late, self._record, self._broken, self._settle_in = late, record, broken, settle_in
        self.fired = False  # whether `late` has been called
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

    def drain(self, seconds: float) -> bool:
        """Wait until no event is out, at most `seconds`; False when one stays out, or `late` was called."""
        deadline = time.monotonic() + seconds
        while self._out and self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return not self._out and not self.fired

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        self._settle_in()
        while not self._stopped.wait(_POLL_S):
            with self._lock:
                self._out = [entry for entry in self._out if not entry[0].query()]
                given_up, now = self._broken(), time.monotonic()
                overdue = next((entry for entry in self._out if given_up or now > entry[2].deadline), None)
            if overdue is not None:
                self.fired = True
                self._late(overdue[1], overdue[2])
                return


def bounded(call: Callable[[], Any], seconds: float) -> None:
    """Run `call` in a thread of its own; what it raises is raised here.

    Raises:
        TimeoutError: it takes longer than `seconds`; its thread is left behind.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True, name="janus-bounded")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"not done within {seconds:g} s")
    if raised:
        raise raised[0]


class StreamPending(Pending[T]):
    """What an ``*_async`` call returns on a device: its work is on a stream of its own.

    Args:
        value: of the call.
        event: after its work.
        streams: module of the device, e.g. `torch.cuda`.
        kept: what the call reads; its memory must not be used again by another stream before.
    """

    def __init__(self, value: T, event: Any, streams: Any, kept: Any = None) -> None:
        self._value, self._event, self._streams, self._kept = value, event, streams, kept

    def wait(self) -> T:
        """The result; the current stream waits for it, the host does not."""
        self._event.wait(self._streams.current_stream())
        self._kept = None
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
        return StreamPending(value, event, self._streams, call)

    def finish(self, seconds: float) -> None:
        """Nothing: who uses the device next comes later in its streams."""

    def close(self, seconds: float = 1.0) -> None:
        """Nothing to end."""
