"""Measure what the documentation claims: run the parts of one area, keep their figures, print one table.

A part is a script `benchmarks/prove/<area>_<name>.py`. It takes `--sample` (small, for CI), reports progress on
stderr, and its last line on stdout is one JSON object: {"figures": [{"name", "value", "bar", "ok", "unit", "note"}]}.
A part whose figures all met their bars is not run again until the code it measures, the part or the mode changes
(kept in `.prove/`), so an interrupted run goes on where it stopped.

Exit code: 0 every figure met its bar; 1 a figure missed its bar; 2 a part crashed, ran out of time or printed no
figures; 3 the command line names something unknown.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import provenance

ROOT = Path(__file__).resolve().parents[1]
# What a figure may depend on besides its own script: the code measured and shared shapes, models and versions.
MEASURED = ("src", "benchmarks", "examples", "constraints.txt")
FIELDS: dict[str, tuple[type, ...]] = {"name": (str,), "value": (int, float, str), "bar": (str,), "ok": (bool,)}


class Unknown(Exception):
    """The command line names an area or a part that does not exist; the message lists the known ones."""


class Malformed(Exception):
    """A part's output is not what the module docstring says."""


@dataclass(frozen=True)
class Part:
    """One script of an area."""

    area: str
    name: str
    script: Path


@dataclass(frozen=True)
class Result:
    """What came of one part: its figures, or the reason there are none."""

    part: str
    figures: tuple[dict[str, Any], ...] = ()
    failure: str = ""
    seconds: float = 0.0
    cached: bool = False

    @property
    def good(self) -> bool:
        return not self.failure and all(figure["ok"] for figure in self.figures)


def find_parts(root: Path, area: str, only: str = "") -> list[Part]:
    """The parts of `area` in order of their names; `only` keeps one of them."""
    folder = root / "benchmarks" / "prove"
    found = [Part(*path.stem.split("_", 1), path) for path in sorted(folder.glob("[a-z]*_*.py"))]
    areas = sorted({part.area for part in found})
    if area not in areas:
        raise Unknown(f"AREA must be one of {', '.join(areas) or '(none yet)'}; got {area!r}")
    parts = [part for part in found if part.area == area]
    names = [part.name for part in parts]
    if only and only not in names:
        raise Unknown(f"ONLY must be one of {', '.join(names)} in area {area}; got {only!r}")
    return [part for part in parts if only in ("", part.name)]


def tracked(root: Path) -> list[Path]:
    """Files a figure may depend on, other parts excepted; in git's view where there is one."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *MEASURED]
    listing = subprocess.run(git, cwd=root, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        files = [root / name for name in listing.stdout.split("\0") if name]
    else:  # a source archive: no git
        files = [
            f for name in MEASURED for f in [root / name, *(root / name).rglob("*")] if "__pycache__" not in f.parts
        ]
    others = (root / "benchmarks" / "prove").glob("[a-z]*_*.py")
    return sorted({f for f in files if f.is_file()} - set(others) - {root / "benchmarks" / "prove.py"})


def tree_state(root: Path) -> str:
    """Digest of everything `tracked`, by content: committed or not makes no difference."""
    digest = hashlib.sha256(platform.python_version().encode())
    for path in tracked(root):
        digest.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def cache_file(root: Path, part: Part, state: str, sample: bool) -> Path:
    key = hashlib.sha256(state.encode() + part.script.read_bytes()).hexdigest()[:16]
    mode = "sample" if sample else "full"
    return root / ".prove" / f"{part.area}_{part.name}.{mode}.{key}.json"


def parse(stdout: str) -> tuple[dict[str, Any], ...]:
    """The figures on the last line of a part's stdout, checked field by field."""
    last = (stdout.strip().splitlines() or [""])[-1]
    try:
        figures = json.loads(last)["figures"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise Malformed(f'the last line must be {{"figures": [...]}}, got {last[:120]!r}') from None
    if not isinstance(figures, list) or not figures:
        raise Malformed("figures must be a list of at least one figure")
    return tuple(_checked(figure) for figure in figures)


def _checked(figure: Any) -> dict[str, Any]:
    if not isinstance(figure, dict):
        raise Malformed(f"a figure must be an object, got {figure!r}")
    for field, kinds in FIELDS.items():
        value = figure.get(field)
        # bool is an int in Python, yet no measurement
        if not isinstance(value, kinds) or (field == "value" and isinstance(value, bool)):
            raise Malformed(f"figure field {field!r} must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
    if isinstance(figure["value"], float) and not math.isfinite(figure["value"]):
        raise Malformed(f"figure {figure['name']!r} has no finite value: {figure['value']}")
    return {"unit": "", "note": "", **figure}


def run_part(root: Path, part: Part, *, sample: bool, timeout_s: float) -> Result:
    """Run one script in a process group of its own, which is gone when this returns."""
    command = [sys.executable, str(part.script), *(["--sample"] if sample else [])]
    path = os.pathsep.join(filter(None, (str(root / "src"), os.environ.get("PYTHONPATH"))))
    started = time.monotonic()
    child = subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        stdout, _ = child.communicate(timeout=timeout_s)
        failure = f"exit code {child.returncode}" if child.returncode else ""
    except subprocess.TimeoutExpired:
        stdout, failure = "", f"no result within {timeout_s:.0f} s"
    finally:
        _end_group(child)
    seconds = time.monotonic() - started
    if failure:
        return Result(part.name, failure=failure, seconds=seconds)
    try:
        return Result(part.name, parse(stdout), seconds=seconds)
    except Malformed as error:
        return Result(part.name, failure=str(error), seconds=seconds)


def _end_group(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):  # every process of the part ended by itself
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout:
        child.stdout.close()


def run_area(root: Path, parts: list[Part], args: argparse.Namespace) -> Iterator[Result]:
    """One result per part: kept from an earlier run where nothing changed, else measured now."""
    state, deadline = tree_state(root), time.monotonic() + args.budget_s
    for number, part in enumerate(parts, 1):
        title = f"[{number}/{len(parts)}] {part.area} {part.name}"
        kept, left = cache_file(root, part, state, args.sample), deadline - time.monotonic()
        if kept.exists() and not args.fresh:
            result = Result(part.name, tuple(json.loads(kept.read_text())["figures"]), cached=True)
        elif left <= 0:
            result = Result(part.name, failure=f"not started, the {args.budget_s:g} s are used up; run again to go on")
        else:
            say(f"{title} ...")
            result = run_part(root, part, sample=args.sample, timeout_s=min(args.part_timeout_s, left))
            keep(kept, result)
        say(f"{title}: {outcome(result)}")
        yield result


def keep(path: Path, result: Result) -> None:
    """Remember figures that all met their bars, in place of those of an older state; forget the rest."""
    for stale in path.parent.glob(f"{path.name.rsplit('.', 2)[0]}.*"):
        stale.unlink()
    if result.good:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"figures": result.figures}))


def outcome(result: Result) -> str:
    if result.failure:
        return f"FAILED, {result.failure}"
    missed = sum(not figure["ok"] for figure in result.figures)
    said = (
        f"{missed} of {len(result.figures)} figures missed their bars"
        if missed
        else f"{len(result.figures)} figures ok"
    )
    return f"{said} ({'unchanged, kept' if result.cached else f'{result.seconds:.1f} s'})"


def table(results: list[Result]) -> str:
    """All figures, one a row, columns as wide as their widest cell."""
    rows = [("part", "figure", "value", "unit", "bar", "ok", "note")]
    for result in results:
        rows += [
            (result.part, f["name"], shown(f["value"]), f["unit"], f["bar"], "yes" if f["ok"] else "NO", f["note"])
            for f in result.figures
        ]
        if result.failure:
            rows.append((result.part, "(no figures)", "", "", "", "NO", result.failure))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]  # the note runs free
    lines = [
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]) for row in rows
    ]
    lines.insert(1, "-" * max(len(line.rstrip()) for line in lines))
    return "\n".join(line.rstrip() for line in lines)


def shown(value: int | float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_report(root: Path, area: str, results: list[Result], *, sample: bool, only: str) -> Path:
    """`out/prove-<area>.json`; a sample or a single part goes beside it and never over it."""
    suffix = (f"-{only}" if only else "") + ("-sample" if sample else "")
    report = {
        "area": area,
        "mode": "sample" if sample else "full",
        **provenance(root),
        "parts": [vars(result) | {"figures": list(result.figures)} for result in results],
    }
    path = root / "out" / f"prove-{area}{suffix}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("area", nargs="?", default="", help="which figures to measure; left out, the areas are listed")
    parser.add_argument("--only", default="", metavar="NAME", help="one part of the area")
    parser.add_argument("--sample", action="store_true", help="the small form, seconds instead of minutes")
    parser.add_argument("--fresh", action="store_true", help="measure again what has not changed")
    parser.add_argument("--part-timeout-s", type=float, default=1800, help="longest time of one part (%(default)s)")
    parser.add_argument("--budget-s", type=float, default=3600, help="longest time of the area (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run one area and report; returns the exit code."""
    args = arguments(argv)
    try:
        parts = find_parts(root, args.area, args.only)
    except Unknown as error:
        say(f"prove: {error}")
        return 3
    results = list(run_area(root, parts, args))
    path = write_report(root, args.area, results, sample=args.sample, only=args.only)
    print(table(results))
    figures = [figure for result in results for figure in result.figures]
    failed = sum(bool(result.failure) for result in results)
    met = sum(figure["ok"] for figure in figures)
    print(
        f"{met} of {len(figures)} figures met their bars; {failed} of {len(results)} parts failed; {path.relative_to(root)}"
    )
    if failed:
        return 2
    return 0 if met == len(figures) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit, so that the part's processes are ended too
    sys.exit(main())
