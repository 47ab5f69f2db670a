"""GPU: measures cuts of the experts' kernels around the rule's; `--write` puts the best into the tuning table.

    python benchmarks/gpu/experts_tune.py --write [--seconds 3600] [--only qwen3-30b]

Without `--write` nothing changes, and the figures say what tuning would bring. One field is changed at a time, and a
change that pays is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

import on_gpu
import torch
from experts_on_gpu import CASES, TINY, Case, batch, layers
from figures import figure, progress, report, spread
from machine import provenance

from janus.experts import tuning
from janus.experts.device import TritonEngine
from janus.experts.tuning import Cut, Problem, cut_to, key_of, rule

SIZES = (1, 8, 64, 256, 1024)
CHOICES: dict[str, tuple[Any, ...]] = {
    "columns": (32, 64, 128, 256), "depth": (64, 128), "stages": (2, 3, 4, 5, 6), "warps": (4, 8),
    "split": (1, 2, 4), "rows": (16, 32, 64, 128), "group": (1, 8), "early": (False, True),
}  # fmt: skip
PAYS = 0.98  # a change must save 2 % to be kept
CALLS, REPLAYS = 8, 15


def neighbours(cut: Cut) -> Iterator[Cut]:
    """All cuts that differ in one field."""
    for field, values in CHOICES.items():
        for value in values:
            if field in ("columns", "depth", "stages", "warps"):
                for side in ("up", "down"):
                    changed = dataclasses.replace(getattr(cut, side), **{field: value})
                    yield dataclasses.replace(cut, **{side: changed})
            else:
                yield dataclasses.replace(cut, **{field: value})


def timed(made: list[Any], batches: list[Any], cut: Cut) -> float:
    """Microseconds of a call; infinite where the GPU or the compiler does not take the cut."""
    turns: list[Any] = list(range(2 if on_gpu.DEVICE == "cpu" else CALLS))
    engines = [TritonEngine(slots, cut) for slots in made]
    try:
        return spread(on_gpu.in_graph(lambda i: engines[i % len(engines)](*batches[i]), turns, REPLAYS))[1]
    except Exception:  # whatever Triton, its compiler or the GPU says of a cut they do not take
        return float("inf")


def tuned(made: list[Any], batches: list[Any], start: Cut, end: float) -> tuple[Cut, float, float]:
    """(best cut, its time, the rule's) by changes of one field, until the time is up."""
    best, seen = start, {start: timed(made, batches, start)}
    for other in neighbours(start):
        # what has changed meanwhile stays changed
        fields = {
            f.name: getattr(other, f.name)
            for f in dataclasses.fields(Cut)
            if getattr(other, f.name) != getattr(start, f.name)
        }
        candidate = merged(best, start, fields)
        if candidate in seen or time.monotonic() > end:
            continue
        seen[candidate] = timed(made, batches, candidate)
        if seen[candidate] < PAYS * seen[best]:
            best = candidate
    return best, seen[best], seen[start]


def merged(best: Cut, start: Cut, fields: dict[str, Any]) -> Cut:
    """`best` with one more change; `fields` are those in which the changed start differs."""
    for side in ("up", "down"):
        if side in fields:
            old, new = getattr(start, side), fields[side]
            one = {
                f.name: getattr(new, f.name)
                for f in dataclasses.fields(new)
                if getattr(new, f.name) != getattr(old, f.name)
            }
            fields = fields | {side: dataclasses.replace(getattr(best, side), **one)}
    return dataclasses.replace(best, **fields)


def problem_of(case: Case, engine: TritonEngine, B: int) -> Problem:
    """Sizes as the engine sees them."""
    stored = engine.slots.get_parameter("down_proj").dtype.itemsize
    return Problem(
        B,
        case.model.top_k,
        case.experts,
        case.model.hidden,
        case.model.inner,
        2,
        stored,
        2,
        engine._processors,
        engine._shared,
    )


def write(found: dict[str, Cut]) -> None:
    """Put cuts into the table, beside those it has."""
    said = json.loads(tuning.TABLE.read_text())
    where = provenance()
    said["measured"] = f"{where['when']} on {where['machine']['gpus']}, {where['versions']}, commit {where['commit']}"
    said["cuts"] |= {key: cut_to(cut) for key, cut in found.items()}
    tuning.TABLE.write_text(json.dumps(said, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="small: seconds")
    parser.add_argument("--write", action="store_true", help="rewrite the tuning table")
    parser.add_argument("--seconds", type=float, default=40.0, help="for everything (%(default)s)")
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    cases = TINY if args.sample else [case for case in CASES if case.name.startswith(args.only)]
    if not args.write and not args.sample:
        cases = cases[:1]
    sizes = (2,) if args.sample else SIZES if args.write else (1, 64)
    end, left = time.monotonic() + (5 if args.sample else args.seconds), len(cases) * len(sizes)
    found, figures = {}, []
    with progress("tune", left) as step:
        for case in cases:
            made = layers(case, on_gpu.DEVICE)
            for B in sizes:
                batches = [batch(case, B, on_gpu.DEVICE, seed) for seed in range(CALLS)]
                engine = TritonEngine(made[0])
                problem = problem_of(case, engine, B)
                share = time.monotonic() + (end - time.monotonic()) / left
                best, us, usual = tuned(made, batches, rule(problem), share)
                found[key_of(problem, engine._capability, engine.form)] = best
                note = f"{us} us against {usual}; best {cut_to(best)}"
                figures.append(
                    figure(
                        f"rule / best cut, {case.name}, B={B}", round(usual / max(us, 0.1), 2), "none", True, "x", note
                    )
                )
                left -= 1
                step(f"{case.name}, B={B}")
            if on_gpu.DEVICE != "cpu":
                torch.cuda.empty_cache()
    if args.write:
        write(found)
    report(figures)


if __name__ == "__main__":
    main()
