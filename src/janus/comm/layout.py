"""Pure integers: whose rows travel over which hop. Nothing here knows about tensors, sockets or time.

A regime is a function `phases(topology)` that lists the *hops* of a dispatch, phase by phase; a phase starts on a
rank when its previous one has ended there. The combine walks the same hops backwards: what came over a hop as rows
goes home over it as partial sums. So a regime is written once, and the executor, the cost model, `explain` and the
tests all read the same list.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from janus.errors import known
from janus.types import Topology

REGIMES = ("direct", "gather")


@dataclass(frozen=True)
class Hop:
    """One message of a dispatch: rows of some attention instances, for some expert instances.

    `src == dst` is a rank that hands rows to itself: nothing goes on the wire, the bookkeeping stays the same.

    Args:
        src: global rank that sends.
        dst: global rank that receives.
        sources: attention instances whose rows travel; consecutive.
        targets: expert instances the rows are for; ascending.
    """

    src: int
    dst: int
    sources: tuple[int, ...]
    targets: tuple[int, ...]

    def rows(self, counts: Sequence[int]) -> int:
        """How many rows travel when every expert instance gets every row."""
        return sum(counts[s] for s in self.sources)


Phases = tuple[tuple[Hop, ...], ...]
Part = tuple[int, ...]


@lru_cache(maxsize=64)
def phases(regime: str, topology: Topology) -> Phases:
    """The hops of a dispatch under `regime`, phase by phase.

    Raises:
        JanusError: ``comm.regime`` for a name that is not in `REGIMES`.

    Example:
        >>> phases("direct", Topology(attention=((0,),), experts=((1,),)))
        ((Hop(src=0, dst=1, sources=(0,), targets=(0,)),),)
    """
    known(regime, REGIMES, "regime", "comm.regime")
    return importlib.import_module(f"janus.comm.{regime}").phases(topology)


def offsets(counts: Iterable[int]) -> list[int]:
    """First row of each instance, and the total at the end.

    Example:
        >>> offsets([3, 0, 2])
        [0, 3, 3, 5]
    """
    return [0, *accumulate(counts)]


@lru_cache(maxsize=64)
def attention_nodes(topology: Topology) -> tuple[Part, ...]:
    """Attention instances, one tuple per attention node; consecutive by construction."""
    return _instances(topology.attention)


@lru_cache(maxsize=64)
def expert_nodes(topology: Topology) -> tuple[Part, ...]:
    """Expert instances, one tuple per expert node; consecutive by construction.

    Example:
        >>> expert_nodes(Topology(attention=((0,),), experts=((1, 2), (3,))))
        ((0, 1), (2,))
    """
    return _instances(topology.experts)


@lru_cache(maxsize=4096)
def parts(targets: Part, topology: Topology) -> tuple[Part, ...]:
    """The sums that go home over a hop to `targets`: one per expert node held whole, else one per instance.

    Example:
        >>> t = Topology(attention=((0,),), experts=((1, 2), (3,)))
        >>> parts((0, 1, 2), t), parts((1,), t)
        (((0, 1), (2,)), ((1,),))
    """
    found: list[Part] = []
    for node in expert_nodes(topology):
        inside = tuple(g for g in node if g in targets)
        found += [inside] if inside == node else [(g,) for g in inside]
    return tuple(found)


def same_box(topology: Topology, a: int, b: int) -> bool:
    """Whether the ranks `a` and `b` reach each other over an in-node link."""
    return topology.host(a) == topology.host(b)


def _instances(nodes: Sequence[Sequence[int]]) -> tuple[Part, ...]:
    starts = offsets(len(node) for node in nodes)
    return tuple(tuple(range(starts[i], starts[i + 1])) for i in range(len(nodes)))


@dataclass(frozen=True)
class Stop:
    """What one rank does in one phase: the hops it sends and the hops that reach it, local ones in both."""

    sent: tuple[Hop, ...]
    arriving: tuple[Hop, ...]


@lru_cache(maxsize=256)
def stops(regime: str, topology: Topology, rank: int) -> tuple[Stop, ...]:
    """The phases as `rank` sees them; sent hops in order of targets, arriving hops in order of sources.

    Example:
        >>> t = Topology(attention=((0,),), experts=((1,), (2,)))
        >>> [(len(s.sent), len(s.arriving)) for s in stops("direct", t, 0)]
        [(2, 0)]
    """
    return tuple(
        Stop(
            tuple(sorted((h for h in phase if h.src == rank), key=lambda h: (h.targets, h.sources))),
            tuple(sorted((h for h in phase if h.dst == rank), key=lambda h: h.sources)),
        )
        for phase in phases(regime, topology)
    )
