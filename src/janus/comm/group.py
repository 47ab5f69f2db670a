"""Coming up: find the other processes, compare what each was told, open the connections."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch.distributed

from janus.comm.store import Board, StoreGone
from janus.comm.terms import Timeouts
from janus.errors import JanusError, PeerLost
from janus.types import Topology

dist: Any = torch.distributed  # its type information leaves out the stores


def rendezvous(topology: Topology, timeouts: Timeouts | None = None) -> int:
    """Join the other processes and return this process's global rank; a second call returns at once.

    Reads ``JANUS_RENDEZVOUS=file:///path`` with ``RANK`` and ``WORLD_SIZE`` (set by `janus run`), else the
    variables of torchrun. Initialises `torch.distributed` with gloo unless the program has done so already.

    Args:
        topology: the world must hold every rank it names.
        timeouts: `rendezvous_s` bounds the wait for the other processes.

    Raises:
        JanusError: ``comm.rendezvous`` without the variables, ``topology.world`` for a world too small.
        PeerLost: phase ``"rendezvous"``; a process has not come up in time.
    """
    timeouts = timeouts or Timeouts()
    if not dist.is_initialized():
        rank, world = _number("RANK"), _number("WORLD_SIZE")
        _check_world(topology, world)
        _join(rank, world, timeouts.rendezvous_s)
    _check_world(topology, dist.get_world_size())
    return dist.get_rank()


def default_store() -> Any:
    """The store that all processes share; `rendezvous` must have run."""
    return dist.distributed_c10d._get_default_store()


def connect(store: Any, prefix: str, members: tuple[int, ...], rank: int, deadline: float) -> Any:
    """Open a gloo group of its own over `members`; returns once all of them have joined it.

    Raises:
        PeerLost: phase ``"rendezvous"``; names the first member that did not join.
    """
    board = Board(store, prefix)
    try:
        left = timedelta(seconds=max(deadline - time.monotonic(), 0.1))
        group = dist.ProcessGroupGloo(
            dist.PrefixStore(f"{prefix}/gloo", store), members.index(rank), len(members), left
        )
        board.put(f"joined/{rank}", True)
    except (RuntimeError, StoreGone) as error:
        missing = _missing(board, [f"joined/{m}" for m in members if m != rank], time.monotonic() + 0.5)
        peer = int(missing[0].split("/")[1]) if missing else members[0]
        raise PeerLost("rendezvous", -1, rank, peer, f"could not connect: {error}") from None
    # A rank that is connected may still be half connected in its peers' eyes: nobody goes on, or away, before all are.
    missing = _missing(board, [f"joined/{m}" for m in members], deadline)
    if missing:
        raise PeerLost("rendezvous", -1, rank, int(missing[0].split("/")[1]), "it has not connected in time")
    return group


def _join(rank: int, world: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    limit = timedelta(seconds=seconds)
    place = os.environ.get("JANUS_RENDEZVOUS", "")
    try:
        store = _file_store(place, world, limit) if place else _torchrun_store(rank, world, limit)
        board = Board(store, "janus/up")
        board.put(str(rank), True)
        missing = _missing(board, [str(r) for r in range(world)], deadline)
        if missing:
            raise PeerLost("rendezvous", -1, rank, int(missing[0]), f"it has not come up in {seconds:g} s")
        left = timedelta(seconds=max(deadline - time.monotonic(), 1.0))
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("torch", store), rank=rank, world_size=world, timeout=left
        )
    except (StoreGone, dist.DistError) as error:
        raise PeerLost("rendezvous", -1, rank, 0, str(error)) from None


def _file_store(place: str, world: int, limit: timedelta) -> Any:
    if not place.startswith("file:///"):
        raise JanusError("comm.rendezvous", f"JANUS_RENDEZVOUS must read file:///path, got {place!r}")
    store = dist.FileStore(place.removeprefix("file://"), world)
    store.set_timeout(limit)
    return store


def _torchrun_store(rank: int, world: int, limit: timedelta) -> Any:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise _unset(name)
    store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=limit))
    return store


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise _unset(name)
    return int(text)


def _unset(name: str) -> JanusError:
    return JanusError(
        "comm.rendezvous",
        f"the environment variable {name} is {os.environ.get(name)!r}; start the program with `janus run` or torchrun, "
        "which set it, or initialise torch.distributed before",
    )


def _check_world(topology: Topology, world: int) -> None:
    if world < topology.world_size:
        raise JanusError(
            "topology.world",
            f"topology {topology} names rank {topology.world_size - 1}, so the world must hold {topology.world_size} "
            f"processes, got {world}; start more, or make the topology smaller",
        )


def _missing(board: Board, keys: list[str], deadline: float) -> list[str]:
    try:
        found = board.wait(keys, deadline)
    except StoreGone:
        return keys
    return [key for key in keys if key not in found]
