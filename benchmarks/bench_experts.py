"""Bench: the experts of one layer by every way of Janus and of transformers that runs on this CPU, beside the memory's bound.

    python benchmarks/bench_experts.py [--shapes NAME ...] [--dtypes NAME ...] [--batches B ...] [--rounds N] [--seconds S]
                                       [--uniform] [--sample] [--json FILE]

All ways run the same batches in the same rounds, in random order, on the same weights; every call gets experts that none
has read for at least four last-level caches (or as many as fit in memory), so no cache helps. Times are 10th, 50th and
90th percentile over rounds, on all cores. The bound is the bytes of the active experts over the best read bandwidth seen
in these rounds (a compiled sum in numba, torch's sum). "int8" and "fp8" are stored so by Janus; the ways of transformers
run the same experts in bfloat16 there. A layer of more than 3.3 GB is cut to the slots of one instance. The whole grid
takes half an hour and writes benchmarks/results/experts_cpu.json; a part of it writes out/experts_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import progress, say
from machine import ROOT, provenance

sys.path.insert(0, str(ROOT / "src"))

from experts_cases import (
    COMPUTE,
    FAMILIES,
    Case,
    Rotation,
    available_bytes,
    cache_bytes,
    layers_of,
    layers_wanted,
    ours,
    rivals,
)
from experts_timing import Readers, measure, peak_flops, row, threads

BATCHES = (1, 4, 16, 64, 256, 1024)
ROUNDS, SECONDS = 40, 4.0
Rows = list[dict[str, Any]]


def block(case: Case, readers: Readers, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one model and storage, which share their weights."""
    wanted = {"cache": cache_bytes(), "available": available_bytes()}
    how_many = 1 if options.sample else layers_wanted(case.experts * case.held_bytes, **wanted)
    layers = layers_of(case, how_many)
    flops = peak_flops(COMPUTE[case.storage], size=256 if options.sample else 1024)
    janus, absent = ours(layers, case.storage)
    theirs, refused = rivals(layers)
    rotation = Rotation(how_many, case.experts)
    for B in options.batches:
        label, batches = case.batches(B, options.rounds, uniform=options.uniform)
        seen = measure(case, janus + theirs, batches, rotation, readers, seconds=options.seconds)
        yield row(case, B, label, how_many, seen, readers, flops, absent | refused, janus[0].name if janus else None)


HEAD = ("B", "active", "tokens\n/expert", "bound\nms", "way", "p10\nms", "p50\nms", "p90\nms", "bound\n/time", "n")


def lines(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of one row of the bench, a line per way; the first names what all share."""
    mark = "" if found["memory_bound"] else " c"  # limited by compute, not by memory
    shared = (
        str(found["B"]),
        f"{found['active']:.1f}",
        f"{found['tokens_per_expert']:.1f}{mark}",
        short(found["bound_ms"]),
    )
    out = []
    for name, (low, middle, high) in sorted(found["ms"].items(), key=lambda pair: pair[1][1]):
        star = " *" if name == found["janus"] else ""
        share = f"{found['bound_over_time'][name]:.2f}"
        times = map(short, (low, middle, high))
        out.append((*shared, name + star, *times, share, str(found["samples"][name])))
        shared = ("",) * len(shared)
    return out


def short(ms: float) -> str:
    """Three digits, never an exponent."""
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def show(title: str, cells: list[tuple[str, ...]]) -> None:
    """A table of one block: by rich where it is installed, else plain."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        print(title)
        print(plain(cells), flush=True)
        return
    table = Table(title=title, title_justify="left")
    for head in HEAD:
        table.add_column(head, justify="left" if head == "way" else "right")
    for line in cells:
        table.add_row(*line)
    Console(width=120).print(table, soft_wrap=True)


def plain(cells: list[tuple[str, ...]]) -> str:
    """The same table without rich."""
    table = [tuple(head.replace("\n", " ") for head in HEAD), *cells]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEAD))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in table)


def title(rows: Rows) -> str:
    """What the rows of one block share, and what was left out."""
    first = rows[0]
    left_out = sorted({f"{name}: {why}" for r in rows for name, why in r["left_out"].items() if "free" in why})
    held = f"{first['model']}, {first['storage']}, {first['held']}; layers in turn: {first['layers']}"
    marks = f"* is compute='auto'; c: limited by compute, beyond the ridge of {first['ridge']:g} tokens per expert"
    return "\n".join([held, first["routing"], marks, *left_out])


def measured(cases: list[Case], options: argparse.Namespace) -> Rows:
    """All rows, shown as they come."""
    found: Rows = []
    readers = Readers(2**27) if options.sample else Readers()
    with progress("bench", len(cases) * len(options.batches)) as step:
        for case in cases:
            here: Rows = []
            for each in block(case, readers, options):
                here.append(each)
                step(f"{case.model.name} {case.storage} B={each['B']}")
            show(title(here), [line for each in here for line in lines(each)])
            found += here
    return found


def write(path: Path, rows: Rows, options: argparse.Namespace) -> None:
    """Provenance and rows, a row a line."""
    about = {
        "command": "python benchmarks/bench_experts.py",
        "mode": "sample" if options.sample else "full",
        **provenance(),
        "threads": options.threads,
        "cache_mib": cache_bytes() >> 20,
        "batches": list(options.batches),
    }
    text = ",\n".join(json.dumps(each, separators=(",", ":")) for each in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1)[:-2] + f',\n "rows": [\n{text}\n]}}\n')


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", choices=list(COMPUTE), default=list(COMPUTE), metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), metavar="B")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at most, per cell (%(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one cell, about (%(default)s)")
    parser.add_argument("--uniform", action="store_true", help="every expert equally likely")
    parser.add_argument("--sample", action="store_true", help="one layer of 8 experts, few rounds: seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows go")
    options = parser.parse_args(words)
    whole = parser.parse_args([])
    part = any(getattr(options, n) != getattr(whole, n) for n in ("shapes", "dtypes", "batches", "uniform", "sample"))
    options.json = options.json or ROOT / ("out" if part else "benchmarks/results") / "experts_cpu.json"
    if options.sample:
        options.rounds, options.seconds = min(options.rounds, 4), min(options.seconds, 0.5)
    return options


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases asked for; a sample takes eight experts of each."""
    cases = [Case.of(name, storage) for name in options.shapes for storage in options.dtypes]
    return [Case(c.model, c.storage, min(c.experts, 8)) for c in cases] if options.sample else cases


def main() -> None:
    options = arguments()
    options.threads = threads()
    rows = measured(chosen(options), options)
    write(options.json, rows, options)
    say(f"{len(rows)} rows in {options.json}")


if __name__ == "__main__":
    main()
