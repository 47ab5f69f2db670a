"""Layer 1: whom the notes of all ranks accuse, without processes. A note says whom a rank lost, and waited for."""

from __future__ import annotations

import time

import pytest

from janus.comm.store import Board, StoreGone
from janus.comm.watch import Watch, is_deadline


class Dict:
    """A store of one process."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return self.values[key]

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


def test_the_grace_is_short_for_a_closed_connection_and_bounded_for_a_silent_one():
    for silent, bound in ((False, 0.3), (True, 1.0)):
        started = time.monotonic()
        verdict(0, (3, silent), {})
        took = time.monotonic() - started
        assert bound <= took < bound + 0.9  # 0.9 s for a busy test machine


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
