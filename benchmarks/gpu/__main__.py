"""Everything that needs a GPU, in one command: the GPU tests and the GPU benchmarks of the library, in 8 minutes.

    python benchmarks/gpu [--out FOLDER] [--only NAME] [--sample] [--interpret] [--commit TEXT]

Parts run one after another, each in processes of its own with a deadline; one that fails or runs late stops no other.
The last lines are a table and how many bars were met; FOLDER/gpu.json holds the same with machine, driver, versions and
commit. --interpret tries the suite itself where there is no GPU: small, slow, and no figure of it says anything.

Exit code: 0 every part ran and every bar was met; 1 a bar was missed; 2 a part failed; 3 the command line names
something unknown; 4 there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import ROOT, provenance  # (the path above comes first)
from prove import Part, Result, outcome, run_part, say, table

FOLDER = Path(__file__).resolve().parent
TOTAL_S = 470  # of all parts together
DEADLINES_S = {  # in the order they run; what is compiled once serves the parts after it
    "sched_compile": 120,
    "experts_compile": 90,
    "tests": 120,
    "experts_equal": 60,
    "experts_speed": 110,
    "experts_tune": 50,
    "comm_local": 60,
    "sched_ids": 90,
    "sched_speed": 90,
    "sched_cut": 60,
    "sched_sanitizer": 90,
}


def find_parts(only: str) -> list[Part]:
    """All parts, or the one named."""
    return [Part("gpu", name, FOLDER / f"{name}.py") for name in DEADLINES_S if only in ("", name)]


def run_all(parts: list[Part], *, sample: bool) -> Iterator[Result]:
    """Each part within its deadline and what is left of the whole."""
    end = time.monotonic() + TOTAL_S
    for number, part in enumerate(parts, 1):
        limit = min(DEADLINES_S[part.name], end - time.monotonic())
        say(f"[{number}/{len(parts)}] {part.name} ...")
        if limit < 1:
            result = Result(part.name, failure=f"not started, the {TOTAL_S} s are used up; run it alone with --only")
        else:
            result = run_part(ROOT, part, sample=sample, timeout_s=limit)
        say(f"[{number}/{len(parts)}] {part.name}: {outcome(result)}")
        yield result


def report(results: list[Result], commit: str, mode: str) -> dict[str, Any]:
    """What is written."""
    where = provenance()
    if commit:
        where["commit"] = commit
    parts = [vars(result) | {"figures": list(result.figures)} for result in results]
    return {"mode": mode, **where, "parts": parts}


def summary(results: list[Result]) -> tuple[str, int]:
    """The last line and the exit code."""
    figures = [figure for result in results for figure in result.figures]
    met, failed = sum(figure["ok"] for figure in figures), [r.part for r in results if r.failure]
    words = f"{met} of {len(figures)} bars met; {len(failed)} of {len(results)} parts failed"
    missed = [figure["name"] for figure in figures if not figure["ok"]]
    words += (f"; missed: {', '.join(missed)}" if missed else "") + (f"; failed: {', '.join(failed)}" if failed else "")
    return words, 2 if failed else 1 if missed else 0


def has_device() -> str:
    """Why there is none; empty when there is one."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder of gpu.json (%(default)s)")
    parser.add_argument("--only", default="", metavar="NAME", help=f"one of {', '.join(DEADLINES_S)}")
    parser.add_argument("--sample", action="store_true", help="small: seconds a part")
    parser.add_argument("--interpret", action="store_true", help="try the suite on a machine without a GPU")
    parser.add_argument("--commit", default="", metavar="TEXT", help="of a copy without its repository")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run and report; returns the exit code."""
    args = arguments(argv)
    if args.only and args.only not in DEADLINES_S:
        say(f"gpu: --only must be one of {', '.join(DEADLINES_S)}; got {args.only!r}")
        return 3
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    elif reason := has_device():
        say(f"gpu: {reason}; run this on a machine with an NVIDIA GPU (--interpret tries the suite without one)")
        return 4
    mode = "interpreter" if args.interpret else "sample" if args.sample else "full"
    results = list(run_all(find_parts(args.only), sample=args.sample or args.interpret))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "gpu.json"
    path.write_text(json.dumps(report(results, args.commit, mode), indent=1) + "\n")
    print(table(results))
    words, code = summary(results)
    print(f"{words}; {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
