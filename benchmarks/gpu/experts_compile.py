"""GPU: how long the experts' kernels take to compile; and the parts after this one find them compiled."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import on_gpu
import torch
from experts_on_gpu import CASES, Case, slots_of
from experts_speed import SIZES
from figures import figure, report

from janus.experts import device

PROCESSES = 12  # compiling is done by the CPU


def make(work: tuple[Case, int]) -> float:
    """Seconds to compile what one case launches at one batch size."""
    case, B = work
    start = time.perf_counter()
    engine = device.TritonEngine(slots_of(case, "meta", 0))
    engine._capability, engine._processors, engine._shared = device._device(torch.device("cuda", 0))
    engine.compile(B, case.model.top_k)
    return time.perf_counter() - start


def main() -> None:
    sample = on_gpu.wants_sample(__doc__)
    if on_gpu.DEVICE == "cpu":
        report(
            [
                figure(
                    "experts' kernels compiled", "not run", "none", True, "", "no CUDA device: the interpreter does not"
                )
            ]
        )
        return
    work = list(itertools.product(CASES[:1] if sample else CASES, SIZES[:2] if sample else SIZES))
    start = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        seconds = list(pool.map(make, work))
    slowest = max(zip(seconds, work, strict=True), key=lambda pair: pair[0])
    note = f"{len(work)} of them in {time.perf_counter() - start:.0f} s by {PROCESSES} processes; slowest {slowest[1]}"
    # importing torch and starting CUDA are part of it in these processes
    report([figure("kernels of one batch size, slowest", round(slowest[0], 1), "<= 60", slowest[0] <= 60, "s", note)])


if __name__ == "__main__":
    main()
