"""The life of one exchange on one rank: come up, agree on the contract, stay connected, leave."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from janus import __version__
from janus.comm import group
from janus.comm.carrier import Carrier, Opening
from janus.comm.contract import agree, collect
from janus.comm.layout import offsets
from janus.comm.store import Board, StoreGone
from janus.comm.stream import StreamWire
from janus.comm.terms import LinkTraffic, Timeouts
from janus.comm.watch import Watch
from janus.comm.wire import At, Links, Wire
from janus.errors import JanusError, PeerLost
from janus.types import Topology
from janus.types.topology import Role

_IDS_TAG = 20
_BLAME_CALL_S = 0.3  # a survivor must not wait long for a store that died with the rank it asks about


class Session:
    """Connections of one rank to all others of a topology; nothing but a role on an idle rank.

    Args:
        topology: the ranks.
        timeouts: bounds of every wait.
        terms: fields of the contract that the exchange itself compares.
        contract: fields of the caller's.
        carrier: of the rows.

    Raises:
        JanusError: ``comm.contract``, ``comm.rendezvous``, ``topology.world``.
        PeerLost: phase ``"rendezvous"``.
    """

    wire: Wire
    payload: Wire | StreamWire
    watch: Watch

    def __init__(
        self,
        topology: Topology,
        timeouts: Timeouts,
        terms: dict[str, Any],
        contract: dict[str, Any],
        carrier: Carrier,
    ) -> None:
        self.topology, self._timeouts, self.carrier = topology, timeouts, carrier
        fields = _fields(terms, contract)
        self.rank = group.rendezvous(topology, timeouts)
        self.role: Role = topology.role(self.rank)
        self.members = topology.attention_ranks + topology.expert_ranks
        self._rounds: dict[str, int] = {}
        self._closed = False
        store = group.default_store()
        # every rank counts the exchanges it opens, idle ones too, so that the n-th of each meet
        number = _reach(lambda: Board(store, "janus/opened").count(str(self.rank)), self.rank)
        self._board = Board(store, f"janus/{number}")
        if self.role != "idle":
            self._connect(store, fields)

    def _connect(self, store: Any, fields: dict[str, Any]) -> None:
        deadline = time.monotonic() + self._timeouts.rendezvous_s
        agree(self._board, fields, self.members, self.rank, self._timeouts.rendezvous_s)
        self._group: Any = group.connect(store, self._board.prefix, self.members, self.rank, deadline)
        notes = Board(store, self._board.prefix, call_s=_BLAME_CALL_S)
        self.watch = Watch(notes, self._group, self.members, self.rank)
        self.watch.start()
        links = Links(self.topology, self.rank)
        self.wire = Wire(self._group, links, self.watch)
        place = Opening(store, self._board.prefix, links.number[self.rank], len(self.members), deadline)
        self.payload = self.carrier.wire(self.wire, self.watch, links, place)
        atexit.register(self.watch.abandon)

    @property
    def usable(self) -> bool:
        """Whether messages can be sent: connected, not closed, nobody lost."""
        return self.role != "idle" and not self._closed and not self.watch.broken

    def check_usable(self, phase: str) -> None:
        """Refuse a call after `close`; raise the loss again after a loss."""
        if self._closed:
            raise JanusError("comm.closed", f"{phase} after close(); make a new Exchange")
        if self.watch.broken:
            raise self.watch.again(phase)

    def gather(self, ids: torch.Tensor, counts: tuple[int, ...], at: At) -> tuple[torch.Tensor, int]:
        """All-gather integer rows among the attention ranks."""
        starts, mine = offsets(counts), self.topology.instance(self.rank)
        wire_ids = ids.detach().to(torch.int32, copy=True).contiguous()  # the caller may change its own at once
        everything = torch.empty(starts[-1], ids.shape[1], dtype=torch.int32, device=ids.device)
        everything[starts[mine] : starts[mine + 1]] = wire_ids
        posts = []
        for a, peer in enumerate(self.topology.attention_ranks):
            if a == mine:
                continue
            if counts[a]:
                posts.append(self.payload.recv(peer, everything[starts[a] : starts[a + 1]], _IDS_TAG, at))
            if counts[mine]:
                self.payload.send(peer, wire_ids, _IDS_TAG, at)
        self.payload.wait(posts, at)
        return everything.to(ids.dtype), starts[mine]

    def share(
        self, name: str, value: Any, ranks: tuple[int, ...] | None, timeout_s: float | None = None
    ) -> dict[int, Any]:
        """All-gather JSON through the store."""
        if self.role == "idle":
            raise JanusError("comm.role", f"rank {self.rank} is idle in topology {self.topology}; it shares nothing")
        members = tuple(sorted(self.members if ranks is None else ranks))
        if self.rank not in members or not set(members) <= set(self.members):
            raise JanusError(
                "comm.share",
                f"ranks must be of the topology ({sorted(self.members)}) and hold {self.rank}; got {ranks}",
            )
        if self._closed:
            raise JanusError("comm.closed", "share after close(); make a new Exchange")
        _json(value, f"share({name!r})", "comm.share")
        scope = f"share/{name}/{'.'.join(map(str, members))}"
        self._rounds[scope] = self._rounds.get(scope, 0) + 1
        deadline = time.monotonic() + (timeout_s or self._timeouts.rendezvous_s)
        key = f"{scope}/{self._rounds[scope]}"
        gone = functools.partial(self._who_is_gone, key, members)
        try:
            return collect(self._board, key, value, members, self.rank, deadline, lambda: gone() is not None)
        except PeerLost as error:
            raise gone() or error from None

    def _who_is_gone(self, key: str, members: tuple[int, ...]) -> PeerLost | None:
        """The loss that keeps `share` from ending: somebody died, or closed without having pinned a value."""
        if self.watch.broken:
            return self.watch.again("rendezvous")
        with contextlib.suppress(StoreGone):
            said = self._board.read(f"{key}/{member}" for member in members)
            silent = [member for member in members if f"{key}/{member}" not in said]
            for member in filter(self.watch.left, silent):
                return PeerLost("rendezvous", -1, self.rank, member, "it has closed its exchange")
        return None

    def traffic(self) -> dict[str, LinkTraffic]:
        """A copy of what this rank has sent."""
        if self.role == "idle":
            return {}
        if self.payload is self.wire:
            return dict(self.wire.traffic)
        both = ((link, self.wire.traffic[link], found) for link, found in self.payload.traffic.items())
        return {link: LinkTraffic(a.messages + b.messages, a.bytes + b.bytes) for link, a, b in both}

    def reset_traffic(self) -> None:
        """Count from zero again."""
        if self.role != "idle":
            self.wire.reset_traffic()
            self.payload.reset_traffic()

    def say_goodbye(self, speak: Callable[[At], Any]) -> None:
        """Run `speak` and wait for it, within `close_s`; from here on a closed connection accuses nobody."""
        self.watch.leaving = True
        at = At.within("close", -1, self._timeouts.close_s)
        with contextlib.suppress(PeerLost, JanusError):
            speak(at)
            self.wire.settle(at)

    def close(self) -> None:
        """Drop every connection and thread; may be called again."""
        if self._closed or self.role == "idle":
            return
        self._closed = True
        atexit.unregister(self.watch.abandon)
        self.watch.stop(self._timeouts.close_s)
        self.payload.drop()
        self.wire.drop()
        self._group = None


def _fields(terms: dict[str, Any], contract: dict[str, Any]) -> dict[str, Any]:
    own = {**terms, "version": __version__}  # ranks of two versions may differ in what they send
    clash = sorted(set(own) & set(contract))
    if clash:
        raise JanusError(
            "comm.contract", f"contract must not repeat the exchange's own fields, got {clash}; rename them"
        )
    _json(contract, "contract", "comm.contract")
    return {**own, **contract}


def _json(value: Any, what: str, code: str) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise JanusError(code, f"{what} must be plain JSON (numbers, strings, lists, dicts): {error}") from None


def _reach(call: Callable[[], Any], rank: int) -> Any:
    try:
        return call()
    except StoreGone as error:
        raise PeerLost("rendezvous", -1, rank, 0, str(error)) from None
