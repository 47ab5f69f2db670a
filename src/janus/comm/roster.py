"""Who takes part in a collective of a process group, and who shares a node with whom."""

from __future__ import annotations

import hashlib
import os
import socket
import weakref
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch.distributed

from janus.errors import JanusError
from janus.types import Topology

dist: Any = torch.distributed  # its type information leaves out the process groups' methods

HOST_BYTES = 16
_BOXES: weakref.WeakKeyDictionary[Any, tuple[int, ...]] = weakref.WeakKeyDictionary()  # of each group, once agreed


@dataclass(frozen=True)
class Roster:
    """The members of a collective in the order of its splits.

    Args:
        group: a `torch.distributed` process group.
        numbers: of each member, its rank in the group.
        me: place of this process among the members.
        boxes: which node each member sits in; None until the hosts were compared.
    """

    group: Any
    numbers: tuple[int, ...]
    me: int
    boxes: tuple[int, ...] | None

    @property
    def world(self) -> int:
        """W, how many take part."""
        return len(self.numbers)

    @cached_property
    def globals(self) -> tuple[int, ...]:
        """Global rank of each rank of the group."""
        return tuple(dist.get_process_group_ranks(self.group))

    def rank(self, member: int) -> int:
        """Global rank of a member."""
        return self.globals[self.numbers[member]]

    def settled(self, hosts: list[bytes]) -> tuple[int, ...]:
        """The nodes, from what every member says its host is; kept as long as the group lives."""
        _BOXES[self.group] = tuple(hosts.index(host) for host in hosts)
        return _BOXES[self.group]


def roster_of(topology_or_group: Any) -> Roster:
    """The members that a topology, a group or None (the default group) names.

    Raises:
        JanusError: ``alltoall.group`` without a process group, or outside of it; ``alltoall.world`` when the topology's
            ranks are not those of the world.
    """
    if not dist.is_available() or not dist.is_initialized():
        remedy = "call torch.distributed.init_process_group or janus.comm.rendezvous first"
        raise JanusError("alltoall.group", f"there must be a process group, but none is initialised; {remedy}")
    if isinstance(topology_or_group, Topology):
        return _of_topology(topology_or_group)
    group = dist.group.WORLD if topology_or_group is None else topology_or_group
    if not isinstance(group, dist.ProcessGroup):
        rule = "topology_or_group must be a janus.Topology, a torch.distributed process group that this rank is in, or None"
        raise JanusError("alltoall.group", f"{rule}, got {group!r}")
    return Roster(group, tuple(range(group.size())), group.rank(), _BOXES.get(group))


def host_identity() -> bytes:
    """Sixteen bytes that are equal where two processes share machine, container and network."""
    parts = [socket.gethostname()]
    for read in (_boot_id, _network):
        try:
            parts.append(read())
        except OSError:  # no Linux, or hidden: the others decide
            parts.append("")
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=HOST_BYTES).digest()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _network() -> str:
    return os.readlink("/proc/self/ns/net")


def _of_topology(topology: Topology) -> Roster:
    members = topology.attention_ranks + topology.expert_ranks
    group = dist.group.WORLD
    if sorted(members) != list(range(group.size())):
        raise JanusError(
            "alltoall.world",
            f"both pools together must be the world of {group.size()} ranks, got {topology} with ranks "
            f"{sorted(members)}; name every rank once, or pass a process group",
        )
    return Roster(group, members, members.index(group.rank()), _hosts(topology))


@lru_cache(maxsize=64)
def _hosts(topology: Topology) -> tuple[int, ...]:
    return tuple(topology.host(rank) for rank in topology.attention_ranks + topology.expert_ranks)
