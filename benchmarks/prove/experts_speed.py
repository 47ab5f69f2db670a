"""Prove: one layer's experts on a CPU are never slower than transformers' and run near the speed of memory.

    python benchmarks/prove/experts_speed.py [--sample]

Qwen3-30B-A3B: H 2048, F 768, 128 experts, top-8; float32 and bfloat16. All ways run the same batches in the same rounds,
on experts that no call has read for four last-level caches; the bound is the bytes of the active experts over the best
read bandwidth seen in these rounds. Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from experts_cases import (
    COMPUTE,
    Case,
    Ids,
    Rotation,
    available_bytes,
    cache_bytes,
    inputs,
    layers_of,
    layers_wanted,
    ours,
    rivals,
    split,
)
from experts_timing import Readers, measure, peak_flops, row, threads, timed
from figures import figure, progress, report
from machine import machine
from shapes import MODELS

NAME = "qwen3-30b-a3b"
SIZES, STORAGES = (1, 4, 16, 64), ("float32", "bfloat16")
NEVER_SLOWER, FASTER, FEW_TOKENS, NEAR, FLAT = 1.0, 1.5, 4, 0.8, 1.10
HELD = (32, 128, 256)  # experts of layers whose batches activate equally many
SLACK = 5  # of a sample, which may run beside other work: it shows that the script works


def cells(storage: str, readers: Readers, sample: bool) -> list[dict[str, Any]]:
    """A row per B, every way in it."""
    case = Case(MODELS[NAME], storage, 32) if sample else Case.of(NAME, storage)
    room = {"cache": cache_bytes(), "available": available_bytes()}
    how_many = 1 if sample else layers_wanted(case.experts * case.held_bytes, **room)
    layers, flops = layers_of(case, how_many), peak_flops(COMPUTE[storage], size=256 if sample else 1024)
    ways, refused = ours(layers, storage)
    theirs, absent = rivals(layers)
    rotation, found, sizes = Rotation(how_many, case.experts), [], SIZES[::2] if sample else SIZES
    with progress(f"{storage}, {how_many} layers", len(sizes)) as step:
        for B in sizes:
            label, batches = case.batches(B, 9 if sample else 60)
            seconds = 1 if sample else 20
            seen = measure(case, ways[:1] + theirs, batches, rotation, readers, seconds=seconds)
            found.append(row(case, B, label, how_many, seen, readers, flops, refused | absent, ways[0].name))
            step(f"B={B}: {found[-1]['times_faster']} times as fast as {found[-1]['best_rival']}")
    return found


def judged(storage: str, rows: list[dict[str, Any]], slack: float) -> list[dict[str, Any]]:
    """The three bars of one storage."""
    where = f"{rows[0]['janus']}, {rows[0]['held']}; {rows[0]['routing']}; {machine()['cpu']}"
    faster = {r["B"]: r["times_faster"] for r in rows}
    shares = {r["B"]: r["bound_over_time"][r["janus"]] for r in rows if r["memory_bound"]}
    told = ", ".join(f"B={r['B']} {r['times_faster']}x {r['best_rival'].split()[-1]}" for r in rows)
    left = {f"{name}: {why}" for r in rows for name, why in r["left_out"].items() if "free" in why}
    told = "; ".join([told, *sorted(left)])
    few = {B: x for B, x in faster.items() if B <= FEW_TOKENS}
    figures = [
        at_least(f"{storage}: fastest way of transformers / janus, slowest B", faster, NEVER_SLOWER / slack, f"{told}; {where}"),
        at_least(f"{storage}: the same at B <= {FEW_TOKENS}", few, FASTER / slack, told),
    ]  # fmt: skip
    if shares:
        read = ", ".join(f"B={r['B']} {r['read_gb_s'][r['read_by']][1]} GB/s ({r['read_by']})" for r in rows)
        note = "bound over time: " + ", ".join(f"B={B} {x}" for B, x in shares.items()) + f"; read {read}"
        # a stall of the machine hits all ways of a round alike, but not the reader: a sample is not judged by this ratio
        near = NEAR if slack == 1 else None
        figures.append(at_least(f"{storage}: share of the bound where memory decides", shares, near, note))
    return figures


def at_least(name: str, by_size: dict[int, float], limit: float | None, note: str) -> dict[str, Any]:
    """A figure whose smallest value counts; reported where there is no limit."""
    value = min(by_size.values())
    if limit is None:
        return figure(name, value, "reported", True, "x", note)
    return figure(name, value, f">= {limit:g}", value >= limit, "x", note)


def flat(sample: bool) -> dict[str, Any]:
    """Time of as many active experts in layers of 32, 128 and 256: the same weights, cut differently, in turns."""
    held = tuple(E // 8 for E in HELD) if sample else HELD
    case, active, many = Case(MODELS[NAME], "bfloat16", held[-1]), held[0], 5 if sample else 60
    blocks = {name: p.detach() for name, p in layers_of(case, 1)[0].named_parameters()}
    ways = {E: ours(split(case.model, blocks, E), case.storage)[0][0] for E in held}
    x, weights = inputs(case, read(active, 0, held[-1])[1])
    ms: dict[int, list[float]] = {E: [] for E in held}
    rng, turn = np.random.default_rng(0), 0
    with progress("layers of several sizes", many) as step:
        for number in range(1 + many):  # the first is not counted: code is compiled
            for E in rng.permutation(held).tolist():
                layer, ids = read(active, turn % (held[-1] // active), E)
                took, turn = timed(ways[E].calls[layer], x, ids, weights), turn + 1
                ms[E] += [took] if number else []
            if number:
                step(", ".join(f"E={E} {times[-1]:.1f} ms" for E, times in ms.items()))
    middle = {E: float(np.median(times)) for E, times in ms.items()}
    worst, limit = max(middle.values()) / min(middle.values()), FLAT * (SLACK if sample else 1)
    note = f"{active} active experts: " + ", ".join(f"E={E} {t:.2f} ms" for E, t in middle.items())
    name = "bfloat16: slowest / fastest layer size, equally many active experts"
    return figure(name, round(worst, 3), f"<= {limit:.4g}", worst <= limit, "x", note)


def read(active: int, number: int, E: int) -> tuple[int, Ids]:
    """Layer and ids that read the weights of the `number`-th group of `active` experts, in layers of E.

    Groups are taken in a circle, whatever E is, so that no cache holds the next one.
    """
    first = number * active
    return first // E, (first % E + np.arange(active)).reshape(-1, min(8, active))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="few rounds, seconds")
    sample = parser.parse_args().sample
    threads()
    readers, figures = Readers(2**27) if sample else Readers(), []
    for storage in STORAGES:
        figures += judged(storage, cells(storage, readers, sample), SLACK if sample else 1)
    report([*figures, flat(sample)])


if __name__ == "__main__":
    main()
