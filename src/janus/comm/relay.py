"""Regime "relay" (Case 2, sliced): each attention rank gives slice j to expert node j, expert nodes pass slices on.

So an attention port carries its rows once, however many expert nodes there are, and the expert nodes' own ports do the
rest: with A attention nodes of payload S and N expert nodes the busiest port carries about A * S, where "gather" carries
max(N, A) * S. With a depth d the rows are cut into N * d pieces. Node j owns the pieces j * d to j * d + d - 1: it gets
them one a phase, passes each on to the other expert nodes in the next phase, and these to their other ranks in the one
after. The combine is the mirror: sums inside each expert node, then at the node that owns the piece, then home.
"""

from __future__ import annotations

from janus.comm.gather import fan_out
from janus.comm.layout import Hop, Phases, expert_nodes
from janus.types import Topology


def phases(topology: Topology, depth: int = 1) -> Phases:
    """``depth + 2`` phases: to the owner of the piece, from there to the other nodes, and inside those.

    Example:
        >>> t = Topology(attention=((0,),), experts=((1,), (2,)))
        >>> [[(h.src, h.dst, h.piece) for h in phase] for phase in phases(t)]
        [[(0, 1, 0), (0, 2, 1)], [(1, 2, 0), (2, 1, 1)], []]
    """
    nodes = expert_nodes(topology)
    everyone = tuple(range(topology.n_experts))
    turns: list[list[Hop]] = [[] for _ in range(depth + 2)]
    pieces = len(nodes) * depth
    for piece in range(pieces):
        owner, turn = divmod(piece, depth)
        for a, src in enumerate(topology.attention_ranks):
            at = [topology.experts[q][a % len(node)] for q, node in enumerate(nodes)]  # receivers of this rank's rows
            first = Hop(src, at[owner], (a,), everyone, piece, pieces)
            turns[turn].append(first)
            turns[turn + 1] += fan_out(topology, first, nodes[owner])
            for q, node in enumerate(nodes):
                if q != owner:
                    passed = Hop(at[owner], at[q], (a,), node, piece, pieces)
                    turns[turn + 1].append(passed)
                    turns[turn + 2] += fan_out(topology, passed, node)
    return tuple(map(tuple, turns))
