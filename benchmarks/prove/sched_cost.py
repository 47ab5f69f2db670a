"""Prove: method "cost" brings the costliest instance within 5 % of a lower bound, from decode to prefill, in microseconds.

    python benchmarks/prove/sched_cost.py [--sample]

A cell is a placement, a batch size and a ridge (read time / token time). Progress goes to stderr; the last line of
stdout is one JSON object of figures.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix, diags, hstack, identity, vstack

sys.path.insert(0, str(Path(__file__).parents[1]))

from figures import figure, report, say  # (the path above comes first)
from recordings import DEEPSEEK
from recordings import gpt_oss as gpt_oss_trace

from janus.scale import Cluster, Efficiency, LatencyModel, ModelSpec
from janus.sched import Balancer, RooflineCost, balance, place
from janus.sched.popularity import Popularity, popularity
from janus.types import Placement, RoutingTrace

SIZES = (16, 64, 256, 1024, 4096, 16384)
EXTREMES = (1.0, 8.0, 600.0)
MODELS = {"deepseek-v3": "fp8", "qwen3-235b-a22b": "bf16", "gpt-oss-120b": "mxfp4", "mixtral-8x7b": "bf16"}
BAR = 0.05
SECONDS = 15  # for the integer program that looks into a gap of more than 5 %, and of 3 % where there are 32 experts


@dataclass
class Cell:
    """Shares above a lower bound, one per batch: over the linear program and a_max reads, and over the best bound."""

    plain: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)


def ridges() -> list[float]:
    """Of four models on three cards, at the datasheets' peaks and at the shares of them that scale assumes."""
    found = set()
    for (name, dtype), card in itertools.product(MODELS.items(), ("h100-sxm", "h200-sxm", "b200-sxm")):
        for share in (Efficiency(), Efficiency(memory=1.0, compute=1.0)):
            model = LatencyModel.roofline(
                ModelSpec.from_config(name, expert_dtype=dtype), Cluster(card), efficiency=share
            )
            found.add(round(model.expert_cost.ridge))
            say(f"{name} {dtype} {card}: {model.expert_cost}")
    # ridges within a tenth of each other teach the same
    kept = [r for i, r in enumerate(sorted(found)) if i == 0 or r > 1.1 * sorted(found)[i - 1]]
    return sorted({*kept, *EXTREMES})


def deepseek(n: int) -> Iterator[tuple[str, Any, Popularity, int]]:
    """(label, what to place from, what to draw from, top_k) of `n` recorded layers, or of gamma(2) loads without."""
    if DEEPSEEK.exists():
        loads = np.load(DEEPSEEK)
        for name, layer in list(zip(loads.files, (7, 30, 50, 20), strict=True))[:n]:
            counts = loads[name][[layer]]
            yield f"recorded DeepSeek-V3 loads, {name}", counts, popularity(counts, 8)[0][0], 8
    else:
        counts = np.random.default_rng(0).gamma(2.0, size=(1, 256))
        yield "synthetic routing, 256 experts, gamma(2) loads", counts, popularity(counts, 8)[0][0], 8


def gpt_oss(n: int) -> Iterator[tuple[str, Any, Popularity, int]]:
    """The same of `n` layers of recorded gpt-oss-20b routing: placed from half of it, drawn from the other."""
    trace = gpt_oss_trace()
    half = trace.num_tokens // 2
    for layer in np.linspace(0, trace.num_layers - 1, n + 2).astype(int)[1:-1]:
        seen, unseen = (
            RoutingTrace(trace.ids[part, layer : layer + 1], 32) for part in (slice(half), slice(half, None))
        )
        yield "recorded gpt-oss-20b routing", seen, popularity(unseen, 4)[0][0], 4


def pools(E: int) -> list[tuple[int, int]]:
    """(G, C) with R about E + G, 1.25 E and 1.5 E."""
    instances = (8, 16, 32) if E == 256 else (8, 16)
    pairs = {(G, -(-E // G) + 1) for G in instances} | {(G, round(x * E / G)) for G in instances for x in (1.25, 1.5)}
    return sorted((G, C) for G, C in pairs if G * C > E)


def linear_bound(costs_E: np.ndarray, placement: Placement) -> float:
    """Smallest makespan when experts may be split without paying a second read, picoseconds.

    With y = the share of expert e on a host, max(read * y, token * n * y) is y times the expert's cost.
    """
    slots = placement.phy2log[0]
    used = np.flatnonzero((slots >= 0) & (costs_E[slots] > 0))
    experts, G, n = slots[used], placement.num_instances, len(used)
    active, rows = np.unique(experts, return_inverse=True)
    shares = csr_matrix((np.ones(n), (rows, np.arange(n))), shape=(len(active), n + 1))
    hosts = np.r_[used // placement.slots_per_instance, np.arange(G)]
    columns = np.r_[np.arange(n), np.full(G, n)]
    top = costs_E.max()
    load = csr_matrix((np.r_[costs_E[experts] / top, -np.ones(G)], (hosts, columns)), shape=(G, n + 1))
    goal = np.r_[np.zeros(n), 1.0]
    found = linprog(goal, A_ub=load, b_ub=np.zeros(G), A_eq=shares, b_eq=np.ones(len(active)), method="highs")
    return float(found.fun) * top


def slot_bound(reads_A: np.ndarray, single_A: np.ndarray, G: int, least: float) -> float:
    """A lower bound that counts slots, in reads; `reads_A` is the cost of each active expert, `least` a bound known.

    Below k + 1 an instance uses at most k slots, so G k - A slots are left for second parts of experts and for
    instances that use fewer. At k - 1 + v, an expert above v must be split in p parts (p - 1 more slots) or stand where
    slots are left unused (one for every read above v).
    """

    def needed(v: float) -> float:
        whole = np.maximum(0, reads_A - v)
        split = [p - 1 + np.maximum(0, reads_A - p * v) for p in (np.ceil(reads_A / v), np.maximum(1, reads_A // v))]
        return float(np.where(single_A | (reads_A <= v), whole, np.minimum(whole, np.minimum(*split))).sum())

    k = int(least + 1e-9)
    while needed(2 - 1e-9) > k * G - len(reads_A):
        k += 1
    low, high = max(1.0, least - k + 1), 2.0
    if needed(low) <= k * G - len(reads_A):
        return max(least, k - 1 + low)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle) <= k * G - len(reads_A) else (middle, high)
    return max(least, k - 1 + low)


def integer_bound(tokens_E: np.ndarray, placement: Placement, cost: RooflineCost) -> float:
    """Dual bound of the integer program in reads: per slot, is it used, its share of the expert, its cost; the top."""
    slots, (read, token) = placement.phy2log[0], cost.integers
    used = np.flatnonzero((slots >= 0) & (tokens_E[slots] > 0))
    experts, G, n = slots[used], placement.num_instances, len(used)
    active, rows = np.unique(experts, return_inverse=True)
    one, none = identity(n), csr_matrix((n, n))
    last = csr_matrix((n, 1))
    hosts = csr_matrix((np.ones(n), (used // placement.slots_per_instance, np.arange(n))), shape=(G, n))
    sums = csr_matrix((np.ones(n), (rows, np.arange(n))), shape=(len(active), n))
    work = diags(token / read * tokens_E[experts])
    at_most = vstack([
        hstack([csr_matrix((G, 2 * n)), hosts, csr_matrix(-np.ones((G, 1)))]),
        hstack([-one, one, none, last]),
        hstack([one, none, -one, last]),
        hstack([none, work, -one, last]),
    ])  # fmt: skip
    equal = hstack([csr_matrix((len(active), n)), sums, csr_matrix((len(active), n + 1))])
    found = milp(
        np.r_[np.zeros(3 * n), 1.0],
        constraints=[LinearConstraint(at_most.tocsr(), ub=0.0), LinearConstraint(equal.tocsr(), 1.0, 1.0)],
        integrality=np.r_[np.ones(n), np.zeros(2 * n + 1)],
        bounds=Bounds(0.0, np.r_[np.ones(2 * n), np.full(n + 1, np.inf)]),
        options={"time_limit": SECONDS, "mip_rel_gap": 0.002},
    )
    return float(found.mip_dual_bound or 0.0)


def makespan(tokens_R: np.ndarray, G: int, cost: RooflineCost) -> int:
    """Picoseconds of the costliest instance."""
    read, token = cost.integers
    tokens = tokens_R.astype(np.int64)
    return int(np.where(tokens > 0, np.maximum(read, token * tokens), 0).reshape(G, -1).sum(1).max())


def measure(cell: Cell, ids: np.ndarray, placement: Placement, cost: RooflineCost, a_max: int) -> None:
    """One batch of a cell."""
    E, G, (read, token) = placement.num_experts, placement.num_instances, cost.integers
    tokens_E = np.bincount(ids.ravel(), minlength=E)
    costs_E = np.where(tokens_E > 0, np.maximum(read, token * tokens_E), 0).astype(float)
    got = makespan(balance(ids, placement, method="cost", cost=cost).tokens_per_slot, G, cost)
    plain, active = max(linear_bound(costs_E, placement), read * a_max), tokens_E > 0
    # every cost is a multiple of the common divisor of both times
    unit = math.gcd(read, token)
    best = max(plain, unit * math.ceil(plain / unit - 1e-6))
    best = max(best, read * slot_bound(costs_E[active] / read, placement.logcnt[0][active] == 1, G, best / read))
    if got / best - 1 > (0.03 if E == 32 else BAR):
        best = max(best, read * integer_bound(tokens_E, placement, cost))
    assert got >= best * (1 - 1e-6), "a lower bound above a result"
    cell.plain.append(got / plain - 1)
    cell.best.append(got / best - 1)


def all_cells(quick: bool) -> dict[tuple[Any, ...], Cell]:
    cells: dict[tuple[Any, ...], Cell] = {}
    rng, every = np.random.default_rng(7), ridges()[:: 3 if quick else 1]
    sources = [*deepseek(1 if quick else 3), *gpt_oss(1 if quick else 2)]
    for label, seen, drawn, top_k in sources:
        batches = {B: drawn.batches(B, 1, rng).astype(np.int64) for B in SIZES}
        for method, (G, C) in itertools.product(("janus", "eplb"), pools(drawn.num_experts)):
            if quick and (method, G) != ("janus", max(g for g, _ in pools(drawn.num_experts))):
                continue
            placement = place(seen, G, C, method=method, top_k=top_k, batch_sizes=(64, 256))
            for B, ridge in itertools.product(SIZES, every):
                name = (label.split(",")[0], method, G, C, B, ridge)
                for ids in batches[B]:
                    a_max = balance(ids, placement).a_max
                    measure(cells.setdefault(name, Cell()), ids, placement, RooflineCost(10.0, 10.0 / ridge), a_max)
            say(f"{label}, {method} {G} x {C}: {len(cells)} cells")
    return cells


def speed(B: int, rounds: int) -> dict[float, float]:
    """Microseconds of a whole call per ridge: 256 experts on 32 x 12, worst of three batches, medians of `rounds`."""
    _, counts, drawn, top_k = next(deepseek(1))
    placement, out = place(counts, 32, 12, top_k=top_k), {}
    batches = drawn.batches(B, 3, np.random.default_rng(3))
    for ridge in (1.0, 8.0, 37.0, 78.0, 142.0, 206.0, 295.0):
        balancer = Balancer(placement, method="cost", cost=RooflineCost(10.0, 10.0 / ridge), max_tokens=B)
        out[ridge] = max(_median_us(balancer, ids, rounds) for ids in batches)
    return out


def _median_us(balancer: Balancer, ids: np.ndarray, rounds: int) -> float:
    """The least of the medians of ten stretches: other work on the machine comes and goes."""
    seconds = np.empty((10, rounds // 10))
    for i in np.ndindex(seconds.shape):
        start = time.perf_counter()
        balancer(ids, 0)
        seconds[i] = time.perf_counter() - start
    return 1e6 * float(np.median(seconds, axis=1).min())


def closeness(cells: dict[tuple[Any, ...], Cell], most: int) -> list[dict[str, Any]]:
    """`most` cells may be above the bar by the plain bound, which cannot always be reached."""
    plain = {name: float(np.mean(cell.plain)) for name, cell in cells.items()}
    best = {name: float(np.mean(cell.best)) for name, cell in cells.items()}
    worst, batches = max(best, key=best.__getitem__), [gap for cell in cells.values() for gap in cell.best]
    above = sorted((name for name in plain if plain[name] > BAR), key=plain.__getitem__, reverse=True)
    note = (
        f"{len(cells)} cells, {len(batches)} batches; mean {100 * np.mean(batches):.2f} %, worst cell {worst}, "
        f"worst batch {100 * max(batches):.1f} %"
    )
    listed = "; ".join(
        f"{name} {100 * plain[name]:.1f} %, of which reachable {100 * best[name]:.1f} %" for name in above
    )
    return [
        figure(
            "cells within 5 % of the best lower bound", sum(gap <= BAR for gap in best.values()), f"== {len(best)}",
            best[worst] <= BAR, "cases",
        ),
        figure("worst cell above the best lower bound", round(100 * best[worst], 2), "<= 5", best[worst] <= BAR, "%", note),
        figure(
            "cells above 5 % over max(linear program, read x a_max)", len(above), f"<= {most}", len(above) <= most,
            f"of {len(cells)}", listed,
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="one layer, one pool size, seconds")
    quick = parser.parse_args().sample
    figures = closeness(all_cells(quick), most=10 if quick else 0)
    slack = 5 if quick else 1  # a sample may run beside other work: it shows that the script works
    for B, limit in ((256, 50 * slack), (16384, 500 * slack)):
        us = speed(B, 30 if quick else 300)
        note = "ids rewritten, slowest of three batches: " + ", ".join(f"ridge {r:g} {t:.0f} us" for r, t in us.items())
        name = f"call, numba, B={B}, 256 experts on 32 x 12, slowest ridge of a model"
        slowest = max(t for ridge, t in us.items() if ridge not in EXTREMES)
        figures.append(figure(name, round(slowest, 1), f"<= {limit}", slowest <= limit, "us", note))
    report(figures)


if __name__ == "__main__":
    main()
