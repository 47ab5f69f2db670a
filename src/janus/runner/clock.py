"""Where the time of a rank went: seconds and calls per named phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Accumulates wall time per phase; phases do not nest.

    Example:
        >>> clock = Clock()
        >>> with clock.phase("route"):
        ...     pass
        >>> clock.calls["route"], clock.seconds["route"] >= 0
        (1, True)
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`, also when it ends by an exception."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
            self.calls[name] += 1

    def to_dict(self) -> dict[str, float]:
        """Seconds by phase, in the order first seen."""
        return {name: round(value, 6) for name, value in self.seconds.items()}
