"""Processes in the nodes of the test network: one nursery imports the module once and forks every rank.

Importing torch takes seconds of CPU per process; a fork takes milliseconds. The nursery runs nothing itself (no
threads, no collectives), so that ranks start clean. Ranks end with the nursery (PR_SET_PDEATHSIG), and it ends with
its owner: the kernel tells it by a signal and by the end of its socket, and it removes its temporary folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_PR_SET_PDEATHSIG = 1
_MESSAGE_BYTES = 1 << 17  # one request to the nursery
_IMPORT_S, _ANSWER_S = 120.0, 20.0
_GRACE_S = 5.0  # what the others get once a rank has failed


class TestbedError(RuntimeError):
    """The test network cannot be built, or a rank failed; the message says which and why."""

    __test__ = False


@dataclass(frozen=True)
class Outcome:
    """What one call came to on one rank: `value`, or `error` with its traceback or how the process ended."""

    rank: int
    seconds: float
    value: Any = None
    error: str = ""
    signal: int | None = None


class Nursery:
    """The parent of all ranks that share one module."""

    def __init__(self, module: str, *path: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        absent = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "JANUS_RENDEZVOUS")
        env = {name: value for name, value in os.environ.items() if name not in absent}
        words = [sys.executable, __file__, str(theirs.fileno()), str(os.getpid()), module, *path]
        with theirs:
            # a session of its own: an interrupt from the keyboard reaches the owner alone, which then ends the ranks
            self._process = subprocess.Popen(
                words,
                env=env | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            self._answer(_IMPORT_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it and all its ranks."""
        self._control.close()
        try:
            self._process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, do: str, fds: Sequence[int] = (), **request: Any) -> Any:
        """Send one request and return the answer."""
        try:
            socket.send_fds(self._control, [json.dumps({"do": do, **request}).encode()], fds)
        except OSError as error:
            raise TestbedError(f"the nursery of the ranks has ended ({error})") from error
        return self._answer(_ANSWER_S)

    def _answer(self, within_s: float) -> Any:
        self._control.settimeout(within_s)
        try:
            text = self._control.recv(_MESSAGE_BYTES)
        except TimeoutError:
            raise TestbedError(f"the nursery of the ranks gave no answer within {within_s:.0f} s") from None
        if not text:
            raise TestbedError("the nursery of the ranks has ended")
        answer = json.loads(text)
        if "error" in answer:
            raise TestbedError(f"the nursery of the ranks failed:\n{answer['error']}")
        return answer["value"]


class Ranks:
    """Live processes, one per rank; `call` runs a function of the module on all of them, as often as you like."""

    def __init__(self, nursery: Nursery, places: Sequence[tuple[str, dict[str, str]]], env: Mapping[str, str]) -> None:
        self._nursery, self.world = nursery, len(places)
        pairs = [socket.socketpair() for _ in places]
        self._sockets = [ours for ours, _ in pairs]
        places_json = [{"namespace": namespace, "env": {**own, **env}} for namespace, own in places]
        try:
            born = nursery.ask("spawn", [theirs.fileno() for _, theirs in pairs], places=places_json)
        finally:
            for _, theirs in pairs:
                theirs.close()
        self.pids: list[int] = born["pids"]
        self._folder = Path(born["folder"])
        self._ended: dict[int, str] = {}
        self._stopped: set[int] = set()
        self._call: tuple[float, float] | None = None  # start and deadline of the one that runs

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the ranks and remove their folder."""
        for connection in self._sockets:
            connection.close()
        with contextlib.suppress(TestbedError):  # without its nursery no rank lives, see PR_SET_PDEATHSIG
            self._nursery.ask("end", folder=str(self._folder))
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank; one stopped by SIGSTOP counts as done once all others are."""
        os.kill(self.pids[rank], number)  # its number is not used again before `close`: the nursery does not reap it
        if number == signal.SIGSTOP:
            self._stopped.add(rank)
        elif number == signal.SIGCONT:
            self._stopped.discard(rank)

    def call(self, function: str, *, deadline_s: float = 60.0, **args: Any) -> list[Any]:
        """Run `function(**args)` of the module on every rank at once; what each returned, in the order of ranks.

        Raises:
            TestbedError: a rank raised, ended, or gave no answer in time (it is killed then); names it.
        """
        self.start(function, deadline_s=deadline_s, **args)
        outcomes = self.finish(grace_s=_GRACE_S)
        failed = [outcome for outcome in outcomes if outcome.error]
        if failed:
            first = min(failed, key=lambda outcome: outcome.seconds)  # the others often fail because of it
            names = ", ".join(str(outcome.rank) for outcome in failed)
            raise TestbedError(f"{function} failed on rank {names}; first on rank {first.rank}:\n{first.error}")
        return [outcome.value for outcome in outcomes]

    def start(self, function: str, *, deadline_s: float = 60.0, **args: Any) -> None:
        """Begin a call on every rank and return at once; `finish` collects it."""
        if self._call is not None:
            raise TestbedError("a call is running: finish it first")
        if self._ended:
            raise TestbedError(f"rank {min(self._ended)} has ended, start new ranks: {self._ended[min(self._ended)]}")
        line = json.dumps({"function": function, "args": args, "deadline_s": deadline_s}) + "\n"
        now = time.monotonic()
        self._call = now, now + deadline_s
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # one that has ended meanwhile is told by `finish`
                connection.sendall(line.encode())

    def finish(self, grace_s: float | None = None) -> list[Outcome]:
        """What the running call came to on every rank; whatever still runs at its deadline is killed.

        Args:
            grace_s: seconds the others have once one rank has failed; None is until the deadline.
        """
        if self._call is None:
            raise TestbedError("no call is running: start one first")
        (started, deadline), self._call = self._call, None
        outcomes: dict[int, Outcome] = {}
        texts = [b""] * self.world
        with selectors.DefaultSelector() as ready:
            for rank, connection in enumerate(self._sockets):
                ready.register(connection, selectors.EVENT_READ, rank)
            while waiting := set(range(self.world)) - set(outcomes):
                left = deadline - time.monotonic()
                if left <= 0 or waiting <= self._stopped:
                    outcomes |= {rank: self._overdue(rank, started) for rank in waiting}
                    break
                for key, _ in ready.select(min(left, 0.2)):
                    rank = key.data
                    data = _read(self._sockets[rank])
                    texts[rank] += data
                    if data and not texts[rank].endswith(b"\n"):
                        continue
                    ready.unregister(self._sockets[rank])
                    outcomes[rank] = self._outcome(rank, texts[rank] if data else b"", time.monotonic() - started)
                    if outcomes[rank].error and grace_s is not None:
                        deadline = min(deadline, time.monotonic() + grace_s)
        return [outcomes[rank] for rank in range(self.world)]

    def _outcome(self, rank: int, line: bytes, seconds: float) -> Outcome:
        if line:
            return Outcome(rank, seconds, **json.loads(line))
        self._ended[rank], number = self._nursery.ask("state", pid=self.pids[rank])
        return Outcome(rank, seconds, error=self._ended[rank], signal=number)

    def _overdue(self, rank: int, started: float) -> Outcome:
        """Kill it; its own watchdog wrote where it was."""
        os.kill(self.pids[rank], signal.SIGKILL)
        self._nursery.ask("state", pid=self.pids[rank])  # which waits until it is dead
        seconds = time.monotonic() - started
        why = "stopped by a signal" if rank in self._stopped else "no answer in time"
        where = self._folder / f"hang{rank}"
        self._ended[rank] = (
            f"{why} ({seconds:.1f} s), killed; it was at:\n{where.read_text() if where.exists() else ''}"
        )
        return Outcome(rank, seconds, error=self._ended[rank], signal=signal.SIGKILL)


def enter_namespace(namespace: int) -> None:
    """Move this thread into the network namespace of an open file."""
    check(ctypes.CDLL(None, use_errno=True).setns(namespace, 0), "setns")


def check(result: int, call: str) -> None:
    """Turn the -1 of a C function into an OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except ConnectionError:
        return b""


def main() -> None:
    """The nursery: argv is its socket, the owner's process, the module and what goes before sys.path."""
    control, owner, module, *path = sys.argv[1:]
    _end_with(int(owner), signal.SIGTERM)
    sys.path[:0] = path
    with socket.socket(fileno=int(control)) as connection:
        connection.set_inheritable(False)
        try:
            imported = importlib.import_module(module)
        except BaseException:
            connection.send(json.dumps({"error": traceback.format_exc()}).encode()[-_MESSAGE_BYTES:])
            return
        # a handler that raised could do so in the middle of cleaning up; a byte in a pipe ends the wait for requests
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell)
        signal.signal(signal.SIGTERM, lambda *_: None)
        connection.send(b'{"value": "ready"}')
        _serve(connection, told, imported)


def _end_with(parent: int, number: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def _serve(control: socket.socket, told: int, module: ModuleType) -> None:
    """Obey until the owner has ended (or SIGTERM came), then end all ranks and remove their folders."""
    families: dict[str, list[int]] = {}
    try:
        while told not in select.select([control, told], [], [])[0]:
            text, fds, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 256)
            if not text:
                return
            request = json.loads(text)
            try:
                answer = {"value": _obey(families, module, fds, **request)}
            except Exception:
                answer = {"error": traceback.format_exc()}
            control.send(json.dumps(answer).encode())
    finally:
        for folder in list(families):
            _end(families, folder)


def _obey(families: dict[str, list[int]], module: ModuleType, fds: list[int], do: str, **request: Any) -> Any:
    if do == "spawn":
        return _spawn(families, module, fds, **request)
    if do == "state":
        return _state(**request)
    return _end(families, **request)


def _spawn(families: dict[str, list[int]], module: ModuleType, fds: list[int], places: list[dict]) -> dict:
    folder = tempfile.mkdtemp(prefix="janus-testbed-")
    pids = families[folder] = []
    for rank, (place, fd) in enumerate(zip(places, fds, strict=True)):
        common = {"RANK": str(rank), "WORLD_SIZE": str(len(places)), "JANUS_RENDEZVOUS": f"file://{folder}/store"}
        pids.append(_fork(module, place["namespace"], common | place["env"], fds[rank:], Path(folder, f"hang{rank}")))
        os.close(fd)
    return {"pids": pids, "folder": folder}


def _fork(module: ModuleType, namespace: str, env: dict[str, str], fds: list[int], hang: Path) -> int:
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.close(signal.set_wakeup_fd(-1))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _end_with(nursery, signal.SIGKILL)
        for other in fds[1:]:  # a rank's socket ends with the rank only if no other holds it
            os.close(other)
        os.dup2(2, 1)  # what ranks print is not what the owner prints
        place = os.open(namespace, os.O_RDONLY)
        enter_namespace(place)
        os.close(place)
        os.environ |= env
        with socket.socket(fileno=fds[0]) as control, hang.open("w") as where:
            _work(module, control, where)
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def _work(module: ModuleType, control: socket.socket, where: Any) -> None:
    """Answer calls until the owner closes the socket."""
    for line in control.makefile("r"):
        request = json.loads(line)
        deadline_s = request["deadline_s"]
        faulthandler.dump_traceback_later(max(deadline_s - 1, deadline_s / 2), file=where)  # a hang says where it is
        try:
            answer = json.dumps({"value": getattr(module, request["function"])(**request["args"])})
        except BaseException:
            answer = json.dumps({"error": traceback.format_exc()})
        faulthandler.cancel_dump_traceback_later()
        control.sendall(answer.encode() + b"\n")


def _state(pid: int) -> tuple[str, int | None]:
    """How a rank ended; it stays unreaped, so that its number means nobody else."""
    ended, give_up = None, time.monotonic() + _ANSWER_S / 2
    while ended is None:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None and time.monotonic() > give_up:
            return "it closed its connection to the owner", None
        time.sleep(0.01)
    if ended.si_code == os.CLD_EXITED:
        return f"the process ended with exit code {ended.si_status}", None
    return f"the process was ended by {signal.Signals(ended.si_status).name}", ended.si_status


def _end(families: dict[str, list[int]], folder: str) -> None:
    pids = families.pop(folder, [])
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
