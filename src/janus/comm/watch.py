"""Who was lost: every rank watches one neighbour, writes down whom it suspects, and follows the others' suspicions.

A rank that meets a closed connection or a deadline pins its suspicion under its own name, then breaks its own
connections so that its neighbours stop waiting too. They suspect *it*, read that it suspects somebody else, and so
follow the chain to the rank that suspects nobody: the one that was really lost. Every rank that pins a note, or leaves
in good order, is counted. So who comes to a rank without a note knows whether one may still come: once all others have
been counted, nobody waits much longer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import timedelta
from typing import Any

import torch

from janus.comm.store import Board, StoreGone
from janus.errors import PeerLost

_WATCH_TAG, _BREAK_TAG = 900, 901
_FOREVER = timedelta(days=30)
_POLITE_S = 0.3  # a rank that leaves pins so before its connections go; not every store shows it at once
# How long a walk waits for a note. A break wakes every rank that runs, at once, so notes come within milliseconds; all
# of it is spent when a second rank was lost, or when a rank is so busy that it cannot pin anything.
_GRACE_S = 0.5
_STRAGGLER_S = 1.0  # who has left had heard every good-bye: how long one may be under way to a rank that still listens
# How long, once all but one have spoken. A lost rank will not; one that was only too slow has, and then the last may be
# an innocent one that is about to.
_LAST_WORD_S = 0.15
_LOOK_S = 0.02  # between two looks at the store
_SPOKEN = "spoken"  # how many ranks have pinned a suspicion, or left in good order


class Watch:
    """Threads that block on the ranks 1, 2, 4, 8, ... places further on and wake when such a connection closes.

    So a death is noticed at once even by ranks that wait for somebody else, and the news goes around ranks that are
    stopped and pass nothing on.

    Args:
        board: where suspicions are pinned.
        group: the gloo process group of the exchange.
        members: global ranks of the group, in group order.
        rank: this process.
    """

    def __init__(self, board: Board, group: Any, members: tuple[int, ...], rank: int) -> None:
        self._board, self._members, self._rank = board, members, rank
        self._group: Any = group
        self._lock = threading.Lock()
        self._note: dict[str, Any] | None = None  # what this rank has pinned: peer, silent, why, waiting
        self._verdict: tuple[int, str] | None = None  # who was lost, and what was seen
        self.leaving = False
        self.listening: float | None = None  # since when this rank hears notices of the attention side, else None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start watching; one thread per rank watched, about log2 of the members."""
        me, n = self._members.index(self._rank), len(self._members)
        for i in range((n - 1).bit_length()):
            thread = threading.Thread(target=self._run, args=((me + (1 << i)) % n,), daemon=True, name="janus-watch")
            self._threads.append(thread)
            thread.start()

    def lost(self, peer: int, phase: str, layer: int, why: str, *, silent: bool) -> PeerLost:
        """Pin the suspicion, break this rank's connections and return the error that names the rank really lost.

        Args:
            peer: whom this rank was waiting for.
            phase: of the call that failed.
            layer: of the call that failed.
            why: what was seen.
            silent: a deadline passed, rather than a connection closed.
        """
        if self.leaving and not silent and self._left_politely(peer):  # it was faster: no loss
            return PeerLost(phase, layer, self._rank, peer, "it closed its exchange")
        first = self._accuse(peer, why, silent=silent, waiting=peer)
        # who leaves needs no name: the others do, and follow the note
        culprit = peer if self.leaving else self._follow(first, time.monotonic() + _GRACE_S)
        why = first["why"] if culprit == first["peer"] else f"{first['why']} by rank {first['peer']}, which had lost it"
        if self.left(culprit):
            why = f"it closed its exchange ({why})"
        self._verdict = (culprit, why)  # not the error: its traceback would keep buffers and sockets alive
        return PeerLost(phase, layer, self._rank, culprit, why)

    @property
    def broken(self) -> bool:
        """Whether somebody was lost."""
        return self._note is not None

    def again(self, phase: str) -> PeerLost:
        """The loss once more, for a later call; or for the first time, if only the threads have seen it."""
        if self._verdict is not None:
            return PeerLost(phase, -1, self._rank, *self._verdict)
        assert self._note is not None
        return self.lost(self._note["peer"], phase, -1, self._note["why"], silent=self._note["silent"])

    def left(self, peer: int) -> bool:
        """Whether `peer` closed its exchange in good order."""
        with contextlib.suppress(StoreGone):
            return bool(self._board.read([f"closed/{peer}"]))
        return False

    def stop(self, seconds: float) -> None:
        """Say that this rank leaves in good order, break the connections, end the thread."""
        if not self.broken:
            with contextlib.suppress(StoreGone):
                self._board.put(f"closed/{self._rank}", True)
                self._board.count(_SPOKEN)
        self.abandon(seconds)

    def abandon(self, seconds: float = 1.0) -> None:
        """Break the connections and end the thread without a word: the others have lost this rank."""
        self.leaving = True
        self._break()
        for thread in self._threads:
            thread.join(seconds)
        self._group = None

    def _run(self, number: int) -> None:
        peer = self._members[number]
        try:
            self._group.recv([torch.empty(1, dtype=torch.uint8)], number, _WATCH_TAG).wait(_FOREVER)
        except RuntimeError:
            if self.leaving or self.broken:
                return
            if not self._left_politely(peer) or self._heard_no_more():
                self._accuse(peer, "connection closed", silent=False)

    def _heard_no_more(self) -> bool:
        """Whether this rank listens in vain, after another has left; False as soon as it leaves or is told of a loss."""
        left_at = time.monotonic()
        while not self.leaving and not self.broken:
            since = self.listening
            if since is not None and time.monotonic() - max(since, left_at) > _STRAGGLER_S:
                return True  # a rank was lost in the middle of its good-bye
            time.sleep(_LOOK_S)
        return False

    def _left_politely(self, peer: int) -> bool:
        """Whether `peer` closed in good order; then whoever still needs it will say so."""
        deadline = time.monotonic() + _POLITE_S
        with contextlib.suppress(StoreGone):
            while time.monotonic() < deadline:
                notes = self._board.read([f"closed/{peer}", f"suspect/{peer}"])
                if notes:
                    return f"closed/{peer}" in notes
                time.sleep(0.01)
        return False

    def _accuse(self, peer: int, why: str, *, silent: bool, waiting: int | None = None) -> dict[str, Any]:
        """Pin whom this rank lost first, and whom its caller was waiting for meanwhile; returns the note."""
        with self._lock:
            if waiting is None and self.leaving:
                return {}  # around one that leaves, connections close in good order
            new = self._note is None
            if self._note is None:
                self._note = {"peer": peer, "silent": silent, "why": why}
            if waiting is not None:
                self._note["waiting"] = waiting
            note = dict(self._note)
            with contextlib.suppress(StoreGone):
                self._board.put(f"suspect/{self._rank}", note)
        self._break()
        if new:  # after the break: a store that does not answer costs each rank its own time, not that of the others
            with contextlib.suppress(StoreGone):
                self._board.count(_SPOKEN)
        return note

    def _follow(self, mine: dict[str, Any], deadline: float) -> int:
        """Walk from suspect to suspect to one that has pinned nothing: it could not, so it is the one."""
        while True:
            culprit = self._walk(mine, {self._rank}, deadline)
            if culprit is not None:
                return culprit
            if time.monotonic() >= deadline:
                return self._slow_one(mine)
            time.sleep(_LOOK_S)  # a note may still lack whom its rank was waiting for

    def _slow_one(self, mine: dict[str, Any]) -> int:
        """A circle: all have spoken, so one was too slow; it is waited for, and its caller waits for nobody."""
        notes: dict[int, dict[str, Any]] = {}
        with contextlib.suppress(StoreGone):
            found = self._board.read(f"suspect/{member}" for member in self._members)
            notes = {int(key.split("/")[1]): note for key, note in found.items()}
        seen, at = {self._rank}, mine["waiting"]
        while at in notes and at not in seen:
            seen.add(at)
            if "waiting" not in notes[at]:
                return at
            at = notes[at]["waiting"]
        return mine["peer"]

    def _walk(self, note: dict[str, Any], seen: set[int], deadline: float) -> int | None:
        """Depth first: whom a rank lost, then whom it was waiting for when others gave it up."""
        for suspect in (note["peer"], note.get("waiting")):
            if suspect is None or suspect in seen:
                continue
            seen.add(suspect)
            theirs = self._note_of(suspect, deadline)
            if theirs is None:
                return suspect
            deeper = self._walk(theirs, seen, deadline)
            if deeper is not None:
                return deeper
        return None

    def _note_of(self, suspect: int, deadline: float) -> dict[str, Any] | None:
        """What `suspect` has pinned; None if it has left, stays silent when all others have spoken, or at the deadline."""
        key, others = f"suspect/{suspect}", len(self._members) - 1
        with contextlib.suppress(StoreGone):  # then the walk ends at the last suspect it came to
            while True:
                found = self._board.read([key, f"closed/{suspect}", _SPOKEN])
                now = time.monotonic()
                if key in found:
                    return found[key]
                if f"closed/{suspect}" in found or now >= deadline:
                    return None
                if found.get(_SPOKEN, 0) >= others:
                    deadline = min(deadline, now + _LAST_WORD_S)
                    others = len(self._members)  # once: from here on the clock runs
                time.sleep(_LOOK_S)
        return None

    def _break(self) -> None:
        """Close every connection of the group: gloo does so when a wait on any of them times out."""
        group = self._group
        if group is None:
            return
        for peer in (i for i, member in enumerate(self._members) if member != self._rank):
            try:
                group.recv([torch.empty(1, dtype=torch.uint8)], peer, _BREAK_TAG).wait(timedelta(milliseconds=1))
            except RuntimeError as error:
                if is_deadline(error):
                    return


def is_deadline(error: RuntimeError) -> bool:
    """Whether gloo gave up waiting, rather than seeing a connection close."""
    return "Timed out" in str(error)
