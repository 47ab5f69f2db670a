"""Bench: every regime of the exchange, "auto" and a flat all-to-all on the test network, beside what no scheme can beat.

    python benchmarks/bench_comm.py [--minutes M] [--quick] [--csv FILE]

The grid is {1, 2, 4} attention nodes x {1, 2, 4} expert nodes x {1, 2, 4} ranks per node x b {1, 4, 16, 64} rows per
rank x H {2048, 5120} float32 x {200, 1000} Mbit/s per node port, thinned: of the four (H, rate) each pair of pools gets
two, turn by turn, and the order is shuffled, so that a run cut short has seen all kinds. Every group calibrates its cost
model first. Sizes whose samples would take too long
are left out. A sample is a step of two layers; ways take turns in random order; one that is clearly not the best
(more than 1.6 times it) gets 3 samples, the others 15. Needs root (see docs/testbed.md).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import progress, say
from machine import ROOT, provenance

sys.path.insert(0, str(ROOT / "src"))

from comm_cells import Group, cell, cell_seconds, opened, start
from testbed import Testbed, unavailable

from janus.comm import CostModel

SIZES = (1, 4, 16, 64)
SETTINGS = ((5120, 200), (5120, 1000), (2048, 1000), (2048, 200))  # H, Mbit/s; a shape gets the i-th and the i+2nd
CALIBRATE_S = 4.5
GROUP_S = 13.0  # for the cells of a group, by the model: what does not fit is left out


def groups(quick: bool = False) -> list[Group]:
    """The thinned grid."""
    shapes = list(itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4)))
    found = [Group(*shape, *SETTINGS[(i + turn * 2) % 4]) for i, shape in enumerate(shapes) for turn in (0, 1)]
    random.Random(4).shuffle(found)
    return found[:6] if quick else found


def measured(bed: Testbed, group: Group, samples: int) -> Iterator[dict[str, Any]]:
    """All rows of a group."""
    with opened(bed, group) as ranks:
        model, seconds = start(ranks, group, max(SIZES), CALIBRATE_S)
        for b in fitting(group, model, samples):
            yield from (row | {"calibrate_s": round(seconds, 2)} for row in cell(ranks, group, b, model, samples))


def fitting(group: Group, model: CostModel, samples: int) -> list[int]:
    """The sizes whose samples fit into the group's time; groups take turns in asking for large or for small ones first."""
    large_first = hash((group.attention_nodes, group.expert_nodes, group.ranks_per_node, group.hidden)) % 2
    left, found = GROUP_S, []
    for b in sorted(SIZES, reverse=bool(large_first)):
        needed = cell_seconds(group, b, model, samples)
        if needed <= left:
            left -= needed
            found.append(b)
    return sorted(found) or [SIZES[0]]


def bench(minutes: float, samples: int, *, quick: bool) -> tuple[list[dict[str, Any]], int]:
    """Rows, and how many groups the time was enough for."""
    end, rows, todo = time.monotonic() + 60 * minutes, [], groups(quick)
    with Testbed(nodes=8, rate_mbit=200) as bed, progress("groups", len(todo)) as step:
        for done, group in enumerate(todo):
            if time.monotonic() > end:
                return rows, done
            rows += measured(bed, group, samples)
            step(f"{group.topology} of {group.ranks_per_node}, H={group.hidden}, {group.rate_mbit} Mbit/s")
    return rows, len(todo)


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per cell: how "auto" compares with the best fixed regime, and the prediction with what was measured."""
    cells: dict[tuple, dict[str, dict[str, Any]]] = {}
    keys = ("attention_nodes", "expert_nodes", "ranks_per_node", "hidden", "rate_mbit", "b")
    for row in rows:
        cells.setdefault(tuple(row[key] for key in keys), {})[row["way"]] = row
    found = []
    for key, ways in cells.items():
        fixed = {name: row for name, row in ways.items() if name not in ("auto", "flat")}
        best = min(fixed.values(), key=lambda row: row["ms"])
        auto = ways["auto"]
        same = next(row for row in fixed.values() if (row["regime"], row["depth"]) == (auto["regime"], auto["depth"]))
        other = (auto["regime"], auto["depth"]) != (best["regime"], best["depth"])
        differs = other and auto["ms"] > best["ms_p90"]
        found.append(
            dict(zip(keys, key, strict=True)) | {
                "best": best["way"], "chosen": auto["regime"], "ratio": auto["ms"] / best["ms"], "counts": differs,
                "overhead": auto["step_ms"] / same["step_ms"] - 1, "flat": ways["flat"]["ms"] / auto["ms"],
                "errors": [row["predicted_ms"] / row["ms"] - 1 for row in fixed.values()],
                "bound": auto["bound_ms"] / auto["ms"], "calibrate_s": auto["calibrate_s"],
            }
        )  # fmt: skip
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The CSV, and beside it a JSON with machine, versions and commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    about = {**provenance(), "command": "python benchmarks/bench_comm.py", "rows": len(rows)}
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """What `write` wrote."""
    with path.open(newline="") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="no group starts later (%(default)s)")
    parser.add_argument("--samples", type=int, default=15, help="of every way that may be the best (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="six groups")
    parser.add_argument("--csv", type=Path, default=ROOT / "out" / "comm_testbed.csv", help="(%(default)s)")
    args = parser.parse_args()
    if reason := unavailable():
        say(f"bench_comm: {reason}")
        return 4
    rows, done = bench(args.minutes, args.samples, quick=args.quick)
    write(args.csv, rows)
    cells = judge(rows)
    near = sum(cell["ratio"] <= 1.1 or not cell["counts"] for cell in cells)
    say(f"{done} groups, {len(cells)} cells, auto within 10 % of the best in {near}; {args.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
