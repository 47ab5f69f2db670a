"""Messages among the members of a roster: all of a phase at once, until a deadline; a loss is named."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from janus.comm.group import default_store
from janus.comm.roster import Roster, dist
from janus.comm.store import Board
from janus.comm.watch import Watch, is_deadline
from janus.comm.wire import At
from janus.errors import PeerLost

_LEAST_S = 0.001  # gloo reads 0 as "no deadline"
_BLAME_CALL_S = 0.7  # a survivor must not wait long for a store that died with the rank it asks about
_TAG = 0x6A610000  # far from the tags of a user's own messages in the group

Letter = tuple[int, torch.Tensor]  # the other member, contiguous bytes


class Mail:
    """Point-to-point messages in the group of `roster`, for one call.

    Args:
        roster: who takes part.
        at: phase and deadline of the call.
    """

    def __init__(self, roster: Roster, at: At) -> None:
        self._roster, self._at = roster, at

    def exchange(self, tag: int, sent: Sequence[Letter], coming: Sequence[Letter]) -> None:
        """Send and receive all of these and wait for them; what is empty does not travel.

        Raises:
            PeerLost: one of them failed, or the deadline passed.
        """
        # what comes in first: then nothing that is sent waits for a place to go
        letters = [(False, *letter) for letter in coming] + [(True, *letter) for letter in sent]
        letters = [letter for letter in letters if letter[2].numel()]
        if not letters:
            return
        if letters[0][2].device.type == "cpu":
            self._by_one(_TAG + tag, letters)
        else:
            self._at_once(_TAG + tag, letters)

    def _by_one(self, tag: int, letters: list[tuple[bool, int, torch.Tensor]]) -> None:
        group, numbers, posts = self._roster.group, self._roster.numbers, []
        member = -1
        try:
            for going, member, rows in letters:
                call = group.send if going else group.recv
                posts.append((member, call([rows], numbers[member], tag)))
            for waited, work in posts:
                member = waited
                work.wait(timedelta(seconds=max(self._at.deadline - time.monotonic(), _LEAST_S)))
        except RuntimeError as error:
            raise self._lost(member, error) from None

    def _at_once(self, tag: int, letters: list[tuple[bool, int, torch.Tensor]]) -> None:
        """NCCL: as one batch, or two ranks that begin with a send would wait for each other."""
        group, numbers = self._roster.group, self._roster.numbers
        ops = [
            dist.P2POp(dist.isend if going else dist.irecv, rows, group=group, tag=tag, group_peer=numbers[member])
            for going, member, rows in letters
        ]
        try:
            for work in dist.batch_isend_irecv(ops):
                work.wait(timedelta(seconds=max(self._at.deadline - time.monotonic(), _LEAST_S)))
        except RuntimeError as error:
            me, first = (self._roster.rank(m) for m in (self._roster.me, letters[0][1]))
            raise PeerLost(self._at.phase, -1, me, first, f"of {len(ops)} messages one failed: {error}") from None

    def _lost(self, member: int, error: RuntimeError) -> PeerLost:
        """Break the group's connections, so that the others hear of it, and find out who was really lost."""
        roster, silent = self._roster, is_deadline(error)
        board = Board(default_store(), f"janus/all_to_all/{roster.group.group_name}", call_s=_BLAME_CALL_S)
        watch: Any = Watch(board, roster.group, roster.globals, roster.rank(roster.me))
        why = "no answer before the deadline" if silent else f"connection failed: {error}"
        return watch.lost(roster.rank(member), self._at.phase, self._at.layer, why, silent=silent)
