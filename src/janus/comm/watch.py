"""Who was lost: every rank watches one neighbour, writes down whom it suspects, and follows the others' suspicions.

A rank that meets a closed connection or a deadline pins its suspicion under its own name, then breaks its own
connections so that its neighbours stop waiting too. They suspect *it*, read that it suspects somebody else, and so
follow the chain to the rank that suspects nobody: the one that was really lost.
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
_CLOSED_GRACE_S = 0.3  # a closed connection: the note was pinned before the connection went, so it is there already
_SILENT_GRACE_S = 1.0  # a deadline: the other ranks' deadlines pass at about the same time


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
        self._verdict: PeerLost | None = None
        self.leaving = False
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
        first = self._accuse(peer, why, silent=silent, waiting=peer)
        culprit = self._follow(first, time.monotonic() + (_SILENT_GRACE_S if first["silent"] else _CLOSED_GRACE_S))
        why = first["why"] if culprit == first["peer"] else f"{first['why']} by rank {first['peer']}, which had lost it"
        if self.left(culprit):
            why = f"it closed its exchange ({why})"
        self._verdict = PeerLost(phase, layer, self._rank, culprit, why)
        return self._verdict

    @property
    def broken(self) -> bool:
        """Whether somebody was lost."""
        return self._note is not None

    def again(self, phase: str) -> PeerLost:
        """The loss once more, for a later call; or for the first time, if only the threads have seen it."""
        if self._verdict is not None:
            return PeerLost(phase, -1, self._rank, self._verdict.peer, self._verdict.detail)
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
            if not self.leaving and not self.broken and not self._left_politely(peer):
                self._accuse(peer, "connection closed", silent=False)

    def _left_politely(self, peer: int) -> bool:
        """Whether `peer` closed in good order; then whoever still needs it will say so."""
        deadline = time.monotonic() + _CLOSED_GRACE_S
        with contextlib.suppress(StoreGone):
            while time.monotonic() < deadline and not self.leaving:
                notes = self._board.read([f"closed/{peer}", f"suspect/{peer}"])
                if notes:
                    return f"closed/{peer}" in notes
                time.sleep(0.01)
        return False

    def _accuse(self, peer: int, why: str, *, silent: bool, waiting: int | None = None) -> dict[str, Any]:
        """Pin whom this rank lost first, and whom its caller was waiting for meanwhile; returns the note."""
        with self._lock:
            if self._note is None:
                self._note = {"peer": peer, "silent": silent, "why": why}
            if waiting is not None:
                self._note["waiting"] = waiting
            note = dict(self._note)
            if not self.leaving:
                with contextlib.suppress(StoreGone):
                    self._board.put(f"suspect/{self._rank}", note)
        self._break()
        return note

    def _follow(self, mine: dict[str, Any], deadline: float) -> int:
        """Walk from suspect to suspect to one that has pinned nothing: it could not, so it is the one."""
        while True:
            culprit = self._walk(mine, {self._rank}, deadline)
            if culprit is not None:
                return culprit
            if time.monotonic() >= deadline:
                return mine["peer"]  # a circle: only the first is known
            time.sleep(0.02)  # a note may still lack whom its rank was waiting for

    def _walk(self, note: dict[str, Any], seen: set[int], deadline: float) -> int | None:
        """Depth first: whom a rank lost, then whom it was waiting for when others gave it up."""
        for suspect in (note["peer"], note.get("waiting")):
            if suspect is None or suspect in seen:
                continue
            seen.add(suspect)
            found: dict[str, Any] = {}
            with contextlib.suppress(StoreGone):  # then the walk ends at the last suspect it came to
                found = self._board.wait([f"suspect/{suspect}"], deadline)
            if not found:
                return suspect
            (theirs,) = found.values()
            deeper = self._walk(theirs, seen, deadline)
            if deeper is not None:
                return deeper
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
