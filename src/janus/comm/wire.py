"""Bytes between ranks: posts that return at once, waits that end at a deadline, traffic counted where it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from janus.comm.layout import same_box
from janus.comm.terms import LinkTraffic
from janus.comm.watch import Watch, is_deadline
from janus.types import Topology

_LEAST_S = 0.001  # gloo reads 0 as "no deadline"


@dataclass(frozen=True)
class At:
    """Where in the protocol a wait happens, and until when it may last (`time.monotonic`)."""

    phase: str
    layer: int
    deadline: float

    @classmethod
    def within(cls, phase: str, layer: int, seconds: float) -> At:
        """From now on, for `seconds`."""
        return cls(phase, layer, time.monotonic() + seconds)


@dataclass(frozen=True)
class Post:
    """One message under way; `buffer` stays alive until it is done."""

    peer: int
    work: Any
    buffer: torch.Tensor


class Links:
    """Numbers of the peers in a process group over a topology, attention first, and the links to them.

    Args:
        topology: the ranks.
        rank: this process.
    """

    def __init__(self, topology: Topology, rank: int) -> None:
        members = topology.attention_ranks + topology.expert_ranks
        self.number = {member: i for i, member in enumerate(members)}
        self._near = {member: same_box(topology, rank, member) for member in members}

    def link(self, peer: int) -> str:
        """``"in_node"`` or ``"between_nodes"``."""
        return "in_node" if self._near[peer] else "between_nodes"


class Wire:
    """Point-to-point messages over one process group, addressed by global rank.

    Args:
        group: gloo process group over the ranks of `links`.
        links: numbers and links of the peers.
        watch: told of every failure; names the rank really lost.
    """

    batched = False  # messages go one by one, each as soon as it is posted

    def __init__(self, group: Any, links: Links, watch: Watch) -> None:
        self._group: Any = group
        self._watch, self._links, self._number = watch, links, links.number
        self._sends: dict[int, list[Post]] = {}
        self._counting = threading.Lock()  # the lanes send from threads of their own
        self._settling: dict[int, threading.Lock] = {}
        self.reset_traffic()

    def send(self, peer: int, rows: torch.Tensor, tag: int, at: At) -> None:
        """Post contiguous `rows`; they must not change until `settle`."""
        flat = flat_bytes(rows)
        link = self._links.link(peer)
        with self._counting:
            self.traffic[link] = self.traffic[link].plus(flat.numel())
        try:
            post = Post(peer, self._group.send([flat], self._number[peer], tag), flat)
        except RuntimeError as error:
            raise self._lost(peer, at, error) from None
        with self._counting:
            self._sends.setdefault(tag, []).append(post)

    def recv(self, peer: int, into: torch.Tensor, tag: int, at: At) -> Post:
        """Post contiguous `into`; a message may be shorter than it."""
        flat = flat_bytes(into)
        try:
            return Post(peer, self._group.recv([flat], self._number[peer], tag), flat)
        except RuntimeError as error:
            raise self._lost(peer, at, error) from None

    def wait(self, posts: Iterable[Post], at: At) -> None:
        """Wait for all of `posts` until the deadline of `at`.

        Raises:
            PeerLost: one of them failed or the deadline passed.
        """
        for post in posts:
            left = max(at.deadline - time.monotonic(), _LEAST_S)
            try:
                post.work.wait(timedelta(seconds=left))
            except RuntimeError as error:
                raise self._lost(post.peer, at, error) from None

    def settle(self, at: At, *tags: int) -> None:
        """Wait until everything sent, or sent with one of `tags`, has left its buffers."""
        for tag in tags or tuple(self._sends):
            with self._counting:
                alone = self._settling.setdefault(tag, threading.Lock())
            with alone:  # who comes while another thread waits for these posts must not go on before they are gone
                with self._counting:
                    posts = self._sends.pop(tag, ())
                self.wait(posts, at)

    def reset_traffic(self) -> None:
        """Count from zero again."""
        self.traffic = {"in_node": LinkTraffic(), "between_nodes": LinkTraffic()}

    def drop(self) -> None:
        """Let go of the group and of all buffers."""
        self._sends, self._group = {}, None

    def _lost(self, peer: int, at: At, error: RuntimeError) -> Exception:
        silent = is_deadline(error)
        why = "no answer before the deadline" if silent else "connection closed"
        return self._watch.lost(peer, at.phase, at.layer, why, silent=silent)


def flat_bytes(rows: torch.Tensor) -> torch.Tensor:
    """The bytes of contiguous `rows`, uint8 [n], without a copy."""
    return rows.detach().view(-1).view(torch.uint8)
