"""Layer 1: whom the notes of all ranks accuse, without processes. A note says whom a rank lost, and waited for."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref

import pytest

from janus.comm.store import Board, StoreGone
from janus.comm.watch import Watch, is_deadline
from janus.errors import PeerLost


class Dict:
    """A store of one process."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return str(self.values[key]) if isinstance(self.values[key], int) else self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)

    def add(self, key, n):
        self.values[key] = self.values.get(key, 0) + n
        return self.values[key]


class Severed:
    """A gloo group whose connections are all closed: posting fails, as it does there."""

    def recv(self, *_):
        raise RuntimeError("Connection closed by peer")


def verdict(me, mine, notes, closed=()):
    """Whom rank `me` names, given its own loss (peer, silent) and the notes of others: peer, waiting."""
    board = Board(Dict(), "x")
    for rank, (peer, waiting) in notes.items():
        note = {"peer": peer, "silent": False, "why": "connection closed"}
        board.put(f"suspect/{rank}", note | ({} if waiting is None else {"waiting": waiting}))
    for rank in closed:
        board.put(f"closed/{rank}", True)
    watch = Watch(board, Severed(), (0, 1, 2, 3), me)  # not started: the threads are what the layer-2 tests run
    peer, silent = mine
    return watch.lost(peer, "combine", 4, "seen", silent=silent)


CASES = {
    # name: (me, (whom I lost, was it a deadline), notes of the others, who is really lost)
    "the one I lost said nothing": (0, (3, False), {}, 3),
    "it had lost another": (0, (2, False), {2: (3, 3)}, 3),
    "a chain of three": (0, (1, False), {1: (2, 2), 2: (3, 3)}, 3),
    "it gave me up, while I waited for a silent one": (2, (0, True), {3: (2, 2)}, 0),
    "I gave up one that waited for a silent one, and that my break woke": (3, (2, True), {2: (3, 0)}, 0),
    "two that gave each other up, seen from outside": (1, (2, False), {2: (3, 0), 3: (2, 2)}, 0),
    "a circle without a way out": (0, (1, False), {1: (0, 0)}, 1),
    "I accuse one whose note knows better than its neighbour's": (1, (3, False), {3: (2, 2), 2: (0, 3)}, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_walk_ends_at_the_rank_that_was_really_lost(name):
    me, mine, notes, lost = CASES[name]
    error = verdict(me, mine, notes)
    assert (error.peer, error.rank, error.phase, error.layer) == (lost, me, "combine", 4)


def test_a_note_that_is_completed_late_still_counts():
    """The threads of rank 2 pin whom it lost a moment before its caller adds whom it was waiting for."""
    import threading

    store = Dict()
    board = Board(store, "x")
    board.put("suspect/2", {"peer": 3, "silent": False, "why": ""})
    watch = Watch(board, Severed(), (0, 1, 2, 3), 3)  # not started: the threads are what the layer-2 tests run
    late = {"peer": 3, "silent": False, "why": "", "waiting": 0}
    timer = threading.Timer(0.2, lambda: Board(store, "x").put("suspect/2", late))
    timer.start()
    assert watch.lost(2, "receive", 0, "seen", silent=True).peer == 0
    timer.join()


def test_a_peer_that_left_in_good_order_is_said_to_have_left():
    error = verdict(1, (0, False), {}, closed=(0,))
    assert error.peer == 0
    assert "it closed its exchange" in str(error)


def test_a_note_is_waited_for_until_the_grace_is_over():
    for silent in (False, True):
        started = time.monotonic()
        verdict(0, (3, silent), {})
        assert 0.5 <= time.monotonic() - started < 0.5 + 0.9  # 0.9 s for a busy test machine


def speaking(me, counted, **more):
    """A watch of rank `me` of four, after `counted` others have been counted; not started."""
    board = Board(Dict(), "x")
    for _ in range(counted):
        board.count("spoken")
    for key, value in more.items():
        board.put(key.replace("_", "/"), value)
    return Watch(board, Severed(), (0, 1, 2, 3), me), board


def test_once_all_others_have_spoken_nobody_waits_for_the_one_that_has_not():
    started = time.monotonic()
    watch, board = speaking(0, 2)
    assert watch.lost(3, "combine", 0, "seen", silent=True).peer == 3
    assert time.monotonic() - started < 0.4
    assert board.read(["spoken"]) == {"spoken": 3}, "this rank has been counted too, once"
    watch.lost(3, "combine", 0, "seen", silent=True)
    assert board.read(["spoken"]) == {"spoken": 3}


def test_one_that_closed_in_good_order_has_spoken_too():
    started = time.monotonic()
    watch, board = speaking(0, 0, closed_3=True)
    assert "it closed its exchange" in str(watch.lost(3, "combine", 0, "seen", silent=False))
    assert time.monotonic() - started < 0.4
    speaker = Watch(board, Severed(), (0, 1, 2, 3), 1)
    speaker.stop(1.0)
    assert board.read(["closed/1", "spoken"]) == {"closed/1": True, "spoken": 2}


def test_a_rank_that_was_too_slow_is_named_though_it_has_spoken():
    """1 met a deadline while 3 waited for 2, which was busy: the break woke all callers, and the threads of 2."""
    notes = {
        "suspect_1": {"why": "", "peer": 3, "silent": True, "waiting": 3},
        "suspect_2": {"why": "", "peer": 1, "silent": False},
        "suspect_3": {"why": "", "peer": 1, "silent": False, "waiting": 2},
    }
    for peer, silent in ((3, True), (1, False)):
        watch, _ = speaking(0, 3, **notes)
        assert watch.lost(peer, "combine", 0, "seen", silent=silent).peer == 2
    # seen by the slow one itself: whom it lost, since nobody is lost to itself
    watch, _ = speaking(2, 2, **{k: v for k, v in notes.items() if k != "suspect_2"})
    assert watch.lost(3, "combine", 0, "seen", silent=False).peer == 3


def test_who_leaves_pins_a_silent_peer_for_the_others_and_returns_at_once():
    watch, board = speaking(0, 0)
    watch.leaving = True
    started = time.monotonic()
    assert watch.lost(3, "close", -1, "seen", silent=True).peer == 3
    assert time.monotonic() - started < 0.4
    assert board.read(["suspect/0"])["suspect/0"]["peer"] == 3
    watch.stop(1.0)
    assert board.read(["closed/0"]) == {}, "a rank that was left alone did not leave in good order"


def test_who_leaves_after_a_faster_one_has_lost_nobody():
    watch, board = speaking(0, 0, closed_3=True)
    watch.leaving = True
    watch.lost(3, "close", -1, "seen", silent=False)
    assert board.read(["suspect/0"]) == {}
    watch.stop(1.0)
    assert board.read(["closed/0"]) == {"closed/0": True}


def test_the_loss_that_is_kept_keeps_no_frame_alive():
    watch, _ = speaking(0, 3)

    class Buffer:
        pass

    def call():
        buffer = Buffer()
        kept.append(weakref.ref(buffer))
        raise watch.lost(3, "combine", 0, "seen", silent=True)

    kept = []
    with contextlib.suppress(PeerLost):
        call()
    gc.collect()
    assert kept[0]() is None
    assert watch.again("begin").peer == 3


def test_without_a_store_the_direct_suspect_is_named():
    class Gone(Board):
        def put(self, key, value):
            raise StoreGone("gone")

        def read(self, keys):
            raise StoreGone("gone")

    watch = Watch(Gone(Dict(), "x"), Severed(), (0, 1, 2), 0)  # not started: the threads are what the layer-2 tests run
    assert watch.lost(2, "begin", -1, "connection closed", silent=False).peer == 2


def test_the_first_loss_stays_and_is_raised_again():
    board = Board(Dict(), "x")
    watch = Watch(board, Severed(), (0, 1, 2), 0)  # not started: the threads are what the layer-2 tests run
    assert not watch.broken
    first = watch.lost(1, "receive", 2, "connection closed", silent=False)
    assert watch.broken
    again = watch.again("begin")
    assert (again.peer, again.phase, again.layer) == (first.peer, "begin", -1)
    assert watch.lost(2, "begin", -1, "later", silent=False).peer == 1


def test_gloo_says_which_kind_of_failure_it_was():
    assert is_deadline(RuntimeError("[unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation to complete"))
    assert not is_deadline(RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:15795"))
    assert not is_deadline(RuntimeError("Application timeout caused pair closure"))
