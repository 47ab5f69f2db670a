"""Layer 1: the watchdog of batches in stream order, with plain objects for events, and the wire over a plain group."""

from __future__ import annotations

import os
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch

from janus.comm import carrier
from janus.comm.stream import StreamLane, StreamWire, Watchdog, bounded
from janus.comm.wire import At, Links
from janus.errors import JanusError, PeerLost
from janus.types import Topology

SOON = 5.0  # of waiting for a thread that polls every 20 ms, on a busy machine


class Event:
    """Done when told so."""

    def __init__(self, done=False):
        self.done = done

    def query(self):
        return self.done


class Calls:
    """What a watchdog says, and events for it: the next of `events` each time it asks."""

    def __init__(self, *events, **more):
        self.late, self.said = [], threading.Event()
        self.dog = Watchdog(self._late, iter(events).__next__, **more)

    def _late(self, peers, at):
        self.late.append((peers, at.layer, time.monotonic()))
        self.said.set()


def at(seconds, layer=0):
    return At.within("combine", layer, seconds)


@pytest.fixture
def calls():
    made = []

    def make(*events, **more):
        made.append(Calls(*events, **more))
        return made[-1]

    yield make
    for one in made:
        one.dog.stop()


def test_an_event_that_stays_out_fires_once_after_its_deadline(calls):
    found = calls(Event(), Event(done=True), Event())
    deadline = at(0.15, layer=3)
    found.dog.guard(deadline, [4, 5])
    found.dog.guard(at(0.0), [6])  # done: its deadline does not matter
    found.dog.guard(at(SOON), [7])  # out, but in time
    assert found.said.wait(SOON)
    time.sleep(0.1)  # five more looks
    ((peers, layer, when),) = found.late
    assert (peers, layer) == ([4, 5], 3)
    assert deadline.deadline < when < deadline.deadline + 1
    assert found.dog.fired
    assert not found.dog.drain(SOON)


def test_an_event_that_comes_does_not_fire(calls):
    event = Event()
    found = calls(event)
    found.dog.guard(at(0.3), [1])
    assert not found.dog.drain(0.05), "it is still out"
    event.done = True
    assert found.dog.drain(SOON)
    time.sleep(0.4)
    assert found.late == []
    assert not found.dog.fired


def test_nothing_is_watched_while_a_graph_is_captured(calls):
    found = calls(None)
    found.dog.guard(at(0.0), [1])
    assert found.dog._thread is None
    assert found.dog.drain(0)


def test_a_known_loss_ends_what_is_out_at_once(calls):
    broken = []
    found = calls(Event(), broken=lambda: bool(broken))
    found.dog.guard(at(60), [2])
    assert not found.said.wait(0.1)
    broken.append(True)
    assert found.said.wait(SOON)
    assert found.late[0][0] == [2]


def test_stop_ends_the_thread_and_the_thread_settles_in_first(calls):
    settled = []
    found = calls(Event(), settle_in=lambda: settled.append(threading.current_thread().name))
    found.dog.guard(at(0.2), [1])
    thread = found.dog._thread
    found.dog.stop()
    assert not thread.is_alive()
    assert settled == ["janus-watchdog"]
    time.sleep(0.3)
    assert found.late == []


class Loop:
    """A group whose only rank gets what it sends, batch by batch; refuses once it is aborted."""

    supports_coalescing = True

    def __init__(self):
        self.log, self.sent, self.rooms, self.ended = [], [], [], ""

    def _start_coalescing(self):
        self.log.append("start")

    def recv(self, tensors, number, tag):
        self.rooms.append(tensors[0])

    def send(self, tensors, number, tag):
        self.sent.append(tensors[0].clone())

    def _end_coalescing(self):
        if self.ended:
            raise RuntimeError("NCCL communicator was aborted\nwith a long story")
        for room, message in zip(self.rooms, self.sent, strict=True):
            room.copy_(message)
        self.rooms, self.sent = [], []
        self.log.append("end")
        return self

    def wait(self):
        self.log.append("wait")

    def abort(self):
        self.ended += "abort"

    def shutdown(self):
        self.ended += "shutdown"


def wire(group, event, told=False):
    topology = Topology.parse("1A1E")
    dog = Watchdog(lambda peers, at: group.abort(), lambda: event)

    def lost(peers, at, why):
        return PeerLost(at.phase, at.layer, 0, peers[0], why)

    return StreamWire(group, Links(topology, 0), dog, lost, told_lengths=told)


def test_one_batch_and_one_watch_for_all_that_is_posted():
    group = Loop()
    made, room = wire(group, Event(done=True)), torch.zeros(4)
    rows = torch.arange(4.0)
    made.send(1, rows, 10, at(1))
    made.wait([made.recv(1, room, 10, at(1))], at(1))
    made.wait([], at(1))  # nothing posted: no batch
    assert group.log == ["start", "end", "wait"]
    assert torch.equal(room, rows)
    made.drop()
    assert group.ended == "shutdown"


def test_lengths_are_told_in_a_batch_before_and_are_watched_too():
    group, watched = Loop(), []
    made, room = wire(group, Event(done=True), told=True), torch.full((5,), -1.0)
    guard = made.watchdog.guard
    made.watchdog.guard = lambda at, peers: (watched.append(peers), guard(at, peers))
    made.send(1, torch.ones(2), 10, at(1))
    made.wait([made.recv(1, room, 10, at(1))], at(1))
    assert room.tolist() == [1, 1, -1, -1, -1]
    assert group.log == ["start", "end", "wait"] * 2
    assert watched == [[1, 1], [1, 1]], "the host waits for the first batch: nobody else would bound that"
    made.drop()


def test_lengths_that_come_from_a_group_that_was_ended_are_not_believed():
    made, room = wire(Loop(), Event(done=True), told=True), torch.zeros(2)
    made.watchdog.fired = True  # the host's wait for the lengths ends then too
    made.send(1, torch.ones(2), 10, at(1))
    with pytest.raises(PeerLost, match="the group was ended"):
        made.wait([made.recv(1, room, 10, at(1))], at(1))


def test_a_batch_that_the_group_refuses_is_a_lost_peer():
    group = Loop()
    made = wire(group, Event(done=True))
    group.abort()
    made.send(1, torch.ones(2), 10, at(1))
    with pytest.raises(PeerLost, match=r"NCCL communicator was aborted") as caught:
        made.wait([], at(1, layer=7))
    assert (caught.value.peer, caught.value.layer, caught.value.phase) == (1, 7, "combine")
    assert "long story" not in str(caught.value)
    made.watchdog.stop()


def test_a_wire_that_is_dropped_while_a_batch_is_out_is_aborted(monkeypatch):
    monkeypatch.setattr("janus.comm.stream._DRAIN_S", 0.1)
    group = Loop()
    made = wire(group, Event())
    made.send(1, torch.ones(2), 10, at(60))
    made.wait([made.recv(1, torch.ones(2), 10, at(60))], at(60))
    made.drop()
    assert group.ended == "abort"
    assert made.watchdog._thread is not None
    assert not made.watchdog._thread.is_alive()


class Nccl:
    """What the module of process groups holds, as far as an opening asks for it."""

    class Options:
        def __init__(self):
            self.config = SimpleNamespace()

    def __init__(self, store, number, size, options):
        self.made, self.options, self.connected = (store, number, size), options, []
        self.handling = os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING")

    def eager_connect_single_device(self, device):
        self.connected.append(device)


@pytest.mark.parametrize("handling", [None, "3"])
def test_an_nccl_group_is_connected_at_once_and_ends_no_process(monkeypatch, handling):
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    monkeypatch.delenv(name, raising=False)
    if handling:
        monkeypatch.setenv(name, handling)
    monkeypatch.setattr(carrier, "dist", SimpleNamespace(ProcessGroupNCCL=Nccl, PrefixStore=lambda *given: given))
    group = carrier.Opening("store", "janus/1", 2, 3, time.monotonic() + 5).nccl(torch.device("cuda", 1), 8)
    assert group.made == (("janus/1/nccl", "store"), 2, 3)
    assert group.connected == [torch.device("cuda", 1)]
    assert group.options.config.max_ctas == 8
    assert group.options._timeout.days > 1, "NCCL's own watchdog would end a process whose expert rank is idle"
    assert group.handling == (handling or "0")
    assert os.environ.get(name) == handling


def test_a_group_that_does_not_connect_is_an_error_of_janus():
    watch = SimpleNamespace(
        broken=False, abandon=lambda: None, lost=lambda peer, *_, silent: PeerLost("r", -1, 0, peer)
    )
    links = Links(Topology.parse("1A1E"), 0)

    def connect(error):
        def nccl(*_):
            raise error

        opening = SimpleNamespace(number=0, nccl=nccl)
        return carrier.Carrier(torch.device("cuda", 0)).wire(None, watch, links, opening)

    with pytest.raises(JanusError, match=r"comm\.device.*Duplicate GPU.*set_device") as caught:
        connect(RuntimeError("Duplicate GPU detected\nat great length"))
    assert "great length" not in str(caught.value)
    with pytest.raises(PeerLost) as lost:
        connect(TimeoutError())
    assert lost.value.peer == 1
    watch.broken, watch.again = True, lambda phase: PeerLost(phase, -1, 0, 5)
    with pytest.raises(PeerLost) as lost:
        connect(RuntimeError("remote error"))
    assert lost.value.peer == 5


def test_a_bounded_call_ends_in_time_or_is_left_behind():
    done = []
    bounded(lambda: done.append(1), SOON)
    assert done == [1]
    with pytest.raises(KeyError, match="what it raises"):
        bounded(lambda: {}["what it raises"], SOON)
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"not done within 0\.05 s"):
        bounded(lambda: never.wait(SOON), 0.05)
    never.set()


def test_what_an_asynchronous_call_reads_stays_until_it_is_waited_for():
    lane = StreamLane(torch.device("cpu"))
    lane._streams = _Streams()
    rows = torch.ones(3)
    seen = weakref.ref(rows)
    pending = lane.submit(lambda rows=rows: rows.sum())
    del rows
    assert seen() is not None, "another stream would get its memory"
    assert pending.wait() == 3
    assert seen() is None


class _Streams:
    """A device without streams."""

    class Event:
        def record(self, stream): ...
        def wait(self, stream): ...

    class Stream:
        def wait_stream(self, other): ...
        def __enter__(self): ...
        def __exit__(self, *_): ...

    def current_stream(self):
        return self.Stream()

    def stream(self, one):
        return one
