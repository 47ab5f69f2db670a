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
    """One thread that blocks on the next rank of the ring and wakes when that rank's connection closes.

    Args:
        board: where suspicions are pinned.
        group: the gloo process group of the exchange.
        members: global ranks of the group, in group order.
        rank: this process.
    """

    def __init__(self, board: Board, group: Any, members: tuple[int, ...], rank: int) -> None:
        self._board, self._group, self._members, self._rank = board, group, members, rank
        self._lock = threading.Lock()
        self._first: tuple[int, str, float] | None = None  # peer, what was seen, grace in seconds
        self._verdict: PeerLost | None = None
        self.leaving = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="janus-watch")
        self._thread.start()

    def lost(self, peer: int, phase: str, layer: int, why: str, *, silent: bool) -> PeerLost:
        """Pin the suspicion, break this rank's connections and return the error that names the rank really lost."""
        self._accuse(peer, phase, layer, why, silent=silent)
        assert self._first is not None
        first, why, grace = self._first
        culprit, note = self._follow(first, time.monotonic() + grace)
        if culprit != first:
            why = f"seen through rank {first}: {note}"
        if self.left(culprit):
            why = f"it closed its exchange ({why})"
        self._verdict = PeerLost(phase, layer, self._rank, culprit, why)
        return self._verdict

    @property
    def broken(self) -> bool:
        """Whether somebody was lost."""
        return self._first is not None

    def again(self, phase: str) -> PeerLost:
        """The loss once more, for a later call."""
        if self._verdict is None:  # this rank's own thread saw it before any call did
            assert self._first is not None
            return self.lost(self._first[0], phase, -1, self._first[1], silent=False)
        return PeerLost(phase, -1, self._rank, self._verdict.peer, self._verdict.detail)

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
        self._thread.join(seconds)
        self._group = None

    def _run(self) -> None:
        me = self._members.index(self._rank)
        after = (me + 1) % len(self._members)
        try:
            self._group.recv([torch.empty(1, dtype=torch.uint8)], after, _WATCH_TAG).wait(_FOREVER)
        except RuntimeError as error:
            if self.leaving or self._first:
                return
            peer, why = self._members[after], _short(error)
            with contextlib.suppress(StoreGone):
                deadline = time.monotonic() + _CLOSED_GRACE_S
                while time.monotonic() < deadline:
                    notes = self._board.read([f"closed/{peer}", f"suspect/{peer}"])
                    if f"closed/{peer}" in notes:
                        return  # it left in good order; whoever still needs it will say so
                    if notes:
                        break
                    time.sleep(0.01)
            self._accuse(peer, "watch", -1, why, silent=False)

    def _accuse(self, peer: int, phase: str, layer: int, why: str, *, silent: bool) -> None:
        with self._lock:
            if self._first is not None or self.leaving:
                self._first = self._first or (peer, why, _CLOSED_GRACE_S)
                return
            self._first = (peer, why, _SILENT_GRACE_S if silent else _CLOSED_GRACE_S)
            with contextlib.suppress(StoreGone):
                note = {"peer": peer, "phase": phase, "layer": layer, "why": why}
                self._board.put(f"suspect/{self._rank}", note)
        self._break()

    def _follow(self, first: int, deadline: float) -> tuple[int, str]:
        """Walk from suspect to suspect until one has pinned no suspicion of its own."""
        seen, culprit, note = {self._rank}, first, ""
        with contextlib.suppress(StoreGone):
            while culprit not in seen:
                seen.add(culprit)
                found = self._board.wait([f"suspect/{culprit}"], deadline)
                if not found:
                    return culprit, note
                (said,) = found.values()
                culprit, note = said["peer"], said["why"]
        return (first, "") if culprit in seen else (culprit, note)  # a circle, or no store: only the first is known

    def _break(self) -> None:
        """Close every connection of the group: gloo does so when a wait on any of them times out."""
        group = self._group
        for peer in range(len(self._members)) if group is not None else ():
            if self._members[peer] == self._rank:
                continue
            try:
                group.recv([torch.empty(1, dtype=torch.uint8)], peer, _BREAK_TAG).wait(timedelta(milliseconds=1))
            except RuntimeError as error:
                if is_deadline(error):
                    return


def is_deadline(error: RuntimeError) -> bool:
    """Whether gloo gave up waiting, rather than seeing a connection close."""
    return "Timed out" in str(error)


def _short(error: RuntimeError) -> str:
    return "deadline passed" if is_deadline(error) else "connection closed"
