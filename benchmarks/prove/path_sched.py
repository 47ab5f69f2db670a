"""Prove: the exact balancer reaches the maximum-flow optimum, and every backend gives the same bits.

    python benchmarks/prove/path_sched.py [--sample]

Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "sched")]

from oracle import hard_case, optimum, random_ids, random_slots  # noqa: E402  (the paths above come first)

from janus.sched import Assignment, Balancer, balance, place  # noqa: E402
from janus.sched.backends import METHODS  # noqa: E402
from janus.sched.judging import mean_a_max  # noqa: E402
from janus.sched.popularity import popularity  # noqa: E402
from janus.sched.reference import start  # noqa: E402
from janus.sched.tables import LayerTables  # noqa: E402
from janus.types import Placement, RoutingTrace  # noqa: E402

SHARED = Path(os.environ.get("JANUS_SHARED", ROOT / "../shared"))


def random_case(rng: np.random.Generator) -> tuple[Any, Placement]:
    """E 4..256, G 1..32, C from just enough to three times that, T 0..256, K 1..8; every fourth one tight."""
    E, G = int(np.exp(rng.uniform(np.log(4), np.log(257)))), int(np.exp(rng.uniform(0, np.log(33))))
    least = -(-E // G)
    C = least if rng.random() < 0.25 else int(rng.integers(least, 3 * least + 2))
    T = int(rng.choice([0, 1, 2, rng.integers(3, 17), rng.integers(17, 257)], p=[0.02, 0.08, 0.1, 0.4, 0.4]))
    ids = random_ids(rng, E, T, int(rng.integers(1, 9)), G)
    return ids.astype(rng.choice(["i4", "i8"])), Placement(random_slots(rng, E, G, C), E)


def hard(rng: np.random.Generator) -> tuple[Any, Placement]:
    """A case in which the greedy start is often not optimal, so that the search for paths is put to work."""
    ids, slots = hard_case(rng)
    return ids, Placement(slots, int(slots.max()) + 1)


def same_bits(a: Assignment, b: Assignment) -> bool:
    fields = [f.name for f in dataclasses.fields(a) if f.name != "backend"]
    return all(np.asarray(getattr(a, f)).tobytes() == np.asarray(getattr(b, f)).tobytes() for f in fields)


def start_a_max(ids: Any, placement: Placement) -> int:
    """a_max of the greedy start of the exact method, before any path: where it is optimal the search had no work."""
    tables, E = LayerTables.build(placement, 0, "exact"), placement.num_experts
    replica = np.array(start(np.bincount(ids[ids >= 0], minlength=E).tolist(), tables, tie_by_tokens=True))
    hosts = replica[replica >= 0] // placement.slots_per_instance
    return int(np.bincount(hosts, minlength=1).max())


def random_cases(n: int) -> dict[str, int]:
    rng, tally = (
        np.random.default_rng(20260),
        dict.fromkeys(("optimal", "bits", "bound", "better", "paths", "slack"), 0),
    )
    for i in range(n):
        ids, placement = random_case(rng) if i % 2 else hard(rng)
        runs = {m: [balance(ids, placement, method=m, backend=b) for b in ("reference", "numba")] for m in METHODS}
        exact, best = runs["exact"][1], optimum(ids, placement.slots[0])
        tally["optimal"] += exact.a_max == best
        tally["bits"] += all(same_bits(*pair) for pair in runs.values())
        tally["bound"] += exact.lower_bound <= best
        tally["better"] += exact.a_max < runs["greedy"][1].a_max
        tally["paths"] += start_a_max(ids, placement) > best
        tally["slack"] += exact.lower_bound < best
        if (i + 1) % max(1, n // 10) == 0:
            print(f"{i + 1} of {n} cases: {tally}", file=sys.stderr)
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
    path = SHARED / "data" / "routing" / "gptoss20b.npz"
    if not path.exists():
        return None
    ids = np.load(path)["topk"].astype(np.int16)[:, :, ::stride]
    L = ids.shape[2]
    train, test = (RoutingTrace(part.reshape(-1, L, 4), 32) for part in (ids[:96], ids[96:]))
    rng = np.random.default_rng(1)
    batches = [layer.batches(16, 50, rng) for layer in popularity(test, 4)[0]]
    maps = {m: place(train, 8, 5, method=m, batch_sizes=(16,)) for m in ("janus", "coactivation", "eplb")}
    return {
        m: float(np.mean([mean_a_max(p.slots[i], 32, [b]) for i, b in enumerate(batches)])) for m, p in maps.items()
    }


def figure(name: str, value: float, bar: str, ok: bool, unit: str, note: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "bar": bar, "ok": bool(ok), "unit": unit, "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="100 cases, seconds")
    sample = parser.parse_args().sample
    n = 100 if sample else 2000
    tally = random_cases(n)
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
    print(json.dumps({"figures": figures}))


if __name__ == "__main__":
    main()
