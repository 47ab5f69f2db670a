"""Regime "direct": every attention rank sends to every expert rank, one message each; A * E messages."""

from __future__ import annotations

from janus.comm.layout import Hop, Phases
from janus.types import Topology


def phases(topology: Topology, depth: int = 1) -> Phases:
    """One phase; the combine sends one message back over every hop.

    Example:
        >>> [len(p) for p in phases(Topology.parse("2A3E"))]
        [6]
    """
    hops = tuple(
        Hop(src, dst, (a,), (g,))
        for a, src in enumerate(topology.attention_ranks)
        for g, dst in enumerate(topology.expert_ranks)
    )
    return (hops,)
