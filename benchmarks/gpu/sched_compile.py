"""GPU: how long a `Balancer` takes to be made, its kernels compiled; and the parts after this one find them compiled."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import on_gpu
from figures import figure, report

from janus.sched import Balancer
from janus.types import Placement

METHODS = ("exact", "greedy")
PROCESSES = 8  # compiling is done by the CPU


def make(work: tuple[int, int, int, str]) -> float:
    """Seconds to make one `Balancer`."""
    E, G, C, method = work
    start = time.perf_counter()
    placement = Placement.contiguous(E, G, C)
    Balancer(placement, method=method, backend="triton", max_tokens=on_gpu.MAX_TOKENS, device=on_gpu.DEVICE)
    return time.perf_counter() - start


def main() -> None:
    sample = on_gpu.wants_sample(__doc__)
    from sched_ids import SIZES

    names = on_gpu.MAIN[:1] if sample else (*on_gpu.MAIN, *on_gpu.NAMED)
    shapes = [on_gpu.shape(name) for name in names]
    sizes = {(s.model.experts, s.instances, s.slots_per_instance) for s in shapes} | set(SIZES[: 1 if sample else None])
    work = [(*size, method) for size in sorted(sizes) for method in METHODS]
    start = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        seconds = list(pool.map(make, work))
    slowest = max(zip(seconds, work, strict=True))
    note = f"{len(work)} of them in {time.perf_counter() - start:.0f} s by {PROCESSES} processes; slowest {slowest[1]}"
    # importing torch and starting CUDA are part of it in these processes
    report([figure("a Balancer made, slowest", round(slowest[0], 1), "<= 60", slowest[0] <= 60, "s", note)])


if __name__ == "__main__":
    assert Path(__file__).exists()
    main()
