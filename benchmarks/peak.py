"""Peak anonymous memory of this process: RssAnon sampled by a thread (the kernel keeps no peak of it).

Started before anything heavy is imported, so that loading counts too. Mapped file pages are not anonymous: the kernel
drops them when memory is short, so a mapped checkpoint costs nothing here.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

EVERY_S = 0.005


class Peak:
    """Samples from its making until `stop`; `.bytes` is the largest value seen."""

    def __init__(self) -> None:
        self.bytes = rss_anon()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.bytes = max(self.bytes, rss_anon())
            time.sleep(EVERY_S)

    def stop(self) -> int:
        """End the sampling; returns the peak in bytes."""
        self.bytes = max(self.bytes, rss_anon())
        self._stop.set()
        self._thread.join()
        return self.bytes


def rss_anon() -> int:
    """Anonymous resident bytes of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon line; this needs Linux >= 4.5")
