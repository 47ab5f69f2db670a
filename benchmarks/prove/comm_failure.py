"""100 ranks killed or stopped: does every survivor name the right one, in time, and leave nothing behind?

Six processes over gloo, two attention nodes and two expert nodes of unequal size, `Exchange` alone. One rank, a
different one from trial to trial, is sent SIGKILL or SIGSTOP by the parent: in `begin`, before and in the middle of a
layer, between steps, while everybody closes, or at a random moment of an endless run of large messages.

The clock starts at the signal; in a pause of the attention side it starts when the next step begins, or when somebody
closes, since nothing is waited for before. It stops on each survivor with the error, or with the return of `close()`.
`step_s` and `close_s` are both 2 s, so one bar holds for all: the deadline + 1 s. A kill is mostly seen at once; a rank
that was in the middle of a message then may see it only at its own deadline.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # imported once; the ranks are forks
from figures import figure, progress, report, say

from janus.comm import Exchange, Timeouts, rendezvous
from janus.comm.layout import REGIMES
from janus.errors import PeerLost
from janus.types import Topology

TOPOLOGY = Topology(attention=((0, 1), (2,)), experts=((3, 4), (5,)))
WORLD, SLOTS, TOP_K = TOPOLOGY.world_size, 2, 2
STEP_S, MARGIN_S = 2.0, 1.0
PHASES = ("begin", "before", "between", "idle", "closing", "transfer")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
TRIALS, SAMPLE_EVERY, SEED = 100, 10, 4
SMALL, LARGE = (4, 64), (64, 32768)  # rows of a rank and H: 1 KiB a message, and 8 MiB: more than a socket holds
PAUSE_S = 0.8
HANG_S = 15.0  # after the signal; far beyond every bar
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Trial:
    """One victim; `delay_s` goes by between the victim's word that it is there and the signal."""

    phase: str
    signal: signal.Signals
    victim: int
    regime: str
    gate: str
    delay_s: float

    @property
    def name(self) -> str:
        return f"{self.signal.name} of rank {self.victim}, {self.phase}, {self.regime}, gate {self.gate}"


def trials() -> list[Trial]:
    """Every phase x signal x victim once, then more of the random moments; regimes and gates dealt evenly."""
    rng = random.Random(SEED)
    plan = list(itertools.product(PHASES, SIGNALS, range(WORLD)))
    extra = list(itertools.product(("transfer", "begin", "closing"), SIGNALS, range(WORLD)))
    rng.shuffle(extra)
    plan += extra[: TRIALS - len(plan)]
    deck = list(itertools.product(REGIMES, ("experts", "attention"))) * TRIALS
    deck = deck[:TRIALS]
    rng.shuffle(deck)
    longest = {"begin": 0.003, "closing": 0.003, "idle": PAUSE_S / 2, "transfer": 0.6}
    return [
        Trial(phase, sig, victim, *ways, rng.uniform(0, longest.get(phase, 0)))
        for (phase, sig, victim), ways in zip(plan, deck, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help=f"every {SAMPLE_EVERY}th trial")
    parser.add_argument("--only", default="", help="trials whose name holds this")
    args = parser.parse_args()
    chosen = [t for t in trials()[:: SAMPLE_EVERY if args.sample else 1] if args.only in t.name]
    torch.set_num_threads(1)
    verdicts: list[Verdict] = []
    with progress("trials", len(chosen)) as step:
        for trial in chosen:
            verdicts.append(run(trial))
            step(trial.name)
    report(figures(verdicts))


# -- one rank ----------------------------------------------------------------------------------------------------------


class Rank:
    """What one rank does in a trial: steps for ever, until the victim is lost or everybody closes."""

    def __init__(self, trial: Trial, rank: int, tell: int) -> None:
        self._trial, self._rank, self._tell = trial, rank, tell
        self._victim = rank == trial.victim
        self._b, self._h = LARGE if trial.phase == "transfer" else SMALL
        self._paused = 0.0  # when this rank went on after the pause, or began to close

    def run(self) -> dict[str, Any]:
        """How this rank ended, seconds of `time.monotonic`, and what it left open."""
        limits = Timeouts(rendezvous_s=30, step_s=STEP_S, idle_s=600, close_s=STEP_S)
        rendezvous(TOPOLOGY, limits)
        before = sockets()
        sizes = {"top_k": TOP_K, "slots_per_instance": SLOTS, "gate": self._trial.gate, "regime": self._trial.regime}
        ex = Exchange(
            TOPOLOGY, hidden_size=self._h, dtype="float32", max_tokens=self._b, timeouts=limits, **sizes
        )  # fmt: skip
        ex.share("up", 1)
        said: dict[str, Any] = {"peer": -1, "phase": "close", "layer": -1}
        try:
            self._steps(ex)
            self._paused = time.monotonic()
        except PeerLost as error:
            said = {"peer": error.peer, "phase": error.phase, "layer": error.layer, "detail": error.detail}
            said["ended"] = time.monotonic()
        ex.close()
        said.setdefault("ended", time.monotonic())
        return said | {"paused": self._paused, "left": settle(before)}

    def _steps(self, ex: Exchange) -> None:
        phase, attention = self._trial.phase, ex.role == "attention"
        for step in itertools.count():
            second = step == 1
            if phase == "idle" and second:
                self._at("idle")
                time.sleep(PAUSE_S if attention else 0.0)
                self._paused = time.monotonic()
            if second:
                self._at("transfer", "begin")
            if phase == "closing" and second:
                # half the victims die on the way into the good-bye, the others somewhere in it
                self._at("closing", hold=self._trial.delay_s < 0.0015)
                if attention:
                    return
            if ex.begin(self._b if attention else None).closed:
                return
            for layer in range(2):
                at: Callable[..., None] = self._at if second and layer else lambda *_: None
                at("before")
                self._layer(ex, layer, lambda: at("between"))  # noqa: B023

    def _layer(self, ex: Exchange, layer: int, between: Callable[[], None]) -> None:
        if ex.role == "expert":
            x_all, handle = ex.receive()
            between()
            ex.reply(x_all, handle)
            return
        rng = torch.Generator().manual_seed(layer)
        ids = torch.randint(0, SLOTS * TOPOLOGY.n_experts, (self._b, TOP_K), generator=rng)
        choices = {"physical_ids": ids, "weights": torch.ones(self._b, TOP_K)} if ex.gate == "attention" else {}
        handle = ex.dispatch(torch.ones(self._b, self._h), layer=layer, **choices)
        between()
        ex.combine(handle)

    def _at(self, *phases: str, hold: bool = True) -> None:
        """The victim says that it is there; where the signal is meant for this very point, it waits for it."""
        if self._victim and self._trial.phase in phases:
            os.write(self._tell, b"!")
            if hold and self._trial.phase in ("before", "between", "closing"):
                time.sleep(HANG_S)


def sockets() -> int:
    """Sockets that this process holds open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:  # the folder listing itself
            continue
    return count


def settle(before: int) -> list[str]:
    """What is still open after close; gloo's own loop closes sockets a moment later."""
    give_up = time.monotonic() + 3
    while True:
        left = ["socket"] * (sockets() - before)
        left += [t.name for t in threading.enumerate() if t is not threading.main_thread()]
        if not left or time.monotonic() > give_up:
            return left
        time.sleep(0.01)


# -- the parent --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the survivors of one trial made of it."""

    trial: Trial
    late_s: float  # of the last survivor: after the signal for a kill, after the deadline for a stop
    right: int
    hung: int
    left: int
    processes: int


def run(trial: Trial) -> Verdict:
    """Fork the ranks, send the signal, wait for the survivors, end the victim."""
    hear, tell = os.pipe()
    with tempfile.TemporaryDirectory(prefix="janus-prove-") as name:
        folder = Path(name)
        pids = {rank: spawn(trial, rank, folder, tell) for rank in range(WORLD)}
        os.close(tell)
        try:
            if not select.select([hear], [], [], 60)[0] or not os.read(hear, 1):
                raise RuntimeError(f"{trial.name}: the victim never came to its point\n{errors(folder)}")
            time.sleep(trial.delay_s)
            os.kill(pids[trial.victim], trial.signal)
            signalled = time.monotonic()
            others = {rank: pid for rank, pid in pids.items() if rank != trial.victim}
            hung = wait(others, signalled + HANG_S)
        finally:
            os.close(hear)
            for pid in pids.values():
                end(pid)
        return judge(trial, folder, signalled, len(hung), sum(Path(f"/proc/{pid}").exists() for pid in pids.values()))


def spawn(trial: Trial, rank: int, folder: Path, tell: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD), "JANUS_RENDEZVOUS": f"file://{folder}/store"}
        os.dup2(os.open(str(folder / f"error{rank}"), os.O_WRONLY | os.O_CREAT), 2)
        said = Rank(trial, rank, tell).run()
        (folder / f"said{rank}").write_text(json.dumps(said))
        code = 0
    except BaseException as error:
        os.write(2, f"rank {rank}: {type(error).__name__}: {error}\n".encode())
    os._exit(code)


def wait(pids: dict[int, int], give_up: float) -> dict[int, int]:
    """Reap until all have ended; returns those that have not in time."""
    left = dict(pids)
    while left and time.monotonic() < give_up:
        for rank, pid in list(left.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del left[rank]
        time.sleep(0.01)
    return left


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):  # it has ended and is reaped
        return


def errors(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("error*")))


def allowed(sig: signal.Signals) -> float:
    """Seconds: the deadline + 1 s for both, counted from the signal for a kill and from the deadline for a stop."""
    return MARGIN_S + (STEP_S if sig == signal.SIGKILL else 0.0)


def judge(trial: Trial, folder: Path, signalled: float, hung: int, processes: int) -> Verdict:
    """A survivor is right if it names the victim; while closing, also if it left without having missed anybody."""
    said = {int(p.name.removeprefix("said")): json.loads(p.read_text()) for p in folder.glob("said*")}
    said = {rank: words for rank, words in said.items() if rank != trial.victim}
    may_leave = trial.phase == "closing"
    wrong = {r: w for r, w in said.items() if w["peer"] != trial.victim and not (may_leave and w["peer"] == -1)}
    starts = [said[rank]["paused"] for rank in TOPOLOGY.attention_ranks if rank in said]
    start = signalled
    if trial.phase in ("idle", "closing") and starts:
        start = max(signalled, min(starts))
    deadline = STEP_S if trial.signal == signal.SIGSTOP else 0.0
    late = {rank: words["ended"] - start - deadline for rank, words in said.items()}
    slowest = max(late.values(), default=HANG_S)
    if (
        wrong
        or hung
        or len(said) < WORLD - 1
        or slowest > allowed(trial.signal)
        or any(w["left"] for w in said.values())
    ):
        say(
            f"{trial.name}, {1000 * trial.delay_s:.1f} ms, slowest {slowest:.2f} s: {json.dumps(said)}\n{errors(folder)}"
        )
    return Verdict(trial, slowest, len(said) - len(wrong), hung, sum(len(w["left"]) for w in said.values()), processes)


def figures(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    n, survivors = len(verdicts), len(verdicts) * (WORLD - 1)
    found = [figure("trials", n, "all", n > 0, note=f"{WORLD} ranks, regimes {', '.join(REGIMES)}, both gates")]
    hangs = sum(v.hung for v in verdicts)
    found.append(figure("survivors that hang", hangs, "0", not hangs, "ranks", f"of {survivors}"))
    right = sum(v.right for v in verdicts)
    found.append(figure("survivors that name the right rank", f"{right}/{survivors}", "all", right == survivors, "ranks",
                        "while closing: or leave in time"))  # fmt: skip
    for sig, what in ((signal.SIGKILL, "killed: after the signal"), (signal.SIGSTOP, "stopped: after the deadline")):
        late = sorted((v.late_s, v.trial.name) for v in verdicts if v.trial.signal == sig)
        if late:
            (worst, name), bar_s = late[-1], allowed(sig)
            note = f"middle of {len(late)} trials {late[len(late) // 2][0]:.2f} s; worst: {name}"
            found.append(figure(f"{what}, last survivor", round(worst, 2), f"<= {bar_s:g}", worst <= bar_s, "s", note))
    left, processes = sum(v.left for v in verdicts), sum(v.processes for v in verdicts)
    found.append(figure("sockets and threads left after close", left, "0", not left))
    found.append(figure("processes left", processes, "0", not processes))
    return found


if __name__ == "__main__":
    main()
