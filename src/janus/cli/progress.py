"""The one place for progress bars: on a terminal with rich installed, and silent otherwise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

Advance = Callable[[float], None]


@contextlib.contextmanager
def progress(what: str) -> Iterator[Advance]:
    """A bar on stderr for as long as the block runs; call the value with the fraction done, 0 to 1.

    Example:
        >>> with progress("simulating") as advance:
        ...     advance(0.5)
    """
    bar = _bar()
    if bar is None:
        yield lambda fraction: None
        return
    with bar:
        task = bar.add_task(what, total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


def _bar() -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        return None
    return Progress(console=Console(stderr=True), transient=True)
