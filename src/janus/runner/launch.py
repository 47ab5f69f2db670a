"""Starts one process per rank on this machine, streams their output, and leaves nothing behind.

Every process leads a session of its own; `janus.runner.leash` says how it is tied to the launcher. One thread does
it all: a selector over the pipes and a look at the processes every 50 ms.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from janus.errors import JanusError
from janus.runner import leash

OnLine = Callable[[int, str, str], None]

TERM_S = 2.0  # from SIGTERM to SIGKILL: enough to print a traceback
KILL_S = 10.0  # from SIGKILL to giving up on a process that is stuck in the kernel
POLL_S = 0.05
CHUNK = 1 << 16  # bytes per read, and the longest line that is passed on in one piece
DRAIN = 32  # reads per pipe at the end: twice the largest pipe (1 MiB), so that nobody who keeps writing holds us
TAIL_LINES, TAIL_WIDTH = 50, 2000
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "JANUS_RENDEZVOUS")


@dataclass(frozen=True)
class Ended:
    """How the process of one rank ended.

    Args:
        rank: 0 .. world_size - 1.
        exit_code: what it returned; None when a signal ended it.
        signal: the signal that ended it; None when it returned.
        seconds: from its start to its end.
        tail: its last lines, stdout and stderr in order of arrival: at most 50, each cut to 2000 characters.
        killed_by_us: the launcher told it to end (SIGTERM, then SIGKILL): deadline, or the failure of another rank.
    """

    rank: int
    exit_code: int | None
    signal: int | None
    seconds: float
    tail: tuple[str, ...]
    killed_by_us: bool

    @property
    def ok(self) -> bool:
        """It ended by itself with exit code 0."""
        return self.exit_code == 0 and not self.killed_by_us


def launch(
    command: Sequence[str],
    world_size: int,
    *,
    deadline_s: float,
    grace_s: float = 5.0,
    env: Mapping[str, str] | None = None,
    on_line: OnLine | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> list[Ended]:
    """Run `world_size` copies of `command` on this machine and wait until all have ended.

    Each copy sees RANK, LOCAL_RANK, WORLD_SIZE and ``JANUS_RENDEZVOUS=file://<temporary folder>/store``; unless set by
    the caller also ``GLOO_SOCKET_IFNAME=lo``, OMP_NUM_THREADS (cores / world_size, at least 1) and PYTHONUNBUFFERED.
    Once a copy ends abnormally, the others have `grace_s` to end by themselves; then, as at the deadline, whoever
    still runs gets SIGTERM, and 2 s later SIGKILL. On every way out (return, error, Ctrl-C, SIGTERM, even
    SIGKILL of the launcher) the processes, their descendants and the temporary folder are gone.

    Args:
        command: program and arguments, no shell; a relative path to the program starts at this process's folder.
        world_size: number of copies, >= 1.
        deadline_s: seconds for everything together, > 0.
        grace_s: seconds the others have after the first failure, >= 0.
        env: variables added to this process's own environment; may not set the four that the launcher sets.
        on_line: called as ``on_line(rank, "stdout" | "stderr", line)`` in this thread; undecodable bytes become
            U+FFFD, lines over 64 KiB come in pieces. An exception from it ends the launch and is raised.
        cwd: folder to run in; default this process's.

    Returns:
        One `Ended` per rank, in order of rank.

    Raises:
        JanusError: ``launch.command``, ``launch.world_size``, ``launch.deadline``, ``launch.grace``, ``launch.env``,
            ``launch.cwd``, ``launch.start`` (the system refused another process).

    Example:
        >>> [e.exit_code for e in launch(["sh", "-c", "exit $RANK"], 2, deadline_s=10)]
        [0, 1]
    """
    command = _checked_command(command)
    _check_surroundings(env, cwd)
    _check_numbers(world_size, deadline_s, grace_s)
    crew: list[_Rank] = []
    with _signals_raise(), _rendezvous() as store, selectors.DefaultSelector() as pipes:
        deadline = time.monotonic() + deadline_s
        try:
            for rank in range(world_size):
                crew.append(_Rank(rank, command, _environment(rank, world_size, store, env), cwd, pipes))
            _attend(crew, pipes, deadline, grace_s, on_line)
            _drain(pipes, on_line)
        finally:  # after an error nobody runs on, and nobody is asked for more output
            _attend(crew, pipes, time.monotonic(), 0.0, None)
            for key in list(pipes.get_map().values()):
                key.data.file.close()
    return [rank.ended() for rank in crew]


class _Rank:
    """One started process: its pipes, its last lines, how it ended."""

    def __init__(
        self,
        rank: int,
        command: Sequence[str],
        env: dict[str, str],
        cwd: str | os.PathLike[str] | None,
        pipes: selectors.BaseSelector,
    ) -> None:
        tied = [sys.executable, "-I", "-S", leash.__file__, "run", str(os.getpid()), *command]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self.rank, self.started = rank, time.monotonic()
        self.returncode: int | None = None
        self.seconds, self.told_to_end = 0.0, False
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        try:
            self.process = subprocess.Popen(
                tied, env=env, cwd=cwd, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise JanusError("launch.start", f"rank {rank} could not be started: {error}; ask for fewer") from error
        for name, file in (("stdout", self.process.stdout), ("stderr", self.process.stderr)):
            assert file is not None  # PIPE was asked for
            pipes.register(file, selectors.EVENT_READ, _Stream(self, name, file))

    def running(self) -> bool:
        """Look, without waiting; at its end also end the rest of its process group and reap it."""
        if self.returncode is None:
            seen = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if seen is not None:
                self.send(signal.SIGKILL)  # before reaping, while its number cannot have been given to anyone else
                self.returncode = self.process.wait()
                self.seconds = time.monotonic() - self.started
        return self.returncode is None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a zombie
            os.killpg(self.process.pid, number)

    def ended(self) -> Ended:
        code = -signal.SIGKILL if self.returncode is None else self.returncode  # None: stuck in the kernel
        seconds = self.seconds or time.monotonic() - self.started
        exit_code, number = (code, None) if code >= 0 else (None, -code)
        return Ended(self.rank, exit_code, number, seconds, tuple(self.tail), self.told_to_end)


class _Stream:
    """One pipe of one rank, cut into lines."""

    def __init__(self, owner: _Rank, name: str, file: IO[bytes]) -> None:
        self.owner, self.name, self.file = owner, name, file
        self.rest = b""

    def read(self, on_line: OnLine | None) -> bool:
        """Pass on the lines that have arrived; False at the end of the stream."""
        data = os.read(self.file.fileno(), CHUNK)
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        if len(self.rest) >= CHUNK or (self.rest and not data):  # too long, or the last without an end
            lines.append(self.rest)
            self.rest = b""
        for raw in lines:
            line = raw.decode("utf-8", errors="replace").rstrip("\r")
            self.owner.tail.append(line[:TAIL_WIDTH])
            if on_line is not None:
                on_line(self.owner.rank, self.name, line)
        return bool(data)


def _attend(
    crew: list[_Rank], pipes: selectors.BaseSelector, stop_at: float, grace_s: float, on_line: OnLine | None
) -> None:
    """Stream until nobody runs; from `stop_at`, or `grace_s` after the first failure, make them end."""
    term_at = kill_at = math.inf
    failed = False
    while alive := [rank for rank in crew if rank.running()]:
        now = time.monotonic()
        if not failed and any(rank.returncode for rank in crew):
            failed, stop_at = True, min(stop_at, now + grace_s)
        if now >= stop_at and term_at == math.inf:
            term_at, kill_at = now, now + TERM_S
            _tell(alive, signal.SIGTERM)
        if now >= kill_at:
            _tell(alive, signal.SIGKILL)
            if now >= kill_at + KILL_S:
                return
        _stream(pipes, POLL_S, on_line)


def _tell(alive: list[_Rank], number: signal.Signals) -> None:
    for rank in alive:
        rank.told_to_end = True
        rank.send(number)


def _stream(pipes: selectors.BaseSelector, timeout_s: float, on_line: OnLine | None) -> bool:
    """One read from each pipe that has something; False when none had. Waits at most `timeout_s`."""
    if not pipes.get_map():
        time.sleep(timeout_s)
        return False
    ready = pipes.select(timeout_s)
    for key, _ in ready:
        if not key.data.read(on_line):
            pipes.unregister(key.fileobj)
            key.data.file.close()
    return bool(ready)


def _drain(pipes: selectors.BaseSelector, on_line: OnLine | None) -> None:
    """What is still in the pipes once nobody runs."""
    for _ in range(DRAIN):
        if not (pipes.get_map() and _stream(pipes, POLL_S, on_line)):
            return


@contextlib.contextmanager
def _rendezvous() -> Iterator[str]:
    """A temporary folder as ``file://.../store``, watched by a process that also cleans up after our own death."""
    folder = tempfile.mkdtemp(prefix="janus-")
    store = f"file://{folder}/store"
    marker = f"JANUS_RENDEZVOUS={store}"
    watcher = None
    try:
        command = [sys.executable, "-I", "-S", leash.__file__, "watch", str(os.getpid()), folder, marker]
        # An outer launch must not take this watcher for one of its ranks: it goes without the outer marker.
        env = {name: value for name, value in os.environ.items() if name != "JANUS_RENDEZVOUS"}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        watcher = subprocess.Popen(command, env=env, stdin=pipe, stdout=null, stderr=null, start_new_session=True)
        yield store
    finally:
        try:
            leash.sweep(marker)  # descendants that left their process group
            shutil.rmtree(folder, ignore_errors=True)
        finally:  # also when a second Ctrl-C hits the lines above: then the watcher does them
            if watcher is not None:
                assert watcher.stdin is not None  # PIPE was asked for
                watcher.stdin.close()
                watcher.wait()


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit while we run, where they would have ended the process without clean-up."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    ours = threading.current_thread() is threading.main_thread()
    changed = [n for n in numbers if ours and signal.getsignal(n) == signal.SIG_DFL]

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in changed:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _environment(rank: int, world_size: int, store: str, extra: Mapping[str, str] | None) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // world_size)
    defaults = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    ours = dict(zip(OURS, (str(rank), str(world_size), str(rank), store), strict=True))
    return {**defaults, **os.environ, **(extra or {}), **ours}


def _checked_command(command: Sequence[str]) -> list[str]:
    if isinstance(command, (str, bytes)) or not command or not all(_is_word(word) for word in command):
        raise JanusError("launch.command", f"command must be a non-empty list of strings without NUL, got {command!r}")
    program = shutil.which(command[0])
    if program is None:
        raise JanusError("launch.command", f"no program {command[0]!r} found; give its path, or install it")
    return [os.path.abspath(program), *command[1:]]


def _check_surroundings(env: Mapping[str, str] | None, cwd: str | os.PathLike[str] | None) -> None:
    if cwd is not None and not Path(cwd).is_dir():
        raise JanusError("launch.cwd", f"cwd must be an existing folder, got {os.fspath(cwd)!r}")
    for name, value in (env or {}).items():
        if not (_is_word(name) and _is_word(value)) or not name or "=" in name:
            raise JanusError("launch.env", f"env must map names to strings, got {name!r}: {value!r}")
        if name in OURS:
            raise JanusError("launch.env", f"{', '.join(OURS)} are set by the launcher; leave {name} out of env")


def _check_numbers(world_size: int, deadline_s: float, grace_s: float) -> None:
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise JanusError("launch.world_size", f"world_size must be an integer >= 1, got {world_size!r}")
    if not (_is_number(deadline_s) and deadline_s > 0):
        raise JanusError("launch.deadline", f"deadline_s must be a finite number of seconds > 0, got {deadline_s!r}")
    if not (_is_number(grace_s) and grace_s >= 0):
        raise JanusError("launch.grace", f"grace_s must be a finite number of seconds >= 0, got {grace_s!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value
