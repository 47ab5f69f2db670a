"""Bench: what every balancing method leaves the busiest instance, and the microseconds of every backend on this CPU.

    python benchmarks/bench_sched.py [--quick] [--shape NAME] [--json FILE]

All methods see the same batches in the same run; "greedy" is the paper's, "tokens", "random" and "round_robin" are what
engines do that balance tokens. Placements are made from one half of the routing, batches drawn from the other. Times
are 10th, 50th and 90th percentile over batches and rounds, on one core, methods taking turns: "call" is a whole
`Balancer` call with the ids rewritten and nothing allocated, "solve" (the mean of a pass over all batches) leaves out
counting and rewriting.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from figures import progress, say, spread
from machine import ROOT, provenance
from recordings import Ids, routing
from shapes import SHAPES, Shape

sys.path.insert(0, str(ROOT / "src"))

from sched_timing import medians, rounds, solves, whole_call

from janus.sched import Balancer, balance, place
from janus.sched.backends import METHODS
from janus.types import Placement

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
SLOW = 2048  # entries B * K above which the plain reference is left out: it takes milliseconds to seconds
SOLVED = ("exact", "greedy")  # methods with a solve to be told from the rewriting


def judged(ready: Balancer, batches: list[Ids]) -> dict[str, float]:
    """Means over batches: a_max, and the most tokens of an instance over their mean."""
    tops, uneven = [], []
    for ids in batches:
        hosts = ready(ids, 0) // ready.placement.slots_per_instance
        tokens_G = np.bincount(hosts.ravel(), minlength=ready.placement.num_instances)
        tops.append(int(ready.load.max()))
        uneven.append(tokens_G.max() / tokens_G.mean())
    return {"a_max": round(float(np.mean(tops)), 3), "tokens_max_over_mean": round(float(np.mean(uneven)), 2)}


def least(placement: Placement, batches: list[Ids]) -> float:
    """Mean lower bound of a_max: no method can be below it."""
    return round(float(np.mean([balance(ids, placement).lower_bound for ids in batches])), 3)


def rows(shape: Shape, *, quick: bool) -> Iterator[dict[str, Any]]:
    """One row per B and method, every backend in it."""
    source = routing(shape.model)
    placement = place(source.seen, shape.instances, shape.slots_per_instance)
    for B in SIZES[::3] if quick else SIZES:
        how_many = 10 if quick else 100 if B <= 256 else 25
        batches = source.batches(B, how_many)
        made = {m: balancer(placement, shape, m, "numba", B) for m in METHODS}
        us = rounds([whole_call(b) for b in made.values()], batches, 3 if quick else 10)
        calls, middles = us.transpose(1, 0, 2), dict(zip(METHODS, medians(us), strict=True))
        bound = least(placement, batches)
        for method, call in zip(METHODS, calls, strict=True):
            row = {"shape": shape.name, "B": B, "method": method, "routing": source.label, "lower_bound": bound}
            row |= judged(made[method], batches) | {"call_us": {"numba": spread(call.ravel())}}
            if method == "exact":
                row["times_greedy"] = round(middles["exact"] / middles["greedy"], 2)
            if method in SOLVED:
                solve = solves(placement, method, batches)
                row["solve_us"] = {"numba": spread([solve() for _ in range(5 if quick else 30)])}
            row["call_us"]["reference"] = reference(placement, shape, method, batches[:5])
            yield row


def balancer(placement: Placement, shape: Shape, method: str, backend: str, B: int) -> Balancer:
    """One that is ready; method "cost" gets the roofline times of the model's experts on an H100."""
    options: dict[str, Any] = {}
    if method == "cost":
        from janus.scale import Cluster, LatencyModel, ModelSpec

        latency: Any = LatencyModel.roofline(ModelSpec.from_config(shape.model.name), Cluster("h100-sxm"))
        options["cost"] = latency.expert_cost
    return Balancer(placement, method=method, backend=backend, max_tokens=B, **options)


def reference(placement: Placement, shape: Shape, method: str, batches: list[Ids]) -> list[float] | str:
    """Times of the plain reference, or why it was left out."""
    if batches[0].size > SLOW:
        return f"not run: more than {SLOW} entries"
    plain = balancer(placement, shape, method, "reference", len(batches[0]))
    return spread(rounds([whole_call(plain)], batches, 1).ravel())


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    times = row["call_us"]["numba"]
    slow = row["call_us"]["reference"]
    solved = f"{row['solve_us']['numba'][1]:8.1f}" if "solve_us" in row else f"{'-':>8}"
    ratio = f"{row['times_greedy']:.2f}" if "times_greedy" in row else "-"
    plain = slow if isinstance(slow, str) else f"{slow[1]:.0f}"
    return (
        f"{row['shape']:22} {row['B']:5} {row['method']:12} {row['a_max']:7.2f} {row['lower_bound']:7.2f} "
        f"{row['tokens_max_over_mean']:6.2f}  {times[0]:7.1f} {times[1]:7.1f} {times[2]:7.1f} {solved} {ratio:>6}  {plain}"
    )


HEAD = (
    f"{'shape':22} {'B':>5} {'method':12} {'a_max':>7} {'least':>7} {'tokens':>6}  "
    f"{'p10':>7} {'p50':>7} {'p90':>7} {'solve':>8} {'/greedy':>7} reference\n"
    f"{'':22} {'':>5} {'':12} {'slots':>7} {'slots':>7} {'max/mn':>6}  "
    f"{'us':>7} {'us':>7} {'us':>7} {'us':>8} {'':>7} us"
)


def measured(shapes: list[Shape], *, quick: bool) -> list[dict[str, Any]]:
    """All rows, printed as they come."""
    found: list[dict[str, Any]] = []
    print(HEAD)
    with progress("bench", len(shapes)) as step:
        for shape in shapes:
            for row in rows(shape, quick=quick):
                found.append(row)
                print(line(row), flush=True)
            step(f"{shape.name}, {found[-1]['routing']}")
    return found


def write(path: Path, found: list[dict[str, Any]]) -> None:
    """Provenance and rows, a row a line."""
    head = {"command": "python benchmarks/bench_sched.py", "placement": "janus, from the other half", **provenance()}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in found)
    path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three batch sizes, ten batches each: seconds")
    parser.add_argument("--shape", choices=list(SHAPES), help="one shape alone")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there too")
    options = parser.parse_args()
    shapes = [SHAPES[options.shape]] if options.shape else list(SHAPES.values())
    found = measured(shapes, quick=options.quick)
    if options.json:
        write(options.json, found)
        say(f"{len(found)} rows in {options.json}")


if __name__ == "__main__":
    main()
