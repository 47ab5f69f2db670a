"""Prove: placements of `place` against EPLB's map, the lower bound, the clock, and the previous placement.

    python benchmarks/prove/sched_placement.py [--sample]

Loads are the DeepSeek-V3 recordings where the folder of recorded data is present, else counts that come with the
package. Batches are drawn token by token with another seed than the search uses, and every map is judged by
`balance` on the same batches. Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from figures import figure, report, say  # noqa: E402  (the path above comes first)
from recordings import DEEPSEEK, GPT_OSS  # noqa: E402

from janus.sched import place, searching  # noqa: E402
from janus.sched.baselines import eplb_global  # noqa: E402
from janus.sched.judging import mean_a_max  # noqa: E402
from janus.sched.moving import keep  # noqa: E402
from janus.sched.popularity import popularity  # noqa: E402
from janus.types import Placement, RoutingTrace, read_expert_counts, sample  # noqa: E402

SIZES = (16, 64, 256)  # one map serves them all: the batch changes by the minute, the map does not
TOP_K = 8
SEED = 1_000_003  # of the batches; the search uses 0
Counts = dict[str, Any]


@dataclass(frozen=True)
class Loads:
    """Recorded counts [L, E] by name, and what is asked of their placements."""

    counts: Counts
    pools: tuple[int, ...]
    source: str

    @property
    def num_experts(self) -> int:
        return next(iter(self.counts.values())).shape[1]

    def shapes(self) -> list[tuple[int, int]]:
        """(G, R) with R = E + G, 1.25 E, 1.5 E."""
        E = self.num_experts
        return list(dict.fromkeys((G, R) for G in self.pools for R in (E + G, E * 5 // 4, E * 3 // 2)))


def recorded() -> Loads:
    path = DEEPSEEK
    if path.exists():
        with np.load(path) as file:
            return Loads({name: file[name][3:] for name in file}, (8, 16, 32), "DeepSeek-V3, 58 layers, 256 experts")
    packaged = read_expert_counts(sample("olmoe-mixtral-counts"))
    names = [f"olmoe/{domain}" for domain in ("arxiv", "book", "github", "wikipedia")]
    return Loads({n: packaged[n] for n in names}, (4, 8, 16), "OLMoE, 3 layers, 64 experts (DeepSeek-V3 is absent)")


def thinned(loads: Loads, stride: int, names: int) -> Loads:
    kept = list(loads.counts)[:names]
    return Loads({n: loads.counts[n][::stride] for n in kept}, loads.pools, loads.source)


class Judge:
    """Held-out batches of every recording and layer, and the mean exact a_max of maps on them."""

    def __init__(self, loads: Loads, how_many: int) -> None:
        self.batches: dict[tuple[str, int], list[Any]] = {}
        for (name, counts), B in itertools.product(loads.counts.items(), SIZES):
            rng = np.random.default_rng((SEED, B))
            self.batches[name, B] = [p.batches(B, how_many, rng) for p in popularity(counts, TOP_K)[0]]

    def a_max(self, placement: Placement, name: str, B: int) -> float:
        per_layer = zip(placement.slots, self.batches[name, B], strict=True)
        return float(np.mean([mean_a_max(slots, placement.num_experts, [ids]) for slots, ids in per_layer]))

    def all_sizes(self, placement: Placement, name: str) -> float:
        return float(np.mean([self.a_max(placement, name, B) for B in SIZES]))

    def bound(self, name: str, B: int, G: int) -> float:
        """Mean of ceil(active / G): no map can be below."""
        tops = [-(-len(np.unique(ids)) // G) for layer in self.batches[name, B] for ids in layer]
        return float(np.mean(tops))


def cells(loads: Loads, judge: Judge) -> list[dict[str, Any]]:
    """Every (recording, G, R, B): the lower bound, EPLB's map, the kinder variant, ours."""
    rows = []
    for (name, counts), (G, R) in itertools.product(loads.counts.items(), loads.shapes()):
        maps = {
            "eplb": eplb_global(counts, G, R // G),
            "kinder": place(counts, G, R // G, method="eplb"),
            "janus": place(counts, G, R // G, batch_sizes=SIZES, top_k=TOP_K),
        }
        for B in SIZES:
            tops = {method: judge.a_max(placement, name, B) for method, placement in maps.items()}
            rows.append({"name": name, "G": G, "R": R, "B": B, "bound": judge.bound(name, B, G), **tops})
            values = ", ".join(f"{m} {rows[-1][m]:.3f}" for m in ("bound", "eplb", "kinder", "janus"))
            say(f"{name} G={G} R={R} B={B}: {values}")
    return rows


def against_eplb(rows: list[dict[str, Any]], E: int, least: float) -> list[dict[str, Any]]:
    """`least` per cent below EPLB's map are asked for on average."""
    gain = np.array([1 - r["janus"] / r["eplb"] for r in rows])
    kinder = np.array([1 - r["janus"] / r["kinder"] for r in rows])
    room = np.array([r["eplb"] > 1.005 * r["bound"] for r in rows])
    worse = int((gain < 0).sum())
    mean, with_room = 100 * float(gain.mean()), 100 * float(gain[room].mean())
    note = (
        f"{len(rows) - room.sum()} of {len(rows)} cells leave no room: EPLB's map is within 0.5 % of ceil(active/G); "
        f"below the kinder method='eplb': {100 * kinder.mean():.2f} %"
    )
    spared = [r for r in rows if r["B"] >= 64 and r["R"] >= 1.25 * E]
    gap = 100 * float(np.mean([r["janus"] / r["bound"] - 1 for r in spared]))
    worst = max(spared, key=lambda r: r["janus"] / r["bound"])
    at = f"worst cell {worst['name']} G={worst['G']} R={worst['R']} B={worst['B']}: {worst['janus']:.2f} to {worst['bound']:.2f}"
    figures = [
        figure(
            "cells with a higher a_max than with EPLB's map",
            worse,
            "== 0",
            worse == 0,
            "cases",
            f"of {len(rows)} cells",
        ),
        figure(
            "a_max below EPLB's map, mean over cells with room",
            round(with_room, 2),
            ">= 5",
            with_room >= 5,
            "%",
            f"{room.sum()} cells, largest {100 * gain.max():.1f} %",
        ),
        figure("a_max below EPLB's map, mean over all cells", round(mean, 2), f">= {least}", mean >= least, "%", note),
        figure("a_max above ceil(active/G), B >= 64, R >= 1.25 E", round(gap, 2), "<= 2", gap <= 2, "%", at),
    ]
    for G, R in sorted({(r["G"], r["R"]) for r in rows}):
        small = [r for r in rows if (r["G"], r["R"], r["B"]) == (G, R, SIZES[0])]
        over = {m: 100 * np.mean([r[m] / r["bound"] - 1 for r in small]) for m in ("janus", "eplb")}
        name = f"a_max above ceil(active/G), B={SIZES[0]}, G={G}, R={R}"
        ok = over["janus"] <= over["eplb"]
        figures.append(figure(name, round(over["janus"], 1), f"<= eplb's {over['eplb']:.1f}", ok, "%"))
    return figures


def one_map_or_many(loads: Loads, judge: Judge) -> dict[str, Any]:
    """What a map made for the batch size at hand would add."""
    name, (G, R) = next(iter(loads.counts)), loads.shapes()[-2]
    counts = loads.counts[name]
    one = judge.all_sizes(place(counts, G, R // G, batch_sizes=SIZES, top_k=TOP_K), name)
    maps = {B: place(counts, G, R // G, batch_sizes=(B,), top_k=TOP_K) for B in SIZES}
    many = float(np.mean([judge.a_max(maps[B], name, B) for B in SIZES]))
    extra, note = 100 * (one / many - 1), f"{name}, G={G}, R={R}: one map {one:.3f}, three {many:.3f}"
    return figure("one map for all batch sizes above a map for each", round(extra, 2), "<= 1", extra <= 1, "%", note)


def deeper(loads: Loads, judge: Judge) -> dict[str, Any]:
    """What a search of many times the work adds: how near the usual one is to what such changes can reach."""
    name, counts = next(iter(loads.counts.items()))
    usual = searching.BATCHES, searching.STEPS, searching.PATIENCE
    means = []
    for effort in (usual, (16384, 10000, 1000)):
        searching.BATCHES, searching.STEPS, searching.PATIENCE = effort
        maps = [place(counts, G, R // G, batch_sizes=SIZES, top_k=TOP_K) for G, R in loads.shapes()[::3]]
        means.append(float(np.mean([judge.all_sizes(p, name) for p in maps])))
    searching.BATCHES, searching.STEPS, searching.PATIENCE = usual
    less = 100 * (1 - means[1] / means[0])
    note = (
        f"R = E + G, {len(counts)} layers; 10 times the batches, 5 times the changes: {means[0]:.3f} -> {means[1]:.3f}"
    )
    return figure("a_max that a search of 20 times the work takes off", round(less, 2), "<= 1", less <= 1, "%", note)


def replaced(loads: Loads, judge: Judge, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """From each recording's placement to each other's."""
    G, C = shape[0], shape[1] // shape[0]
    options: dict[str, Any] = {"batch_sizes": SIZES, "top_k": TOP_K}
    fresh = {name: place(counts, G, C, **options) for name, counts in loads.counts.items()}
    share, renamed, loss, stay = [], [], [], []
    for old, new in itertools.permutations(loads.counts, 2):
        placement = place(loads.counts[new], G, C, previous=fresh[old], **options)
        pairs = zip(fresh[new].slots, fresh[old].slots, strict=True)
        numbered = Placement(np.stack([keep(*pair) for pair in pairs]), placement.num_experts)
        moved, anew, kept = (p.moves(fresh[old]).total for p in (placement, fresh[new], numbered))
        tops = [judge.all_sizes(p, new) for p in (placement, fresh[old], fresh[new])]
        share.append(100 * moved / anew)
        renamed.append(100 * moved / kept)
        loss.append(100 * (tops[0] / tops[2] - 1))
        stay.append(100 * (tops[1] / tops[2] - 1))
        say(
            f"{old} -> {new}: {moved} slots, fresh {anew}, renumbered {kept}; loss {loss[-1]:.2f} %, unmoved {stay[-1]:.2f} %"
        )
    where = f"G={G}, R={shape[1]}, worst of {len(share)} ordered pairs"
    moves_note = f"{where}; mean {np.mean(share):.1f} %; of a renumbered fresh one at most {max(renamed):.1f} %"
    loss_note = f"{where}; mean {np.mean(loss):.2f} %; the old map as it is: {max(stay):.2f} %"
    return [
        figure("slots loaded with previous=, of a fresh placement's", round(max(share), 1), "<= 35", max(share) <= 35, "%", moves_note),
        figure("a_max above the fresh placement's", round(max(loss), 2), "<= 2", max(loss) <= 2, "%", loss_note),
    ]  # fmt: skip


def speed(loads: Loads) -> list[dict[str, Any]]:
    """Wall time for all layers of one recording on two cores, the slowest shape."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    counts, seconds = next(iter(loads.counts.values())), {}
    for G, R in loads.shapes():
        runs = []
        for _ in range(2):
            start = time.perf_counter()
            place(counts, G, R // G, batch_sizes=SIZES, top_k=TOP_K)
            runs.append(time.perf_counter() - start)
        seconds[G, R] = min(runs)
    slowest = max(seconds, key=lambda shape: seconds[shape])
    note = f"slowest of {len(seconds)} shapes: G={slowest[0]}, R={slowest[1]}; fastest {min(seconds.values()):.1f} s; 2 cores"
    value = round(seconds[slowest], 2)
    return [figure(f"place, {len(counts)} layers, compiled", value, "<= 5", value <= 5, "s", note)]


def compile_time() -> dict[str, Any]:
    """The first call ever on a machine: compiling, with nothing kept from before."""
    code = "import time, janus.sched as s; t = time.perf_counter(); s.place([3, 2, 1], 2, 2, top_k=1); print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    seconds = float(done.stdout)
    return figure(
        "first call on a machine, compiling", round(seconds, 1), "<= 60", seconds <= 60, "s", "once per machine"
    )


def real_routing(stride: int) -> list[dict[str, Any]]:
    """gpt-oss-20b, placed from half of the requests and judged on the other half."""
    path = GPT_OSS
    if not path.exists():
        return []
    ids = np.load(path)["topk"].astype(np.int16)[:, :, ::stride]
    train, test = (RoutingTrace(part.reshape(-1, *ids.shape[2:]), 32) for part in (ids[:96], ids[96:]))
    figures = []
    for B in (16, 64):
        rng = np.random.default_rng(SEED)
        batches = [layer.batches(B, 100, rng) for layer in popularity(test, 4)[0]]
        maps = {m: place(train, 8, 5, method=m, batch_sizes=(B,)) for m in ("janus", "coactivation", "eplb")}
        tops = {
            m: float(np.mean([mean_a_max(s, 32, [b]) for s, b in zip(p.slots, batches, strict=True)]))
            for m, p in maps.items()
        }
        best = min(tops["coactivation"], tops["eplb"])
        less = 100 * (1 - tops["janus"] / best)
        note = f"8 x 5 slots, other half of the requests; {', '.join(f'{m} {v:.3f}' for m, v in tops.items())}"
        name = f"gpt-oss-20b routing, B={B}: a_max below the better of eplb and coactivation"
        figures.append(figure(name, round(less, 2), ">= 0", less >= 0, "%", note))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="two recordings, few layers; seconds")
    few = parser.parse_args().sample
    loads = recorded()
    say(f"loads: {loads.source}")
    whole = thinned(loads, 20, 2) if few else loads
    figures = against_eplb(cells(whole, Judge(whole, 40 if few else 100)), loads.num_experts, least=3 if few else 5)
    part = whole if few else thinned(loads, 3, 4)
    judge = Judge(part, 40 if few else 100)
    figures.append(one_map_or_many(part, judge))
    if not few:
        some = thinned(part, 10, 1)
        figures.append(deeper(some, Judge(some, 200)))
    shapes = loads.shapes()
    for shape in (shapes[4],) if few else (shapes[4], shapes[7]):
        figures += replaced(part, judge, shape)
    figures += real_routing(12 if few else 2)
    figures += speed(thinned(loads, 8 if few else 1, 1))
    figures += [] if few else [compile_time()]
    for f in figures:
        f["note"] = f"{loads.source}; {f['note']}" if "gpt-oss" not in f["name"] else f["note"]
    report(figures)


if __name__ == "__main__":
    main()
