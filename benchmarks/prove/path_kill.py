"""kill -9 of every rank in turn, in the middle of `janus run`: what the survivors say, how soon, and what is left.

A victim is killed a random moment after all ranks said they were ready, so over the runs it dies in any phase. Every
survivor must end with an error that names the victim and the phase within the step deadline + 2 s, and no process may
be left. Under torchrun, which itself ends all ranks as soon as one dies, each survivor's last words must be that error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

STEP_S = 5.0
TOPOLOGY, WORLD = "2A2E", 4
GIVE_UP_S = 120.0
LOST = re.compile(r"rank (\d+) lost rank (\d+) in phase (\w+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="one attention and one expert rank")
    sample = parser.parse_args().sample
    victims = [(rank, gate, False) for gate in ("experts", "attention") for rank in range(WORLD)]
    victims += [(1, "experts", True), (2, "attention", True)]
    victims = [(0, "experts", False), (3, "experts", False)] if sample else victims
    with tempfile.TemporaryDirectory(prefix="janus-prove-") as name:
        folder = tiny.save("mixtral", Path(name, "model"), max_position_embeddings=8192)
        prompts = Path(name, "prompts.json")
        prompts.write_text(json.dumps(tiny.prompts(6, longest=40)))
        runs = [Run(folder, prompts, *victim).watch() for victim in victims]
    print(json.dumps({"figures": [figure for run in runs for figure in run.figures()]}))


@dataclass
class Run:
    """One `janus run` with one victim, started by its own launcher or by torchrun."""

    folder: Path
    prompts: Path
    victim: int
    gate: str
    torchrun: bool
    lines: list[str] = field(default_factory=list)
    ended_s: dict[int, float] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)

    def watch(self) -> Run:
        """Start, wait until all ranks serve, kill, and note when everyone else is gone."""
        print(self.name, file=sys.stderr)
        starter = ["torch.distributed.run", "--nproc-per-node", str(WORLD), "-m"] if self.torchrun else []
        command = [
            sys.executable, "-m", *starter, "janus.cli", "run", str(self.folder), "--topology", TOPOLOGY, "--gpus-per-node", "2",
            "--gate", self.gate, "--prompts", str(self.prompts), "--max-new-tokens", "8000", "--step-timeout", str(STEP_S),
        ]  # fmt: skip
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            pids = self._wait_ready(process, out)
            time.sleep(random.Random(f"{self.victim}{self.gate}").uniform(0.2, 1.5))
            os.kill(pids[self.victim], signal.SIGKILL)
            killed = time.monotonic()
            others = {rank: pid for rank, pid in pids.items() if rank != self.victim}
            while (others or process.poll() is None) and time.monotonic() < killed + GIVE_UP_S:
                for rank in [rank for rank, pid in others.items() if not alive(pid)]:
                    self.ended_s[rank] = time.monotonic() - killed
                    del others[rank]
                time.sleep(0.02)
            self.left = [pid for pid in [*pids.values(), process.pid] if alive(pid)]
            process.kill()
            process.wait()
            out.seek(0)
            self.lines = out.read().splitlines()
        return self

    def _wait_ready(self, process: subprocess.Popen[bytes], out: Any) -> dict[int, int]:
        give_up = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up and process.poll() is None:
            out.seek(0)
            ready = sum("ready in" in line for line in out.read().splitlines())
            if ready == WORLD:
                return ranks_of(process.pid)
            time.sleep(0.1)
        out.seek(0)
        raise RuntimeError(f"the ranks did not get ready:\n{out.read()}")

    @property
    def name(self) -> str:
        """For people."""
        return f"kill -9 of rank {self.victim}, gate={self.gate}" + (", under torchrun" if self.torchrun else "")

    def figures(self) -> list[dict[str, Any]]:
        """Time of the last survivor, who was named, and what was left."""
        named = {int(m[1]): (int(m[2]), m[3]) for line in self.lines for m in LOST.finditer(line)}
        right = {rank: phase for rank, (peer, phase) in named.items() if peer == self.victim}
        slowest = max(self.ended_s.values(), default=GIVE_UP_S)
        name = self.name
        everyone = len(self.ended_s) == WORLD - 1
        phases = ", ".join(f"{rank}: {phase}" for rank, phase in sorted(right.items()))
        if len(right) < WORLD - 1:
            print("\n".join(self.lines[-60:]), file=sys.stderr)
        return [
            {"name": f"{name}: last survivor ended", "value": round(slowest, 2), "bar": f"<= {STEP_S + 2:g}",
             "ok": everyone and slowest <= STEP_S + 2, "unit": "s", "note": ""},
            {"name": f"{name}: survivors that name it and the phase", "value": f"{len(right)}/{WORLD - 1}", "bar": "all",
             "ok": len(right) == WORLD - 1, "unit": "ranks", "note": phases},
            {"name": f"{name}: processes left", "value": len(self.left), "bar": "0", "ok": not self.left, "unit": "", "note": ""},
        ]  # fmt: skip


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank -> pid of the launcher's children that have a rank in their environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environ = dict(item.split("=", 1) for item in (entry / "environ").read_text().split("\0") if "=" in item)
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == launcher and "RANK" in environ:
            found[int(environ["RANK"])] = int(entry.name)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie waits for its parent only."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()
