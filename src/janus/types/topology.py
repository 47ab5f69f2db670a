"""Which global rank plays which role, on which node."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from janus.errors import JanusError, known
from janus.types.checks import integer, shown
from janus.types.files import read_json, reading, write_text

FORMAT = "janus.topology/1"
FIELDS = ("attention", "experts", "hosts")
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
        JanusError: ``topology.empty``, ``topology.rank``, ``topology.overlap``, ``topology.hosts``, ``topology.parse``,
            ``topology.file``.

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
        for pool in FIELDS:
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
        match = re.fullmatch(r"\s*([0-9]{1,5})[Aa]([0-9]{1,5})[Ee]\s*", text) if isinstance(text, str) else None
        if match is None or not int(match[1]) or not int(match[2]):
            rule = "a topology reads like '2A4E' with both numbers in 1..99999"
            raise JanusError("topology.parse", f"{rule}, got {shown(text)}")
        width = integer(gpus_per_node, "gpus_per_node", "topology.parse", low=1)
        n_a, n_e = int(match[1]), int(match[2])
        return cls(_fill(0, n_a, width), _fill(n_a, n_e, width))

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
        """``"attention"``, ``"expert"``, or ``"idle"`` for a rank that neither pool names (the world may be larger)."""
        rank = integer(rank, "rank", "topology.rank")
        if rank in self.attention_ranks:
            return "attention"
        return "expert" if rank in self.expert_ranks else "idle"

    def node(self, rank: int) -> int:
        """Number of the node that holds `rank` (attention nodes first)."""
        rank = integer(rank, "rank", "topology.rank")
        for number, ranks in enumerate(self.nodes):
            if rank in ranks:
                return number
        raise self._stranger(rank)

    def host(self, rank: int) -> int:
        """Number of the box that holds `rank`: the smallest node number among the nodes that share it."""
        number = self.node(rank)
        return next((min(group) for group in self.hosts if number in group), number)

    def instance(self, rank: int) -> int:
        """Position of `rank` within its pool: the expert instance g, or the attention instance."""
        rank = integer(rank, "rank", "topology.rank")
        for pool in (self.attention_ranks, self.expert_ranks):
            if rank in pool:
                return pool.index(rank)
        raise self._stranger(rank)

    def _stranger(self, rank: int) -> JanusError:
        pools = f"attention {shown(self.attention_ranks)}, experts {shown(self.expert_ranks)}"
        return JanusError("topology.rank", f"rank {rank} is in neither pool: {pools}")

    def to_dict(self) -> dict[str, list[list[int]]]:
        """Plain lists, for JSON; `Topology.from_dict` and `Topology(**d)` read them back."""
        return {name: [list(node) for node in getattr(self, name)] for name in FIELDS}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Topology:
        """Inverse of `to_dict`; unknown and missing fields are refused by name (``topology.file``)."""
        if not isinstance(data, dict) or not {"attention", "experts"} <= set(data):
            raise JanusError("topology.file", f"a topology holds attention and experts, got {shown(data)}")
        return cls(**{known(name, FIELDS, "a field of a topology", "topology.file"): data[name] for name in data})

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        write_text(path, "topology.file", json.dumps({"format": FORMAT, **self.to_dict()}))

    @classmethod
    def load(cls, path: str | Path) -> Topology:
        """Read what `save` wrote; whatever is wrong with the file is ``topology.file``."""
        data = read_json(path, "topology.file")
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise JanusError("topology.file", f"{path} is not a topology written by Topology.save")
        with reading(path, "topology.file"):
            return cls.from_dict(data)

    def __str__(self) -> str:
        return f"{self.n_attention}A{self.n_experts}E"


def _fill(first: int, count: int, gpus_per_node: int) -> Nodes:
    ranks = range(first, first + count)
    return tuple(tuple(ranks[i : i + gpus_per_node]) for i in range(0, count, gpus_per_node))


def _nodes(value: Sequence[Sequence[int]], pool: str) -> Nodes:
    rule = f"{pool} must be a tuple of tuples of numbers >= 0, one per node"
    if isinstance(value, (str, bytes, dict, set)):
        raise JanusError("topology.rank", f"{rule}, got {shown(value)}")
    try:
        nodes = tuple(tuple(node) for node in value)
    except Exception:  # not iterable, or a foreign __iter__
        raise JanusError("topology.rank", f"{rule}, got {shown(value)}") from None
    if any(not node for node in nodes):
        raise JanusError("topology.empty", f"{pool} holds a node without ranks: {shown(nodes)}; leave it out")
    what = f"every number in {pool} (one tuple per node)"
    return tuple(tuple(integer(rank, what, "topology.rank") for rank in node) for node in nodes)


def _check_distinct(ranks: tuple[int, ...]) -> None:
    twice = sorted(rank for rank, times in Counter(ranks).items() if times > 1)
    if twice:
        rule = "a rank plays one role once"
        raise JanusError("topology.overlap", f"{rule}, but ranks {shown(twice)} are named more than once")


def _check_hosts(hosts: Nodes, n_nodes: int) -> None:
    named = [number for group in hosts for number in group]
    if len(set(named)) != len(named) or any(number >= n_nodes for number in named):
        rule = f"hosts must name each of the nodes 0..{n_nodes - 1} at most once"
        raise JanusError("topology.hosts", f"{rule}, got {shown(hosts)}")
