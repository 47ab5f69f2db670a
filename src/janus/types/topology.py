"""Which global rank plays which role, on which node."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from janus.errors import JanusError

Role = Literal["attention", "expert", "idle"]
Nodes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Topology:
    """Two pools of global ranks, one tuple per node; attention and experts never share a rank.

    Nodes are numbered attention first, then experts, in the order given. A node is what its ranks reach over the
    fast link; `hosts` groups nodes that sit in one box, so that both pools may share it.

    Args:
        attention: ranks of the attention instances, one tuple per node.
        experts: ranks of the expert instances, one tuple per node; instance g is position g in the flattened tuple.
        hosts: node numbers that share a box, e.g. ``((0, 1),)``; nodes not named stand alone.

    Raises:
        JanusError: ``topology.empty``, ``topology.rank``, ``topology.overlap``, ``topology.hosts``, ``topology.parse``.

    Example:
        >>> t = Topology(attention=((0, 1), (2,)), experts=((3, 4),))
        >>> t.n_attention, t.n_experts, t.world_size, t.role(3), t.node(2), t.instance(4)
        (3, 2, 5, 'expert', 1, 1)
        >>> str(t)
        '3A2E'
    """

    attention: Nodes
    experts: Nodes
    hosts: Nodes = ()

    def __post_init__(self) -> None:
        for pool in ("attention", "experts", "hosts"):
            object.__setattr__(self, pool, _nodes(getattr(self, pool), pool))
        for pool in ("attention", "experts"):
            if not getattr(self, pool):
                raise JanusError(
                    "topology.empty", f"{pool} must hold at least one node, got (); give e.g. {pool}=((0,),)"
                )
        _check_distinct(self.attention_ranks + self.expert_ranks)
        _check_hosts(self.hosts, len(self.nodes))

    @classmethod
    def parse(cls, text: str, *, gpus_per_node: int = 8) -> Topology:
        """Read ``"2A4E"``: 2 attention and 4 expert instances, the nodes of one pool filled before the next.

        Example:
            >>> Topology.parse("2A3E", gpus_per_node=2)
            Topology(attention=((0, 1),), experts=((2, 3), (4,)), hosts=())
        """
        match = re.fullmatch(r"\s*(\d+)A(\d+)E\s*", text, flags=re.IGNORECASE) if isinstance(text, str) else None
        if match is None or not int(match[1]) or not int(match[2]):
            raise JanusError("topology.parse", f"a topology reads like '2A4E' with both numbers >= 1, got {text!r}")
        if not isinstance(gpus_per_node, int) or gpus_per_node < 1:
            raise JanusError("topology.parse", f"gpus_per_node must be an integer >= 1, got {gpus_per_node!r}")
        n_a, n_e = int(match[1]), int(match[2])
        return cls(_fill(0, n_a, gpus_per_node), _fill(n_a, n_e, gpus_per_node))

    @cached_property
    def attention_ranks(self) -> tuple[int, ...]:
        """Global ranks of the attention instances, in order."""
        return tuple(rank for node in self.attention for rank in node)

    @cached_property
    def expert_ranks(self) -> tuple[int, ...]:
        """Global ranks of the expert instances; position = instance number."""
        return tuple(rank for node in self.experts for rank in node)

    @property
    def nodes(self) -> Nodes:
        """All nodes, attention first."""
        return self.attention + self.experts

    @property
    def n_attention(self) -> int:
        """Number of attention instances, n_a."""
        return len(self.attention_ranks)

    @property
    def n_experts(self) -> int:
        """Number of expert instances, n_e = G."""
        return len(self.expert_ranks)

    @cached_property
    def world_size(self) -> int:
        """Smallest world that holds every rank named: the largest rank + 1; ranks not named are idle."""
        return max(self.attention_ranks + self.expert_ranks) + 1

    def role(self, rank: int) -> Role:
        """``"attention"``, ``"expert"``, or ``"idle"`` for a rank of the world that neither pool names."""
        if rank in self.attention_ranks:
            return "attention"
        return "expert" if rank in self.expert_ranks else "idle"

    def node(self, rank: int) -> int:
        """Number of the node that holds `rank` (attention nodes first)."""
        for number, ranks in enumerate(self.nodes):
            if rank in ranks:
                return number
        raise JanusError("topology.rank", f"rank {rank} is in neither pool of {self!r}")

    def host(self, rank: int) -> int:
        """Number of the box that holds `rank`: the smallest node number among the nodes that share it."""
        number = self.node(rank)
        return next((min(group) for group in self.hosts if number in group), number)

    def instance(self, rank: int) -> int:
        """Position of `rank` within its pool: the expert instance g, or the attention instance."""
        for pool in (self.attention_ranks, self.expert_ranks):
            if rank in pool:
                return pool.index(rank)
        raise JanusError("topology.rank", f"rank {rank} is in neither pool of {self!r}")

    def to_dict(self) -> dict[str, list[list[int]]]:
        """Plain lists, for JSON; `Topology(**d)` reads them back."""
        return {name: [list(node) for node in getattr(self, name)] for name in ("attention", "experts", "hosts")}

    def __str__(self) -> str:
        return f"{self.n_attention}A{self.n_experts}E"


def _fill(first: int, count: int, gpus_per_node: int) -> Nodes:
    ranks = range(first, first + count)
    return tuple(tuple(ranks[i : i + gpus_per_node]) for i in range(0, count, gpus_per_node))


def _nodes(value: Sequence[Sequence[int]], pool: str) -> Nodes:
    try:
        nodes = tuple(tuple(node) for node in value)
    except TypeError:
        raise JanusError(
            "topology.rank", f"{pool} must be a tuple of tuples of ranks, one per node, got {value!r}"
        ) from None
    for rank in (rank for node in nodes for rank in node):
        if isinstance(rank, bool) or not hasattr(rank, "__index__") or int(rank) < 0:
            raise JanusError("topology.rank", f"{pool} must name ranks >= 0 as integers, got {rank!r} in {value!r}")
    if any(not node for node in nodes):
        raise JanusError("topology.empty", f"{pool} holds a node without ranks: {value!r}; leave the empty node out")
    return tuple(tuple(int(rank) for rank in node) for node in nodes)


def _check_distinct(ranks: tuple[int, ...]) -> None:
    twice = sorted({rank for rank in ranks if ranks.count(rank) > 1})
    if twice:
        raise JanusError("topology.overlap", f"a rank plays one role once, but ranks {twice} are named more than once")


def _check_hosts(hosts: Nodes, n_nodes: int) -> None:
    named = [number for group in hosts for number in group]
    if len(set(named)) != len(named) or any(number >= n_nodes for number in named):
        raise JanusError(
            "topology.hosts", f"hosts must name each of the nodes 0..{n_nodes - 1} at most once, got {hosts!r}"
        )
