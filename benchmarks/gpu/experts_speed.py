"""GPU: a layer's chosen experts inside a CUDA graph against the time that reading the activated weights takes.

Layers are rotated, so that no weight is still in the second-level cache. Bars: where 256 MB or more are read and the
products are few, 85 % of the rate of a copy on this GPU; where less is read, 1.25 x (that time and an empty graph);
1.2 x the faster of transformers' batched_mm and grouped_mm.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import on_gpu
import torch
from experts_on_gpu import CASES, TINY, Case, activated_bytes, batch, h200_row, layers, theirs
from figures import figure, progress, report, spread

SIZES = (1, 8, 32, 64, 256, 1024)
LARGE = 256e6  # bytes
SHARE, SLACK, AHEAD = 0.85, 1.25, 1.2
FEW_FLOPS = 60  # per byte, where the products of an H200 take a third of the reading
CALLS = 8  # in one graph
ENTRIES_COPIED = 64  # batched_mm copies the weights of every entry
BUDGET_S = 100.0


def copy_rate() -> float:
    """Bytes per microsecond of a copy, read and written."""
    source = torch.empty(1 << 20 if on_gpu.DEVICE == "cpu" else 1 << 30, dtype=torch.uint8, device=on_gpu.DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / max(spread(on_gpu.in_graph(target.copy_, [source], 20))[1], 0.1)


def empty_graph() -> float:
    """Microseconds of the replay of a graph with nothing in it."""
    if on_gpu.DEVICE == "cpu":
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch finds it strange
        return spread(on_gpu.in_graph(lambda _: None, [torch.empty(0)]))[1]


def timed(calls: list[Any], batches: list[Any]) -> list[float]:
    """10th, 50th and 90th percentile of microseconds of a call, every call on another layer and batch."""
    turns: list[Any] = list(range(2 if on_gpu.DEVICE == "cpu" else CALLS))
    return spread(on_gpu.in_graph(lambda i: calls[i % len(calls)](*batches[i]), turns, 30))


def judged(case: Case, B: int, us: float, read: float, entries: float, rate: float, empty: float) -> tuple[str, bool]:
    """(bar, met) of one figure."""
    if on_gpu.DEVICE == "cpu" or entries * case.flops > FEW_FLOPS * read:
        return "none", True
    limit = read / rate / SHARE if read >= LARGE else SLACK * (read / rate + empty)
    return f"<= {limit:.1f}", us <= limit


def baseline(made: list[Any], batches: list[Any], B: int, us: float) -> dict[str, Any] | None:
    """The faster of transformers' ways, on the same weights in the same run."""
    found = {}
    for how in ("batched_mm", "grouped_mm"):
        if how == "batched_mm" and batches[0][1].numel() > ENTRIES_COPIED:
            continue
        try:
            found[how] = timed([theirs(slots, how) for slots in made], batches)[1]
        except (ImportError, AttributeError):
            return None
        except RuntimeError as error:  # this torch or this GPU has no such product
            found[how] = float("inf")
            torch.cuda.synchronize()
            print(f"{how}: {str(error)[:100]}", flush=True)
    best = min(found, key=lambda how: found[how])
    if found[best] == float("inf"):
        return None
    ahead, known = round(found[best] / us, 2), on_gpu.DEVICE != "cpu"
    note = ", ".join(f"{how} {value} us" for how, value in found.items())
    return figure(
        "transformers / Janus", ahead, f">= {AHEAD}" if known else "none", ahead >= AHEAD or not known, "x", note
    )


def measured(case: Case, sizes: tuple[int, ...], rate: float, empty: float, end: float) -> list[dict[str, Any]]:
    """Figures of one case."""
    made, figures = layers(case, on_gpu.DEVICE), []
    for B in sizes:
        if time.monotonic() > end:
            figures.append(figure(f"{case.name}, B={B}", "not run", "none", True, "", "out of time"))
            continue
        batches = [batch(case, B, on_gpu.DEVICE, seed) for seed in range(CALLS)]
        read = sum(activated_bytes(case, ids) for _, ids, _ in batches) / CALLS
        entries = sum(int((ids >= 0).sum()) for _, ids, _ in batches) / CALLS
        low, us, high = timed(made, batches)
        bar, ok = judged(case, B, us, read, entries, rate, empty)
        note = f"p10 {low}, p90 {high}; {read / 1e6:.0f} MB read, {read / max(us, 0.1) / rate:.2f} x the copy's rate"
        note += "".join(f"; {more}" for more in (h200_row(case, B),) if more)
        figures.append(figure(f"{case.name}, B={B}", us, bar, ok, "us", note))
        if case.quantize is None and (row := baseline(made, batches, B, us)):
            figures.append(row | {"name": f"{case.name}, B={B}: {row['name']}"})
    return figures


def main() -> None:
    sample = on_gpu.wants_sample(__doc__)
    end = time.monotonic() + BUDGET_S
    cases, sizes = (TINY, (1, 3)) if sample else (CASES, SIZES)
    rate, empty = copy_rate(), empty_graph()
    figures = [figure("a copy", round(rate / 1e3, 1), "none", True, "GB/s", "read and written")]
    figures.append(figure("an empty graph", empty, "none", True, "us"))
    with progress("experts", len(cases)) as step:
        for case in cases:
            figures += measured(case, sizes, rate, empty, end)
            step(case.name)
            if on_gpu.DEVICE != "cpu":
                torch.cuda.empty_cache()
    report(figures)


if __name__ == "__main__":
    main()
