"""SIGTERM inside `last_words`: time for the error that explains it, and an end all the same."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from janus.cli.last_words import last_words

SOURCE = str(Path(__file__).parents[2] / "src")
TOLD = """
import os, signal, threading, time
from janus.cli.last_words import last_words
with last_words({grace}):
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    {wait}
    print("said", flush=True)
raise SystemExit(3)
"""


def run(grace: float, wait: str) -> tuple[int, str, float]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", TOLD.format(grace=grace, wait=wait)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": SOURCE}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, time.monotonic() - start


def test_an_error_that_comes_in_time_is_told():
    assert run(20.0, "time.sleep(0.6)")[:2] == (3, "said\n")


def test_a_rank_that_has_nothing_to_say_ends_with_the_grace():
    # A lock is waited for in C code, where no Python signal handler runs: the case of a wait in gloo.
    code, out, seconds = run(0.5, "lock = threading.Lock(); lock.acquire(); lock.acquire()")
    assert (code, out) == (128 + signal.SIGTERM, "")
    assert seconds < 20


def test_outside_everything_is_as_before():
    handler = signal.getsignal(signal.SIGTERM)
    threads = threading.active_count()
    with last_words(5.0):
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.set_wakeup_fd(-1) == -1
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
