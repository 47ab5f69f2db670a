"""Pure integers: whose rows travel over which hop, and when. Nothing here knows about tensors, sockets or time.

A regime is a function `phases(topology, depth)` that lists the *hops* of a dispatch, phase by phase. A hop carries rows
that its sender has at home or has got in an earlier phase. The combine walks the same hops backwards: what came over
a hop as rows goes home over it as partial sums. So a regime is written once, and the executor, the cost model,
`explain` and the tests all read the same list.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from janus.errors import known
from janus.types import Topology

REGIMES = ("direct", "gather", "spread", "relay")
PIPELINED = ("spread", "relay")  # these cut the rows of a rank into pieces, so that their phases overlap
DEPTHS = (1, 2, 4, 8)
MOST_PIECES = 16  # of a rank's rows: more messages cost more than a finer pipeline saves


class Route(NamedTuple):
    """How the rows of one step travel: the regime, and how many turns of pieces follow one another in it."""

    regime: str
    depth: int = 1

    def __str__(self) -> str:
        return f"{self.regime} x{self.depth}" if self.depth > 1 else self.regime


ROUTES = (
    Route("direct"),
    Route("gather"),
    *(Route("spread", depth) for depth in DEPTHS[:3]),  # what is piped inside a node is quick
    *(Route("relay", depth) for depth in DEPTHS),
)

Part = tuple[int, ...]


@dataclass(frozen=True)
class Hop:
    """One message of a dispatch: rows of some attention instances, for some expert instances.

    Args:
        src: global rank that sends.
        dst: global rank that receives.
        sources: attention instances whose rows travel; consecutive.
        targets: expert instances the rows are for; ascending.
        piece: which part of those rows travels, counted from 0.
        pieces: into how many parts, as even as whole numbers allow, the rows are cut.

    Example:
        >>> hop = Hop(0, 2, sources=(0, 1), targets=(0,), piece=1, pieces=2)
        >>> hop.rows((3, 2)), hop.span(offsets((3, 2)))
        (3, slice(2, 5, None))
    """

    src: int
    dst: int
    sources: Part
    targets: Part
    piece: int = 0
    pieces: int = 1

    def rows(self, counts: Sequence[int]) -> int:
        """How many rows travel when every expert instance gets every row."""
        own = self.cut(sum(counts[s] for s in self.sources))
        return own.stop - own.start

    def span(self, starts: Sequence[int]) -> slice:
        """Where these rows stand among the rows of all instances; `starts` from `offsets`."""
        first = starts[self.sources[0]]
        own = self.cut(starts[self.sources[-1] + 1] - first)
        return slice(first + own.start, first + own.stop)

    def cut(self, n: int) -> slice:
        """The piece of `n` rows."""
        return slice(n * self.piece // self.pieces, n * (self.piece + 1) // self.pieces)


Phases = tuple[tuple[Hop, ...], ...]


@lru_cache(maxsize=256)
def phases(route: Route, topology: Topology) -> Phases:
    """The hops of a dispatch under `route`, phase by phase.

    Raises:
        JanusError: ``comm.regime`` for a name that is not in `REGIMES`.

    Example:
        >>> phases(Route("direct"), Topology(attention=((0,),), experts=((1,),)))
        ((Hop(src=0, dst=1, sources=(0,), targets=(0,), piece=0, pieces=1),),)
    """
    known(route.regime, REGIMES, "regime", "comm.regime")
    return importlib.import_module(f"janus.comm.{route.regime}").phases(topology, route.depth)


@lru_cache(maxsize=64)
def candidates(regime: str, topology: Topology) -> tuple[Route, ...]:
    """The routes that `regime` (or ``"auto"``) may take, the plainest first; those that repeat another are left out.

    Relaying among expert nodes saves bytes only where they outnumber the attention nodes.

    Example:
        >>> candidates("auto", Topology.parse("1A1E"))
        (Route(regime='direct', depth=1),)
    """
    nodes = len(topology.experts)
    found = [route for route in ROUTES if regime in ("auto", route.regime)]
    found = [r for r in found if r.regime != "relay" or r.depth == 1 or r.depth * nodes <= MOST_PIECES]
    if regime != "auto":
        return tuple(found)
    flat = all(len(node) == 1 for node in topology.nodes)
    wide = nodes > len(topology.attention)
    keep = {"direct"} | (set() if flat else {"gather", "spread"}) | ({"relay"} if wide else set())
    return tuple(route for route in found if route.regime in keep)


@lru_cache(maxsize=64)
def possible(topology: Topology) -> tuple[Route, ...]:
    """The routes of all regimes, those included that ``"auto"`` leaves out.

    Example:
        >>> len(possible(Topology.parse("1A1E")))
        9
    """
    return tuple(route for regime in REGIMES for route in candidates(regime, topology))


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
    """The sums that go home over a hop to `targets`: one of everything, or one per expert node held whole, or singles.

    Example:
        >>> t = Topology(attention=((0,),), experts=((1, 2), (3,)))
        >>> parts((0, 1, 2), t), parts((0, 1), t), parts((1,), t)
        (((0, 1, 2),), ((0, 1),), ((1,),))
    """
    if len(targets) == topology.n_experts:
        return (targets,)
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
class Leg:
    """A hop that a rank sends, with the numbers of the arrivals whose rows it carries, in order of rows."""

    hop: Hop
    feeds: tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """What one rank does in one phase: the legs it sends, and the numbers of the arrivals that come in."""

    sent: tuple[Leg, ...]
    arriving: tuple[int, ...]


@dataclass(frozen=True)
class Itinerary:
    """A dispatch as one rank sees it.

    Args:
        topology: the two pools.
        rank: this rank.
        arrivals: the hops that reach it, in order of rounds; on an attention rank the first stands for its own rows.
        rounds: one per phase.
        landed: on an expert rank the arrivals that are for it, in order of rows.
    """

    topology: Topology
    rank: int
    arrivals: tuple[Hop, ...]
    rounds: tuple[Round, ...]
    landed: tuple[int, ...]


@lru_cache(maxsize=256)
def itinerary(route: Route, topology: Topology, rank: int) -> Itinerary:
    """The phases as `rank` sees them; sent hops in order of pieces and targets, arriving ones of pieces and sources.

    Example:
        >>> t = Topology(attention=((0,),), experts=((1,), (2,)))
        >>> trip = itinerary(Route("direct"), t, 0)
        >>> [(leg.hop.dst, leg.feeds) for leg in trip.rounds[0].sent]
        [(1, (0,)), (2, (0,))]
    """
    everyone = tuple(range(topology.n_experts))
    own = topology.instance(rank)
    attention = topology.role(rank) == "attention"
    arrivals = [Hop(rank, rank, (own,), everyone)] if attention else []
    rounds = []
    for phase in phases(route, topology):
        sent = sorted((h for h in phase if h.src == rank), key=lambda h: (h.piece, h.targets, h.sources))
        legs = tuple(Leg(hop, _feeders(hop, arrivals)) for hop in sent)
        coming = sorted((h for h in phase if h.dst == rank), key=lambda h: (h.piece, h.sources))
        rounds.append(Round(legs, tuple(range(len(arrivals), len(arrivals) + len(coming)))))
        arrivals += coming
    mine = () if attention else (i for i, hop in enumerate(arrivals) if own in hop.targets)
    landed = sorted(mine, key=lambda i: (arrivals[i].sources, arrivals[i].piece))
    return Itinerary(topology, rank, tuple(arrivals), tuple(rounds), tuple(landed))


def _feeders(hop: Hop, arrivals: Sequence[Hop]) -> tuple[int, ...]:
    """The arrivals that `hop` takes rows from: its own piece, or the whole of its sources."""
    found = [
        i
        for i, a in enumerate(arrivals)
        if set(a.sources) <= set(hop.sources)
        and set(hop.targets) <= set(a.targets)
        and (a.pieces == 1 or (a.piece, a.pieces) == (hop.piece, hop.pieces))
    ]
    return tuple(sorted(found, key=lambda i: arrivals[i].sources))
