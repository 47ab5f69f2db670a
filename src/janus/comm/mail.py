"""Messages among the members of a roster: all of a phase at once, until a deadline; a loss is named."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from janus.comm.group import default_store
from janus.comm.roster import Roster, dist
from janus.comm.splits import Order
from janus.comm.store import Board, StoreGone
from janus.comm.watch import Watch
from janus.comm.wire import At
from janus.errors import PeerLost

_LEAST_S = 0.001  # gloo reads 0 as "no deadline"
_BLAME_CALL_S = 0.7  # a survivor must not wait long for a store that died with the rank it asks about
_LATE_S = 0.2  # in which all who wait in vain say so; less than others follow a note
_TAG = 0x6A610000  # far from the tags of a user's own messages in the group
_PROBE_TAG = 0x6A61FFFF
# Of a group, whom it lost and what was seen: no later call goes well. Not the error: its traceback holds the group.
_LOST: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()

Letter = tuple[int, torch.Tensor]  # the other member, contiguous bytes


class Expected(NamedTuple):
    """Messages of one phase that come in: where they go, and what gloo knows of them already."""

    tag: int
    letters: list[Letter]
    posts: list[tuple[int, Any]]


class Mail:
    """Point-to-point messages in the group of `roster`, for one call.

    Args:
        roster: who takes part.
        at: phase and deadline of the call.
    """

    def __init__(self, roster: Roster, at: At) -> None:
        self._roster, self._at = roster, at

    def check_usable(self) -> None:
        """Raise a loss again: the connections of the group are closed."""
        if (lost := _LOST.get(self._roster.group)) is not None:
            peer, why = lost
            raise self._error(peer, f"{why}; make a new group")

    def expect(self, tag: int, coming: Sequence[Letter]) -> Expected:
        """Say where messages go before their phase begins: then nobody who sends them has to ask."""
        full = [letter for letter in coming if letter[1].numel()]
        if full and full[0][1].device.type != "cpu":  # NCCL takes a phase as a whole
            return Expected(_TAG + tag, full, [])
        return Expected(_TAG + tag, full, self._post(self._roster.group.recv, _TAG + tag, full))

    def exchange(self, expected: Expected, sent: Sequence[Letter]) -> None:
        """Send one phase and wait until all of it has come and gone; what is empty does not travel.

        Raises:
            PeerLost: a message failed, or the deadline passed.
        """
        full = [letter for letter in sent if letter[1].numel()]
        if any(rows.device.type != "cpu" for _, rows in (*full, *expected.letters)):
            self._at_once(expected, full)
            return
        posts = expected.posts + self._post(self._roster.group.send, expected.tag, full)
        for member, work in posts:
            try:
                work.wait(self._left())
            except RuntimeError as error:
                raise self._lost(member, error, silent=_silent(error)) from None

    def collective(self, order: Order) -> bool:
        """Let gloo's own all-to-all carry everything; False where it cannot: other devices, another order of ranks.

        Raises:
            PeerLost: it failed, or the deadline passed.
        """
        roster = self._roster
        if order.input.device.type != "cpu" or roster.numbers != tuple(range(roster.world)):
            return False
        splits = ([n * order.row_bytes for n in rows] for rows in (order.expected, order.sent))
        try:
            work = dist.all_to_all_single(order.output, order.input, *splits, group=roster.group, async_op=True)
            work.wait(self._left())
        except RuntimeError as error:
            silent = _silent(error)
            member = self._not_late() if silent else self._closed()
            raise self._lost(member, error, silent=silent) from None
        return True

    def _post(self, call: Callable[..., Any], tag: int, letters: list[Letter]) -> list[tuple[int, Any]]:
        posts = []
        for member, rows in letters:
            try:
                posts.append((member, call([rows], self._roster.numbers[member], tag)))
            except RuntimeError as error:
                raise self._lost(member, error, silent=_silent(error)) from None
        return posts

    def _at_once(self, expected: Expected, sent: list[Letter]) -> None:
        """NCCL: as one batch, or two ranks that begin with a send would wait for each other."""
        roster = self._roster
        ops = [
            dist.P2POp(call, rows, group=roster.group, tag=expected.tag, group_peer=roster.numbers[member])
            for call, letters in ((dist.irecv, expected.letters), (dist.isend, sent))
            for member, rows in letters
        ]
        try:
            for work in dist.batch_isend_irecv(ops):
                work.wait(self._left())
        except RuntimeError as error:
            other = roster.rank((expected.letters + sent)[0][0])
            _LOST[roster.group] = other, f"one of {len(ops)} messages failed: {error}"
            raise self._error(*_LOST[roster.group]) from None

    def _left(self) -> timedelta:
        return timedelta(seconds=max(self._at.deadline - time.monotonic(), _LEAST_S))

    def _closed(self) -> int:
        """A member whose connection is closed: gloo refuses to receive from it."""
        others = self._others()
        for member in others:
            try:
                self._roster.group.recv([torch.empty(1, dtype=torch.uint8)], self._roster.numbers[member], _PROBE_TAG)
            except RuntimeError:
                return member
        return others[0]

    def _not_late(self) -> int:
        """The first member that does not say, as all who have waited in vain do, that it has waited in vain."""
        others, board, late = self._others(), self._board(), set()
        keys = {f"late/{member}": member for member in others}
        try:
            board.put(f"late/{self._roster.me}", True)
            late = {keys[key] for key in board.wait(keys, time.monotonic() + _LATE_S)}
        except StoreGone:
            pass
        return next((member for member in others if member not in late), others[0])

    def _others(self) -> list[int]:
        return [member for member in range(self._roster.world) if member != self._roster.me]

    def _board(self) -> Board:
        return Board(default_store(), f"janus/all_to_all/{self._roster.group.group_name}", call_s=_BLAME_CALL_S)

    def _lost(self, member: int, error: RuntimeError, *, silent: bool) -> PeerLost:
        """Break the group's connections, so that the others hear of it, and find out who was really lost."""
        roster = self._roster
        watch: Any = Watch(self._board(), roster.group, roster.globals, roster.rank(roster.me))
        why = "no answer before the deadline" if silent else f"connection failed: {error}"
        lost = watch.lost(roster.rank(member), self._at.phase, self._at.layer, why, silent=silent)
        _LOST[roster.group] = lost.peer, lost.detail
        return lost

    def _error(self, peer: int, why: str) -> PeerLost:
        return PeerLost(self._at.phase, self._at.layer, self._roster.rank(self._roster.me), peer, why)


def _silent(error: RuntimeError) -> bool:
    """Whether gloo, or torch, gave up waiting, rather than seeing a connection close."""
    return "timed out" in str(error).lower()
