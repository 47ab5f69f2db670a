"""Prove: the exact balancer reaches the maximum-flow optimum, and every backend gives the same bits.

    python benchmarks/prove/path_sched.py [--sample]

Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from figures import figure, report, say  # (the path above comes first)
from recordings import GPT_OSS
from sched_cases import METHODS, optimal, random_cases, same_bits, start_a_max

from janus.sched import Balancer, balance, place
from janus.sched.judging import mean_a_max
from janus.sched.popularity import popularity
from janus.types import RoutingTrace


def tallied(n: int) -> dict[str, int]:
    tally = dict.fromkeys(("optimal", "bits", "bound", "better", "paths", "slack"), 0)
    for i, case in enumerate(random_cases(n, 20260)):
        ids, placement, _ = case
        runs = {m: [balance(ids, placement, method=m, backend=b) for b in ("reference", "numba")] for m in METHODS}
        exact = runs["exact"][1]
        best = optimal(exact, case)
        tally["optimal"] += best
        tally["bits"] += all(same_bits(*pair) for pair in runs.values())
        tally["bound"] += best and exact.lower_bound <= exact.a_max
        tally["better"] += exact.a_max < runs["greedy"][1].a_max
        tally["paths"] += start_a_max(case) > exact.a_max
        tally["slack"] += exact.lower_bound < exact.a_max
        if (i + 1) % max(1, n // 10) == 0:
            say(f"{i + 1} of {n} cases: {tally}")
    return tally


def saving(B: int, batches: int) -> tuple[dict[str, float], float]:
    """Mean a_max of greedy and exact: 256 experts, 32 instances x 16 slots, top-8, loads like a gamma(2)."""
    counts = np.random.default_rng(0).gamma(2.0, size=256)
    placement, (layer,) = place(counts, 32, 16, method="eplb"), popularity(counts, 8)[0]
    ids = layer.batches(B, batches, np.random.default_rng(1))
    tops = {m: np.mean([balance(x, placement, method=m).a_max for x in ids]) for m in ("greedy", "exact")}
    balancer, seconds = Balancer(placement, max_tokens=B), []
    for x in ids:
        balancer(x, 0)
        start = time.perf_counter()
        balancer(x, 0)
        seconds.append(time.perf_counter() - start)
    return tops, 1e6 * float(np.median(seconds))


def held_out(stride: int) -> dict[str, float] | None:
    """Mean exact a_max of placements on requests they were not made from; None where the recording is absent."""
    if not GPT_OSS.exists():
        return None
    ids = np.load(GPT_OSS)["topk"].astype(np.int16)[:, :, ::stride]
    L = ids.shape[2]
    train, test = (RoutingTrace(part.reshape(-1, L, 4), 32) for part in (ids[:96], ids[96:]))
    rng = np.random.default_rng(1)
    batches = [layer.batches(16, 50, rng) for layer in popularity(test, 4)[0]]
    maps = {m: place(train, 8, 5, method=m, batch_sizes=(16,)) for m in ("janus", "coactivation", "eplb")}
    return {
        m: float(np.mean([mean_a_max(p.slots[i], 32, [b]) for i, b in enumerate(batches)])) for m, p in maps.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="100 cases, seconds")
    sample = parser.parse_args().sample
    n = 100 if sample else 2000
    tally = tallied(n)
    note = f"exact beat greedy in {tally['better']}; the cheap lower bound was below the optimum in {tally['slack']}"
    figures = [
        figure(
            "exact a_max == maximum-flow optimum", tally["optimal"], f"== {n}", tally["optimal"] == n, "cases", note
        ),
        figure("reference == numba, all methods, bit for bit", tally["bits"], f"== {n}", tally["bits"] == n, "cases"),
        figure("lower_bound <= optimum", tally["bound"], f"== {n}", tally["bound"] == n, "cases"),
    ]
    least = n // 10
    figures.append(figure("cases that needed paths", tally["paths"], f">= {least}", tally["paths"] >= least, "cases"))
    for B in (16, 64):
        tops, us = saving(B, 50 if sample else 500)
        less = 100 * (1 - tops["exact"] / tops["greedy"])
        note = f"256 experts, 32 x 16 slots, top-8, synthetic routing: {tops['greedy']:.2f} -> {tops['exact']:.2f}"
        figures.append(figure(f"a_max below greedy, B={B}", round(less, 1), "> 5", less > 5, "%", note))
        figures.append(
            figure(f"Balancer call, numba, B={B}, G=32", round(us, 1), "< 50", us < 50, "us", "median, ids rewritten")
        )
    means = held_out(6 if sample else 1)
    if means:
        note = "gpt-oss-20b recording, half the requests held out, 8 x 5 slots, B=16; " + ", ".join(
            f"{m} {v:.3f}" for m, v in means.items()
        )
        gap = 100 * (1 - means["janus"] / means["eplb"])
        figures.append(figure("janus placement: a_max below eplb", round(gap, 1), ">= 0", gap >= 0, "%", note))
    report(figures)


if __name__ == "__main__":
    main()
