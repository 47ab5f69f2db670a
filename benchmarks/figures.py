"""What measuring scripts share: a figure with its bar, progress on stderr, the middle and the spread of times."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

PRINTED_EVERY_S = 10.0  # without a terminal: a line now and then, so that a log stays short


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def figure(name: str, value: Any, bar: str, ok: bool, unit: str = "", note: str = "") -> dict[str, Any]:
    """One figure as `prove.py` reads it, told on stderr as soon as it is known."""
    say(f"{'ok  ' if ok else 'MISS'} {name}: {value} {unit} (bar: {bar})")
    return {"name": name, "value": value, "bar": bar, "ok": bool(ok), "unit": unit, "note": note}


def report(figures: list[dict[str, Any]]) -> None:
    """The last line of a part."""
    print(json.dumps({"figures": figures}))


def spread(times: Sequence[float]) -> list[float]:
    """10th, 50th and 90th percentile, to a tenth."""
    return [round(float(q), 1) for q in np.percentile(times, [10, 50, 90])]


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """Call the value with a few words after each of `total` steps: a bar on a terminal with rich, lines elsewhere."""
    bar = _bar()
    if bar is None:
        yield _lines(what, total)
        return
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda words: bar.update(task, advance=1, description=f"{what}: {words}")


def _lines(what: str, total: int) -> Callable[[str], None]:
    done, last = 0, time.monotonic()

    def step(words: str) -> None:
        nonlocal done, last
        done += 1
        if done == total or time.monotonic() - last > PRINTED_EVERY_S:
            last = time.monotonic()
            say(f"{what}: {done} of {total}, {words}")

    return step


def _bar() -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        return None
    return Progress(console=Console(stderr=True), transient=True)
