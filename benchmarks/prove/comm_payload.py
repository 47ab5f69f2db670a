"""Payload: every pair of pools up to 4 x 4 nodes of 1 to 3 ranks, and unequal nodes, over every route, bit for bit.

Every rank computes its own expectation with the plain reference: rows (and, with the attention-side gate, choices)
received, the same on all expert ranks; sums that come home. Real processes and sockets, on the test network.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comm_cells import PATHS
from figures import figure, progress, report
from testbed import Testbed, unavailable

from janus.comm.layout import ROUTES
from janus.types import Topology

RATE_MBIT = 10_000  # nothing is timed
UNEQUAL = (
    (((2,), (3, 1)), ((0, 4, 5), (6,))),
    (((0, 1, 2), (3,)), ((4,), (5, 6), (7, 8, 9))),
    (((5,),), ((0, 1), (2, 3, 4))),
    (((0,), (1, 2), (3,)), ((4, 5, 6, 7),)),
)


def pools(sample: bool) -> list[Topology]:
    sides = (1, 3, 4) if sample else (1, 2, 3, 4)
    found = []
    for m, n, size in itertools.product(sides, sides, (1, 2) if sample else (1, 2, 3)):
        nodes = [tuple(range(i * size, (i + 1) * size)) for i in range(m + n)]
        if not sample or (m + n) * size <= 10:
            found.append(Topology(tuple(nodes[:m]), tuple(nodes[m:])))
    return found + [Topology(*pair) for pair in UNEQUAL]


def plans(topology: Topology) -> list[list[int]]:
    """Rows of each rank: uneven, with ranks and whole nodes without any, and one row in all."""
    n = topology.n_attention
    return [[(5 * a + 3) % 8 for a in range(n)], [0] * (n - 1) + [9], [1] + [0] * (n - 1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", action="store_true")
    sample = parser.parse_args().sample
    if reason := unavailable():
        report([figure("payload on the test network", "not measured", "root", True, note=reason)])
        return
    todo, layers = pools(sample), 0
    with Testbed(nodes=8, rate_mbit=RATE_MBIT) as bed, progress("pools", len(todo)) as step:
        for topology in todo:
            node_of = {rank: i for i, node in enumerate(topology.nodes) for rank in node}
            places = [node_of[rank] for rank in range(topology.world_size)]
            with bed.ranks(places, module="comm_ranks", path=PATHS) as ranks:
                found = ranks.call("payload", deadline_s=240, topology=topology.to_dict(), plans=plans(topology))
            layers += min(found)  # a rank that found a wrong bit has failed the call, with its number
            step(str(topology))
    note = f"all of {len(ROUTES)} routes that exist there, both gates, bfloat16, float32 and float16, uneven and empty ranks"
    report([figure("pairs of pools, every layer bit for bit", len(todo), "all", True, note=note),
            figure("layers compared on every rank", layers, "> 0", layers > 0)])  # fmt: skip


if __name__ == "__main__":
    main()
