"""GPU: chosen experts against float64 in every format and layout, in graphs as outside, and the same bits every time."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import on_gpu
import torch
from experts_on_gpu import CASES, TINY, batch, slots_of
from figures import figure, progress, report

import entries  # isort: skip  (the path to it comes with experts_on_gpu)

LAYOUTS = ("gate and up", "interleaved, transposed, biased", "no gate")  # of `entries.LAYOUTS`
SIZES = (1, 9, 64, 65, 200)  # tiles found by all, sorted; sums by the last to arrive, in a launch of their own
REPEATED = 300
PROCESSES = 9
LIMITS = entries.LIMITS


def errors(name: str, quantize: str | None, dtype: torch.dtype, sample: bool) -> dict[str, Any]:
    """The largest relative error over sizes."""
    H, F, S, K = (72, 40, 5, 2) if sample else (640, 264, 12, 4)
    made = entries.layout(H, F, **entries.LAYOUTS[name])
    slots = entries.slots(made, S, dtype, quantize=quantize, device=on_gpu.DEVICE)
    worst, at = 0.0, 0
    for T in SIZES[:2] if sample else SIZES:
        x, ids, weights = entries.batch(T, K, S, H, dtype, seed=T, device=on_gpu.DEVICE)
        found = entries.error(slots(x, ids, weights), entries.plain(slots, x, ids, weights))
        worst, at = max((worst, at), (found, T))
    limit = LIMITS[dtype]
    what = f"{name}, {quantize or ''} {str(dtype).removeprefix('torch.')}".replace("  ", " ")
    return figure(f"error: {what}", float(f"{worst:.2g}"), f"<= {limit:g}", worst <= limit, "", f"largest at T={at}")


def repeated(sample: bool) -> Iterator[dict[str, Any]]:
    """Real sizes, where hundreds of programs arrive in any order: every call gives the bits of the first."""
    made = {case: slots_of(case, on_gpu.DEVICE, 0) for case in (TINY if sample else (CASES[0], CASES[6]))}
    for (case, slots), B in itertools.product(made.items(), (1, 8, 64)):
        x, ids, weights = batch(case, B, on_gpu.DEVICE, B)
        first = slots(x, ids, weights)
        same = sum(torch.equal(slots(x, ids, weights), first) for _ in range(2 if sample else REPEATED))
        many = 2 if sample else REPEATED
        yield figure(f"same bits, {case.name}, B={B}", same, f"== {many}", same == many, "calls")
        if on_gpu.DEVICE != "cpu":
            yield in_graph(case.name, slots, (x, ids, weights), first)


def in_graph(name: str, slots: Any, tensors: tuple[torch.Tensor, ...], first: torch.Tensor) -> dict[str, Any]:
    """A replay on new ids gives the bits of a plain call on them; no call waits for the device."""
    x, ids, weights = tensors
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = slots(x, ids, weights)
    graph.replay()
    right = torch.equal(kept, first)
    for seed in range(10):
        ids.copy_(ids[torch.randperm(len(ids), device=ids.device)].roll(seed, 1))
        graph.replay()
        right += torch.equal(kept, slots(x, ids, weights))
    return figure(f"replays on new ids, {name}, B={len(x)}", int(right), "== 11", right == 11, "equal")


def compared(work: tuple[str, str | None, torch.dtype, bool]) -> dict[str, Any]:
    """`errors`, for a process of its own."""
    return errors(*work)


def main() -> None:
    sample = on_gpu.wants_sample(__doc__)
    plain = [(name, None, dtype, sample) for name, dtype in itertools.product(LAYOUTS, LIMITS)]
    formats = itertools.product(LAYOUTS[:2], ("int8", "fp8"), (torch.bfloat16, torch.float32))
    todo = [*plain, *((name, form, dtype, sample) for name, form, dtype in formats)]
    if sample:
        todo = [todo[1], todo[-1]]
    figures: list[dict[str, Any]] = []
    # kernels of so many kinds are compiled side by side; in the interpreter there is nothing to compile
    pool = ProcessPoolExecutor(1 if sample else PROCESSES, multiprocessing.get_context("spawn"))
    with pool, progress("equal", len(todo)) as step:
        for found in pool.map(compared, todo):
            figures.append(found)
            step(found["name"])
    report([*figures, *repeated(sample)])


if __name__ == "__main__":
    main()
