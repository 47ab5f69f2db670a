"""Regime "spread": every attention rank crosses once to each expert node, whose ranks spread the rows among them.

The bytes between nodes are those of "gather", without its gathering: every rank sends its own rows, so all ports of the
attention node carry alike, and the rows can be cut into pieces that are spread while the next ones cross. It costs one
message per rank and piece where "gather" sends one per node. The combine sums inside the expert node at the receiver
and goes straight home.
"""

from __future__ import annotations

from janus.comm.gather import fan_out
from janus.comm.layout import Hop, Phases, expert_nodes
from janus.types import Topology


def phases(topology: Topology, depth: int = 1) -> Phases:
    """``depth + 1`` phases: piece t crosses in phase t and is spread in phase t + 1.

    Example:
        >>> t = Topology(attention=((0, 1),), experts=((2, 3),))
        >>> [[(h.src, h.dst, h.piece) for h in phase] for phase in phases(t, 2)]
        [[(0, 2, 0), (1, 3, 0)], [(2, 3, 0), (3, 2, 0), (0, 2, 1), (1, 3, 1)], [(2, 3, 1), (3, 2, 1)]]
    """
    turns: list[list[Hop]] = [[] for _ in range(depth + 1)]
    for piece in range(depth):
        for a, src in enumerate(topology.attention_ranks):
            for q, node in enumerate(expert_nodes(topology)):
                receiver = topology.experts[q][a % len(node)]
                hop = Hop(src, receiver, (a,), node, piece, depth)
                turns[piece].append(hop)
                turns[piece + 1] += fan_out(topology, hop, node)
    return tuple(map(tuple, turns))
