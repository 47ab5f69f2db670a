"""Times of experts beside what the memory allows: readers of the machine's bandwidth, ways in turns, the arithmetic of the bound."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import torch
from experts_cases import Call, Case, Ids, Rotation, Way, available_bytes, inputs

READ_BYTES = 2 << 30  # of the array that is read to learn the bandwidth
CHUNKS = 8  # of it; one is read per round, so that a round of a small case is not all reading
FEW = 3  # samples of a way that is clearly not the best, or too slow
CLEARLY = 4.0  # times the best
MEMORY_LEFT = 0.7  # share of the available memory that a way may take for copies
AGREE = {"float32": 1e-4, "int8": 0.1, "fp8": 0.2}  # of the largest value, between two ways; half types 0.05


@numba.njit(parallel=True, error_model="numpy")  # type: ignore[misc]
def _sum(x: Any) -> Any:
    total = 0
    for i in numba.prange(x.size):
        total += x[i]
    return total


class Readers:
    """Two ways to read memory with every core: a compiled sum in numba, and torch's.

    Args:
        nbytes: of the array, more than any cache holds.

    Attributes:
        gb_s: bandwidths seen so far, GB/s, by reader.
    """

    def __init__(self, nbytes: int = READ_BYTES) -> None:
        self.chunks = np.ones((CHUNKS, nbytes // CHUNKS // 8), dtype=np.int64)
        self.gb_s: dict[str, list[float]] = {"numba": [], "torch": []}
        self._turn = 0
        _sum(self.chunks[0][:8])  # compiled now

    def read(self) -> None:
        """One chunk by each reader."""
        for name, total in (("numba", _sum), ("torch", _torch_sum)):
            chunk = self.chunks[self._turn % CHUNKS]
            self._turn += 1
            start = time.perf_counter_ns()
            total(chunk)
            self.gb_s[name].append(chunk.nbytes / (time.perf_counter_ns() - start))

    def restart(self) -> None:
        """Forget what was seen: a bandwidth is compared with times of the same rounds only."""
        self.gb_s = {name: [] for name in self.gb_s}

    def best(self) -> tuple[str, float]:
        """The faster reader by its median, and that median in GB/s."""
        return max(((name, float(np.median(seen))) for name, seen in self.gb_s.items()), key=lambda pair: pair[1])


def _torch_sum(chunk: Any) -> Any:
    return torch.from_numpy(chunk).view(torch.float32).sum()


def peak_flops(dtype: torch.dtype, size: int = 1024, repeats: int = 12) -> float:
    """FLOP/s of the best of some square products in torch, all cores."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def ridge(flops: float, gb_s: float, bytes_per_weight: float) -> float:
    """Tokens per expert at which computing takes as long as reading the weights.

    Example:
        >>> ridge(200e9, 20, bytes_per_weight=4)  # 10 FLOP per byte, 2 FLOP per weight and token
        20.0
    """
    return flops / (gb_s * 1e9) * bytes_per_weight / 2


def bound_ms(active: float, expert_bytes: float, gb_s: float) -> float:
    """Milliseconds to read the weights of the active experts once.

    Example:
        >>> bound_ms(8, 10_000_000, 20)
        4.0
    """
    return active * expert_bytes / gb_s / 1e6


@dataclass
class Seen:
    """What the rounds of one cell gave.

    Attributes:
        ms: milliseconds by way, one per round it took part in.
        rounds: the rounds a way took part in.
        active: distinct experts of each round's batch.
        entries: (token, expert) pairs of each round's batch.
        left_out: why a way was not run at all.
    """

    ms: dict[str, list[float]] = field(default_factory=dict)
    rounds: dict[str, list[int]] = field(default_factory=dict)
    active: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Milliseconds."""
        return float(np.median(self.ms[name]))

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster `fast` is: the median over the rounds that both took part in."""
        both = sorted(set(self.rounds[slow]) & set(self.rounds[fast]))
        of = {name: dict(zip(self.rounds[name], self.ms[name], strict=True)) for name in (slow, fast)}
        return float(np.median([of[slow][r] / of[fast][r] for r in both]))

    def share(self, name: str, expert_bytes: float, gb_s: float) -> float:
        """Bound over time, the median over rounds: 1 is the speed of memory."""
        bounds = [bound_ms(self.active[r], expert_bytes, gb_s) for r in self.rounds[name]]
        return float(np.median(np.array(bounds) / np.array(self.ms[name])))


def measure(
    case: Case,
    ways: Sequence[Way],
    batches: Sequence[Ids],
    rotation: Rotation,
    readers: Readers,
    *,
    seconds: float,
    seed: int = 0,
) -> Seen:
    """Ways in turns, one batch a round, every call on weights that no call has read for long.

    A way that is clearly not the best keeps to a few samples, and nothing begins after `seconds`.
    """
    seen = Seen()
    readers.restart()
    largest = max(ids.size for ids in batches)
    taking_part = [way for way in ways if not _too_large(way, case, largest, seen)]
    began, rng = time.monotonic(), np.random.default_rng(seed)
    warm(case, taking_part, batches[0], rotation)
    for r, ids in enumerate(batches):
        if r >= FEW and time.monotonic() - began > seconds:
            break
        seen.active.append(len(np.unique(ids)))
        seen.entries.append(ids.size)
        x, weights = inputs(case, ids, seed=r)
        readers.read()
        for i in rng.permutation(len(taking_part)):
            if still(taking_part[i].name, seen, r, seconds):
                layer, dealt = rotation.deal(ids)
                took = timed(taking_part[i].calls[layer], x, dealt, weights)
                seen.ms.setdefault(taking_part[i].name, []).append(took)
                seen.rounds.setdefault(taking_part[i].name, []).append(r)
    return seen


def timed(call: Call, x: torch.Tensor, ids: Ids, weights: torch.Tensor) -> float:
    """Milliseconds of one call."""
    given = torch.from_numpy(ids)
    with torch.inference_mode():
        start = time.perf_counter_ns()
        call(x, given, weights)
        return (time.perf_counter_ns() - start) / 1e6


def warm(case: Case, ways: Sequence[Way], ids: Ids, rotation: Rotation) -> None:
    """One call of every way, not timed; they must agree, or a time would be worth nothing.

    Raises:
        RuntimeError: two ways differ by more than rounding.
    """
    x, weights = inputs(case, ids)
    layer, dealt = rotation.deal(ids)
    with torch.inference_mode():
        found = {way.name: way.calls[layer](x, torch.from_numpy(dealt), weights).float() for way in ways}
    names = iter(found)
    first = found[next(names)]
    for name in names:
        off = float((found[name] - first).abs().max() / first.abs().max())
        if not off <= AGREE.get(case.storage, 0.05):
            raise RuntimeError(f"{name} differs from {next(iter(found))} by {off:.2g} of the largest value")


def still(name: str, seen: Seen, r: int, seconds: float) -> bool:
    """Whether a way takes part in round `r`."""
    mine = seen.ms.get(name, [])
    if not mine:
        return True
    if sum(mine) > 1e3 * seconds:  # one call of it fills the cell's time
        return False
    best = min(float(np.median(ms)) for ms in seen.ms.values())
    return r < FEW or float(np.median(mine)) <= CLEARLY * best


def _too_large(way: Way, case: Case, entries: int, seen: Seen) -> bool:
    needed, left = way.needs(entries, case.held_bytes), available_bytes()
    if needed <= MEMORY_LEFT * left:
        return False
    seen.left_out[way.name] = f"copies {needed / 1e9:.1f} GB of weights, {left / 1e9:.1f} GB of memory are free"
    return True


def row(
    case: Case,
    B: int,
    label: str,
    layers: int,
    seen: Seen,
    readers: Readers,
    flops: float,
    refused: dict[str, str],
    auto: str | None,
) -> dict[str, Any]:
    """One cell of the table and of the JSON, the way that "auto" takes named under "janus" where it ran."""
    by, gb_s = readers.best()
    active, entries = float(np.mean(seen.active)), float(np.mean(seen.entries))
    each, edge = entries / active, ridge(flops, gb_s, case.expert_bytes / case.params)
    janus = auto if auto in seen.ms else None
    found: dict[str, Any] = {
        "model": case.model.name, "storage": case.storage, "B": B, "held": case.label, "routing": label, "layers": layers,
        "entries": round(entries, 1), "active": round(active, 2), "tokens_per_expert": round(each, 2),
        "ridge": round(edge, 1), "memory_bound": each < edge, "expert_bytes": case.expert_bytes,
        "read_gb_s": {name: percentiles(values) for name, values in readers.gb_s.items()}, "read_by": by,
        "peak_gflop_s": round(flops / 1e9, 1), "bound_ms": round(bound_ms(active, case.expert_bytes, gb_s), 4),
        "compute_ms": round(entries * case.flops / flops * 1e3, 4),
        "janus": janus, "ms": {}, "samples": {}, "bound_over_time": {}, "left_out": refused | seen.left_out,
    }  # fmt: skip
    for name, ms in seen.ms.items():
        found["ms"][name] = percentiles(ms)
        found["samples"][name] = len(ms)
        found["bound_over_time"][name] = round(seen.share(name, case.expert_bytes, gb_s), 3)
    return found | against_rivals(seen, janus)


def percentiles(values: Sequence[float]) -> list[float]:
    """10th, 50th and 90th."""
    return [round(float(q), 4) for q in np.percentile(values, [10, 50, 90])]


def against_rivals(seen: Seen, janus: str | None) -> dict[str, Any]:
    """The fastest way of transformers, and how many times faster Janus is in the same rounds."""
    theirs = [name for name in seen.ms if name.startswith("transformers")]
    if not theirs or janus is None:
        return {"best_rival": None, "times_faster": None}
    best = min(theirs, key=seen.median)
    return {"best_rival": best, "times_faster": round(seen.ratio(best, janus), 3)}


def threads() -> int:
    """Set every pool to one thread per core; returns how many."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    numba.set_num_threads(min(cores, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]
    return cores
