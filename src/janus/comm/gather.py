"""Regime "gather" (Case 1): gather inside the attention node, cross once per node pair, spread inside the expert node.

For attention node p and expert node q one rank of p sends and one rank of q receives, chosen so that the transfers
of a node are spread over its ranks: position q (mod size of p) and position p (mod size of q). The combine sums
inside q at the receiver, crosses once, and the sender hands every rank of p its rows.
"""

from __future__ import annotations

from janus.comm.layout import Hop, Phases, attention_nodes, expert_nodes
from janus.types import Topology


def phases(topology: Topology) -> Phases:
    """Three phases: to the senders of the node, to the receivers of the expert nodes, to every rank there.

    Example:
        >>> t = Topology(attention=((0, 1),), experts=((2, 3), (4, 5)))
        >>> [[(h.src, h.dst) for h in phase] for phase in phases(t)]
        [[(0, 0), (1, 0), (0, 1), (1, 1)], [(0, 2), (1, 4)], [(2, 2), (2, 3), (4, 4), (4, 5)]]
    """
    inner, cross, spread = [], [], []
    for p, sources in enumerate(attention_nodes(topology)):
        served: dict[int, list[int]] = {}  # sender -> expert instances it serves, nodes in order
        for q, targets in enumerate(expert_nodes(topology)):
            sender = topology.attention[p][q % len(sources)]
            receiver = topology.experts[q][p % len(targets)]
            served.setdefault(sender, []).extend(targets)
            cross.append(Hop(sender, receiver, sources, targets))
            spread += [Hop(receiver, topology.expert_ranks[g], sources, (g,)) for g in targets]
        for sender, to in served.items():
            inner += [Hop(topology.attention_ranks[a], sender, (a,), tuple(to)) for a in sources]
    return tuple(inner), tuple(cross), tuple(spread)
