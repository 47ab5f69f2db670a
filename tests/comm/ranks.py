"""Real processes for the layer-2 tests: one nursery imports torch once and forks the ranks of every scenario.

Importing torch takes seconds of CPU per process; a fork takes milliseconds. The nursery runs nothing itself (no
threads, no collectives), so that its children start clean. Every run has one deadline; whatever is left then, or when
the nursery or pytest ends in any way, is killed (PR_SET_PDEATHSIG and SIGKILL), stopped processes included.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SRC = HERE.parents[1] / "src"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """How one rank ended: `value` is what its scenario returned, `error` its traceback."""

    rank: int
    exit_code: int | None
    signal: int | None
    seconds: float
    value: Any = None
    error: str = ""


class Nursery:
    """The parent of all ranks; `run` starts one scenario on `world` ranks and waits for them.

    Scenarios are functions of `modules`, which lie in `folder`.
    """

    def __init__(self, folder: Path = HERE, modules: tuple[str, ...] = ("scenarios", "modes", "hazards")):
        env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(map(str, (SRC, folder, HERE.parents[1] / "benchmarks")))
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "JANUS_RENDEZVOUS"):
            env.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, scenario: str, world: int, *, deadline_s: float = 60.0, **args) -> list[Outcome]:
        request = {"scenario": scenario, "world": world, "deadline_s": deadline_s, "args": args}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the nursery has died"
        return [Outcome(**outcome) for outcome in json.loads(line)]

    def values(self, scenario: str, world: int, **args) -> list[Any]:
        """What every rank returned; a rank that failed fails the test with its traceback."""
        outcomes = self.run(scenario, world, **args)
        for outcome in outcomes:
            assert outcome.exit_code == 0, f"rank {outcome.rank}: {outcome}\n{outcome.error}"
        return [outcome.value for outcome in outcomes]

    def close(self):
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()
        self._process.wait(10)


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)  # an interrupt also removes the temporary folder
    known = {}
    for name in sys.argv[1:]:  # imports torch, once
        known |= vars(importlib.import_module(name))
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory(prefix="janus-comm-") as folder:
            outcomes = _run(known, Path(folder), **request)
        print(json.dumps(outcomes), flush=True)
    os._exit(0)  # nothing is left to tidy up, and taking down what was imported takes seconds


def _run(known, folder: Path, scenario: str, world: int, deadline_s: float, args: dict) -> list[dict]:
    started = time.monotonic()
    pids = {_spawn(known, folder, scenario, world, rank, args, deadline_s): rank for rank in range(world)}
    outcomes, killed_at = {}, None
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            rank = pids.pop(pid)
            outcomes[rank] = _outcome(folder, rank, status, time.monotonic() - started)
            continue
        late = time.monotonic() - started > deadline_s
        # what is stopped never ends by itself: once all others have, it is done
        stopped = all((folder / f"stopped{rank}").exists() for rank in pids.values())
        if (late or stopped) and killed_at is None:
            killed_at = time.monotonic()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [outcomes[rank] for rank in range(world)]


def _spawn(known, folder: Path, scenario: str, world: int, rank: int, args: dict, deadline_s: float) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "JANUS_RENDEZVOUS": f"file://{folder}/store"}
        os.environ["SCENARIO_FOLDER"] = str(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # stdout belongs to the nursery
        where = (folder / f"error{rank}").open("w")
        faulthandler.dump_traceback_later(max(deadline_s - 2, 1), file=where)  # a hang says where it is
        value = known[scenario](**args)
        (folder / f"value{rank}").write_text(json.dumps(value))
        code = 0
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())
    os._exit(code)


def _outcome(folder: Path, rank: int, status: int, seconds: float) -> dict:
    by_signal = os.WIFSIGNALED(status)
    value, error = folder / f"value{rank}", folder / f"error{rank}"
    return {
        "rank": rank,
        "exit_code": None if by_signal else os.WEXITSTATUS(status),
        "signal": os.WTERMSIG(status) if by_signal else None,
        "seconds": seconds,
        "value": json.loads(value.read_text()) if value.exists() else None,
        "error": error.read_text() if error.exists() else "",
    }


if __name__ == "__main__":
    main()
