"""GPU: physical ids and loads are those of numba on random batches, and a_max is the maximum-flow optimum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import on_gpu
import torch
from figures import figure, progress, report
from oracle import is_optimum, random_ids, random_slots

from janus.sched import Balancer
from janus.types import Placement

# E, G, C: the benchmarks' shapes, odd sizes, sets of instances of one and two words, the limits of the kernel
SIZES = [
    (256, 32, 12), (256, 32, 16), (32, 8, 6), (160, 8, 27), (384, 48, 12), (100, 7, 31), (64, 6, 20), (5, 1, 5),
    (130, 65, 4), (512, 128, 5),
]  # fmt: skip
FLOWS = 50  # batches per shape that are checked by maximum flow as well


def batches(rng: np.random.Generator, E: int, G: int, n: int) -> Iterator[Any]:
    """T 0..300, K 1..16, both widths."""
    for _ in range(n):
        T = int(rng.choice([0, 1, rng.integers(2, 17), rng.integers(17, 301)], p=[0.02, 0.08, 0.3, 0.6]))
        yield random_ids(rng, E, T, int(rng.integers(1, 17)), G).astype(rng.choice(["i4", "i8"]))


def compared(size: tuple[int, int, int], layers: int, each: int, method: str) -> Counter[str]:
    """One pair of balancers over `layers` random maps, `each` batches a map."""
    E, G, C = size
    rng, tally = np.random.default_rng(size), Counter[str]()
    placement = Placement(np.stack([random_slots(rng, E, G, C) for _ in range(layers)]), E)
    ours = {"method": method, "max_tokens": on_gpu.MAX_TOKENS}
    device = Balancer(placement, backend="triton", device=on_gpu.DEVICE, **ours)
    host = Balancer(placement, backend="numba", **ours)
    for layer in range(layers):
        for ids in batches(rng, E, G, each):
            want = host(ids, layer)
            got = device(torch.from_numpy(ids).to(on_gpu.DEVICE), layer)
            load = device.load.cpu().numpy()
            tally["batches"] += 1
            tally["ids"] += np.array_equal(got.cpu().numpy(), want)
            tally["load"] += np.array_equal(load, host.load)
            if method == "exact" and tally["flows"] < FLOWS:
                tally["flows"] += 1
                tally["optimal"] += is_optimum(ids, placement.slots[layer], int(load.max()))
    tally["stats"] += np.array_equal(device.stats.sums, host.stats.sums)
    tally["shapes"] += 1
    return tally


def main() -> None:
    sample = on_gpu.wants_sample(__doc__)
    sizes, layers, each = (SIZES[2:4], 2, 3) if sample else (SIZES, 25, 40)
    figures = []
    for method in ("exact", "greedy"):
        total = Counter[str]()
        with progress(method, len(sizes)) as step:
            for size in sizes:
                total += compared(size, layers, each, method)
                step(str(size))
        n = total["batches"]
        note = f"E, G, C: {', '.join(map(str, sizes))}; {layers} random maps each"
        figures += [
            figure(f"{method}: physical ids == numba's", total["ids"], f"== {n}", total["ids"] == n, "batches", note),
            figure(f"{method}: loads == numba's", total["load"], f"== {n}", total["load"] == n, "batches"),
            figure(
                f"{method}: sums of stats == numba's", total["stats"], f"== {len(sizes)}", total["stats"] == len(sizes)
            ),
        ]
        if method == "exact":
            flows, good = total["flows"], total["optimal"]
            figures.append(
                figure("exact: a_max == maximum-flow optimum", good, f"== {flows}", good == flows, "batches")
            )
    report(figures)


if __name__ == "__main__":
    main()
