"""all_to_all against torch's on the test network: equal bytes everywhere, and the time of every way in turn.

Nodes of several ranks, 200 Mbit/s per node and direction, rows of 2048 float32 (8 KiB), and of 16 for the smallest call.
"auto" has the cost model that it takes when none is given. A call is as slow as its slowest rank; medians, interleaved.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from figures import figure, report, say
from testbed import Testbed, unavailable

ROOT = Path(__file__).resolve().parents[2]
RATE = 200.0
PLACES = [(2, 2), (2, 4), (4, 2), (4, 4)]  # nodes, ranks per node
LOADS = [(1, 16, 48), (1, 2048, 24), (8, 2048, 4), (64, 2048, 5)]  # rows per pair, elements per row, turns
LONGEST_MB = 12  # through a node's port in one call: half a second; longer ones are left out
SLACK, SLACK_MS = 1.25, 0.5  # auto against best: what agreeing and choosing may cost; what a median of ms wavers by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="two nodes of two ranks, the two smallest loads")
    sample = parser.parse_args().sample
    if reason := unavailable():
        report([figure("test network", "absent", "present", True, note=f"nothing was measured: {reason}")])
        return
    cells: dict[str, dict] = {}
    for nodes, width in PLACES[:1] if sample else PLACES:
        with Testbed(nodes, RATE) as bed:
            cells |= place(bed, nodes, width, LOADS[:2] if sample else LOADS)
    report(figures(cells, sample))


def place(bed: Testbed, nodes: int, ranks_per_node: int, loads: list[tuple[int, int, int]]) -> dict[str, dict]:
    """Every load on one arrangement of ranks."""
    node_of = [node for node in range(nodes) for _ in range(ranks_per_node)]
    parts = [[r for r, n in enumerate(node_of) if n == node] for node in range(nodes)]
    topology = {"attention": parts[: nodes // 2], "experts": parts[nodes // 2 :]}
    path = [ROOT / "src", ROOT / "benchmarks"]
    found = {}
    with bed.ranks(node_of, module="alltoall_ranks", path=path) as ranks:
        ranks.call("meet", topology=topology)
        for rows, width, turns in loads:
            far = ranks_per_node * (len(node_of) - ranks_per_node) * rows * width * 4 / 1e6
            if far > LONGEST_MB:
                continue
            for uneven in (False, True):
                name = f"{nodes} nodes x {ranks_per_node}, {rows} x {4 * width} B" + (", uneven" if uneven else "")
                values = ranks.call("measure", rows=rows, width=width, turns=turns, uneven=uneven)
                found[name] = values[0] | {"equal": all(v["equal"] for v in values), "smallest": rows * width == 16}
                say(f"{name}: " + ", ".join(f"{way} {ms:.2f} ms" for way, ms in values[0]["ms"].items()))
    return found


def figures(cells: dict[str, dict], sample: bool) -> list[dict[str, Any]]:
    """Equality, auto against the best way, gather against torch where rows are smallest."""
    wrong = [name for name, cell in cells.items() if not cell["equal"]]
    found = [
        figure("cells in which some way differs from torch", len(wrong), "0", not wrong, note=f"{len(cells)} cells")
    ]
    for name, cell in cells.items():
        ms = cell["ms"]
        best = min((way for way in ms if way != "auto"), key=lambda way: ms[way])
        ratio = ms["auto"] / ms[best]
        ok = ratio <= SLACK or ms["auto"] <= ms[best] + SLACK_MS
        note = ", ".join(f"{way} {t:.2f} ms" for way, t in ms.items())
        bar = "reported" if sample else f"<= {SLACK}, or {SLACK_MS} ms"  # a sample is too small to be judged
        found.append(figure(f"{name}: auto / {best}", round(ratio, 2), bar, ok or sample, "x", note))
    for name, cell in cells.items():
        if cell["smallest"]:
            ratio = cell["ms"]["torch"] / cell["ms"]["gather"]
            found.append(figure(f"{name}: torch / gather", round(ratio, 2), "reported", True, "x"))
    return found


if __name__ == "__main__":
    main()
