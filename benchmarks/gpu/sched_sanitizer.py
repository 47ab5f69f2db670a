"""GPU: NVIDIA's compute-sanitizer watches the kernels for accesses out of bounds, and for races in shared memory alone.

The scratch that lanes exchange lies in global memory, which no tool of it watches for races: `sched_ids` and the
thousand equal runs of the GPU tests speak of that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import on_gpu
from figures import figure, report

TOOLS = ("memcheck", "racecheck")
LIMIT_S = 65  # of one tool
FOUND = 9  # exit code when the tool has something to report


def work() -> None:
    """A few batches through both methods: what the tool watches."""
    import torch

    from janus.sched import Balancer

    placement, source = on_gpu.placed("gpt-oss-20b 8x6")
    for method in ("exact", "greedy"):
        balancer = Balancer(
            placement, method=method, backend="triton", max_tokens=512, device=on_gpu.DEVICE, record_load=True
        )
        for B in (1, 17, 512):
            for ids in source.batches(B, 2):
                balancer(torch.from_numpy(ids.astype(np.int32)).to(on_gpu.DEVICE), 0)
        print(balancer.stats.overall())


def watched(tool: str, path: str) -> dict[str, Any]:
    """One run under one tool."""
    words = [path, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, __file__, "--work"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor a block of its own
    name = f"compute-sanitizer {tool}"
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LIMIT_S, env=environment)
    except subprocess.TimeoutExpired:
        return figure(name, f"no result within {LIMIT_S} s", "no error", False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("=========")]
    if any("not supported" in line for line in said):
        return figure(name, "not run", "no error", True, "", f"the tool refuses this machine: {said[-1]}")
    note = " / ".join(line.strip("= ") for line in said[-3:])
    return figure(name, f"exit {done.returncode}", "exit 0", done.returncode == 0, "", note)


def main() -> None:
    on_gpu.wants_sample(__doc__)
    path = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    if on_gpu.DEVICE == "cpu" or path is None:
        reason = "no GPU" if on_gpu.DEVICE == "cpu" else "compute-sanitizer is not on PATH"
        report([figure(f"compute-sanitizer {tool}", "not run", "no error", True, "", reason) for tool in TOOLS])
        return
    report([watched(tool, path) for tool in TOOLS])


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
