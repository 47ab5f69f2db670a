"""Prove: the exact balancer is fast enough to run in every layer of every step, on one core.

    python benchmarks/prove/sched_speed.py [--sample]

numba, 256 experts, top-8, 32 instances x 12 slots. Everything that is compared takes turns in the same rounds, and a
time is the median over rounds of each round's median, so that other work on the machine does not decide. Progress
goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from figures import figure, progress, report, spread
from machine import machine
from recordings import routing
from sched_timing import medians, rounds, solves, whole_call
from shapes import SHAPES

from janus.sched import Balancer, place

SHAPE = SHAPES["deepseek-v3 32x12"]
SIZES = (1, 4, 16, 64, 256, 1024, 4096)
SOLVE_US, CALL_US, TIMES_GREEDY = 10, 40, 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="few rounds, seconds")
    sample = parser.parse_args().sample
    source = routing(SHAPE.model)
    placement = place(source.seen, SHAPE.instances, SHAPE.slots_per_instance)
    where = f"{SHAPE.name}, {source.label}; {machine()['cpu']}, one core"
    many = 5 if sample else 60
    slack = 5 if sample else 1  # a sample may run beside other work: it shows that the script works
    # the solve alone, any B
    timed = {B: solves(placement, "exact", source.batches(B, 50)) for B in SIZES}
    with progress("solve", many) as step:
        us = np.array([solve_all(timed, step) for _ in range(many)])
    middle = dict(zip(SIZES, np.median(us, axis=0).round(1).tolist(), strict=True))
    note = f"mean of 50 batches, median of {many} rounds: " + ", ".join(f"B={B} {t}" for B, t in middle.items())
    figures = [at_most("solve, exact, slowest B", max(middle.values()), SOLVE_US * slack, "us", f"{note}; {where}")]
    # the whole call, ids rewritten, exact and greedy in turn
    made = [Balancer(placement, method=m, backend="numba", max_tokens=256) for m in ("exact", "greedy")]
    us = rounds([whole_call(b) for b in made], source.batches(256, 50), many)
    exact, greedy = medians(us)
    low, _, high = spread(us[:, 0].ravel())
    note = f"int64 ids [256, 8], p10 {low}, p90 {high} over {many} rounds of 50 batches; {where}"
    figures.append(at_most("whole call, exact, B=256", round(exact, 1), CALL_US * slack, "us", note))
    ratios = np.median(us[:, 0], axis=1) / np.median(us[:, 1], axis=1)
    note = f"greedy {greedy:.1f} us; per round p10 {np.percentile(ratios, 10):.2f}, p90 {np.percentile(ratios, 90):.2f}"
    figures.append(
        at_most("exact / greedy, whole call, B=256", round(float(np.median(ratios)), 2), TIMES_GREEDY, "x", note)
    )
    report(figures)


def solve_all(timed: dict[int, Any], step: Any) -> list[float]:
    """One round."""
    us = [solve() for solve in timed.values()]
    step(", ".join(f"{t:.1f} us" for t in us))
    return us


def at_most(name: str, value: float, limit: float, unit: str, note: str) -> dict[str, Any]:
    """A figure that is good when it is small."""
    return figure(name, value, f"<= {limit}", value <= limit, unit, note)


if __name__ == "__main__":
    main()
