"""A progress bar that a callback (done, total, what) moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def bar(console: Console, what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar while inside; gives the callback."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def moved(done: int, total: int, label: str) -> None:
            progress.update(task, completed=done, total=total, description=label or what)

        yield moved
