"""Regime "gather" (Case 1): gather inside the attention node, cross once per node pair, spread inside the expert node.

For attention node p and expert node q one rank of p sends and one rank of q receives, chosen so that the transfers
of a node are spread over its ranks: position q (mod size of p) and position p (mod size of q). The combine sums
inside q at the receiver, crosses once, and the sender hands every rank of p its rows.
"""

from __future__ import annotations

from janus.comm.layout import Hop, Phases, attention_nodes, expert_nodes
from janus.types import Topology


def phases(topology: Topology, depth: int = 1) -> Phases:
    """Three phases: to the senders of the node, to the receivers of the expert nodes, to every other rank there.

    Example:
        >>> t = Topology(attention=((0, 1),), experts=((2, 3), (4, 5)))
        >>> [[(h.src, h.dst) for h in phase] for phase in phases(t)]
        [[(1, 0), (0, 1)], [(0, 2), (1, 4)], [(2, 3), (4, 5)]]
    """
    inner, cross, fan = [], [], []
    for p, sources in enumerate(attention_nodes(topology)):
        served: dict[int, list[int]] = {}  # sender -> expert instances it serves, nodes in order
        for q, targets in enumerate(expert_nodes(topology)):
            sender = topology.attention[p][q % len(sources)]
            receiver = topology.experts[q][p % len(targets)]
            served.setdefault(sender, []).extend(targets)
            cross.append(Hop(sender, receiver, sources, targets))
            fan += fan_out(topology, Hop(sender, receiver, sources, targets), targets)
        for sender, to in served.items():
            ranks = [(a, topology.attention_ranks[a]) for a in sources]
            inner += [Hop(rank, sender, (a,), tuple(to)) for a, rank in ranks if rank != sender]
    return tuple(inner), tuple(cross), tuple(fan)


def fan_out(topology: Topology, arrived: Hop, node: tuple[int, ...]) -> list[Hop]:
    """Hand what came over `arrived` to every other rank of the expert node `node` (expert instances)."""
    others = [(g, topology.expert_ranks[g]) for g in node]
    return [
        Hop(arrived.dst, rank, arrived.sources, (g,), arrived.piece, arrived.pieces)
        for g, rank in others
        if rank != arrived.dst
    ]
