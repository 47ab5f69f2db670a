"""What ties started processes to their launcher, so that nothing outlives it, not even after ``kill -9``.

A script of its own, run by path with ``python -I -S`` and the standard library alone, in two roles:

- ``run PARENT COMMAND...`` stands in front of each command: asks the kernel for SIGKILL when the launcher dies, then
  becomes the command. A script instead of ``preexec_fn``, because Python code between fork and exec can deadlock in
  a launcher that has threads.
- ``watch PARENT DIRECTORY MARKER`` outlives the launcher by a moment: once the launcher is gone it kills every process
  that carries the marker in its environment (so grandchildren too) and removes the directory.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(parent: int, command: list[str]) -> None:
    """Become `command`, to be killed by the kernel when `parent` dies; never returns.

    Args:
        parent: pid of the launcher, as the launcher knows it.
        command: program and arguments; the program is looked up in PATH.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request was in place
        os._exit(128 + signal.SIGKILL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and exec would pass that on
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(127)


def watch(parent: int, directory: str, marker: str) -> None:
    """Wait until `parent` closes our stdin or dies, then `sweep(marker)` and remove `directory`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the launcher, which we outlive
        signal.signal(number, signal.SIG_IGN)
    events: list[int] = [0]
    # A copy of the pipe in a process forked from the launcher would hide its death; a pidfd sees it all the same.
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # already gone, or an old kernel: the pipe tells
            events.append(os.pidfd_open(parent))
    if os.getppid() == parent:
        select.select(events, [], [])
    sweep(marker)
    shutil.rmtree(directory, ignore_errors=True)


def sweep(marker: str, timeout_s: float = 5.0) -> list[int]:
    """SIGKILL every other process whose environment holds the entry `marker`, until none is left.

    Args:
        marker: ``NAME=value``, unique to one launch.
        timeout_s: give up after this long (a process stuck in the kernel cannot be killed).

    Returns:
        Pids still alive at the end: [] unless it gave up, and always [] on systems without /proc.
    """
    give_up = time.monotonic() + timeout_s
    while (found := holders(marker)) and time.monotonic() < give_up:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return found


def holders(marker: str) -> list[int]:
    """Pids of the other living processes of this user whose environment holds `marker`."""
    if not os.path.isdir("/proc/self"):
        return []
    wanted = os.fsencode(marker)
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    entries = file.read().split(b"\0")
            except OSError:  # ended meanwhile, or another user's
                continue
            if wanted in entries:
                found.append(int(name))
    return found


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(int(sys.argv[2]), sys.argv[3:])
    else:
        watch(int(sys.argv[2]), sys.argv[3], sys.argv[4])
