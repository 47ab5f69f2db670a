"""GPU: microseconds of a whole `Balancer` call inside a CUDA graph, ids rewritten, by shape, method and batch size."""

from __future__ import annotations

from typing import Any

import on_gpu
import torch
from figures import figure, progress, report, spread

from janus.sched import Balancer
from janus.types import Placement

SIZES = (1, 16, 64, 256, 1024, 4096)
# microseconds at the 50th percentile: the paper's own kernel takes < 20 at small batches and < 90 at 4096 (H100)
BARS = {1: 15, 16: 15, 64: 15, 256: 15, 1024: 30, 4096: 30}


def timed(name: str, placement: Placement, method: str, batches: dict[int, list[Any]]) -> list[dict[str, Any]]:
    """One figure per batch size."""
    balancer = Balancer(placement, method=method, backend="triton", max_tokens=on_gpu.MAX_TOKENS, device=on_gpu.DEVICE)
    out = []
    for B, ids in batches.items():
        low, middle, high = spread(on_gpu.in_graph(lambda x: balancer(x, 0), ids))
        alone = spread(on_gpu.in_graph(lambda x: balancer(x, 0), ids[:1]))[1]
        note = f"p10 {low}, p90 {high}; one call in a graph of its own {alone}"
        out.append(on_gpu.at_most(f"{name} {method} B={B}", middle, BARS[B], "us", note))
    return out


def floor(ids: list[torch.Tensor]) -> dict[str, Any]:
    """What the smallest kernel takes in the same graph: a copy of the ids."""
    out = torch.empty_like(ids[0])
    low, middle, high = spread(on_gpu.in_graph(out.copy_, ids))
    note = f"p10 {low}, p90 {high}; for comparison, no bar"
    return figure("a copy of the ids, B=64", middle, "none", True, "us", note)


def ratio(figures: list[dict[str, Any]], name: str, B: int) -> dict[str, Any]:
    """Exact against greedy, from figures already made."""
    us = {f["name"]: f["value"] for f in figures}
    times = round(us[f"{name} exact B={B}"] / us[f"{name} greedy B={B}"], 2)
    return on_gpu.at_most(f"{name} exact / greedy B={B}", times, 2.5, "x")


def main() -> None:
    sample = on_gpu.wants_sample(__doc__)
    names = on_gpu.MAIN[:1] if sample else (*on_gpu.MAIN, *on_gpu.NAMED)
    figures: list[dict[str, Any]] = []
    with progress("speed", len(names)) as step:
        for name in names:
            placement, source = on_gpu.placed(name)
            sizes = (16,) if sample else SIZES if name in on_gpu.MAIN else (16, 256, 4096)
            batches = {B: on_gpu.on_device(source.batches(B, on_gpu.CALLS)) for B in sizes}
            for method in ("exact", "greedy"):
                figures += timed(name, placement, method, batches)
            figures.append(ratio(figures, name, sizes[len(sizes) // 2]))
            step(f"{name}, {source.label}")
        figures.append(floor(on_gpu.on_device(source.batches(64, on_gpu.CALLS))))
    report(figures)


if __name__ == "__main__":
    main()
