"""Time to say whom one lost: torchrun ends all ranks by SIGTERM as soon as one of them dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_S = 3.0  # a closed connection is understood within a second; torchrun waits 30 s before SIGKILL


@contextmanager
def last_words(seconds: float = GRACE_S) -> Iterator[None]:
    """Inside, SIGTERM ends this process after `seconds` instead of at once, also while it waits in C code.

    A rank whose peer was killed is in a wait that fails within that time; it raises, is told to the user, and the
    process ends by itself. Main thread only.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_end_later, args=(read, seconds), daemon=True, name="janus-last-words").start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(before_fd)
        os.close(write)  # the thread reads the end of the pipe and goes


def _end_later(read: int, seconds: float) -> None:
    while number := os.read(read, 1):
        if number[0] == signal.SIGTERM:
            time.sleep(seconds)
            os._exit(128 + signal.SIGTERM)
    os.close(read)
