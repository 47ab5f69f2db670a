"""Pools, placement and the balancing of sampled batches in one program: exact, for small instances only.

`plan` decomposes: it sizes the pools from a table of a_max, and `janus.sched.place` then places the experts. Here both
are one mixed-integer program, with a binary per (expert, instance) and per (batch, activated expert, instance). It grows
too fast to plan with; it is what the decomposition is checked against, and itself against enumeration.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.scale.search.solvers import minimise, solver_name

MOST_EXPERTS, MOST_INSTANCES, MOST_BATCHES = 8, 3, 5
EPSILON = 1e-7  # on a TPOT held against the SLO: solvers keep constraints to about as much


@dataclass(frozen=True)
class Joint:
    """A small instance: times by pool, and the experts that each sampled batch activates.

    Args:
        batches: sets of activated experts, 0-based, one per sampled batch.
        experts: E.
        slots: C.
        fixed_ms: float64 [n_a, n_e], everything but the reading of experts, of pools of 1.. and 1.. instances.
        expert_ms: time per activated expert of the busiest instance, all layers.
        slo_ms: longest mean TPOT over the batches.

    Raises:
        JanusError: ``scale.joint`` for an instance that is too large, or no instance.
    """

    batches: tuple[frozenset[int], ...]
    experts: int
    slots: int
    fixed_ms: npt.NDArray[np.float64]
    expert_ms: float
    slo_ms: float

    def __post_init__(self) -> None:
        sizes = (self.experts, self.fixed_ms.shape[1], len(self.batches))
        limits = (MOST_EXPERTS, MOST_INSTANCES, MOST_BATCHES)
        if any(size > most or size < 1 for size, most in zip(sizes, limits, strict=True)):
            rule = (
                f"the joint program takes 1..{limits[0]} experts, 1..{limits[1]} instances and 1..{limits[2]} batches"
            )
            raise JanusError("scale.joint", f"{rule}, got {sizes}; use janus.scale.plan")


@dataclass(frozen=True)
class Solved:
    """The pools of least GPUs, then of least TPOT; None in place of them when nothing is feasible.

    Args:
        n_a, n_e: instances.
        tpot_ms: mean over the batches.
        placement: sets of experts per instance.
    """

    n_a: int
    n_e: int
    tpot_ms: float
    placement: tuple[frozenset[int], ...]


def solve_joint(joint: Joint, solver: str = "auto") -> Solved | None:
    """The optimum from two programs: the fewest GPUs, then the least TPOT with so many."""
    solver = solver_name(solver)
    program, parts = _program(joint, None)
    gpus = minimise(program, solver, None)
    if gpus is None:
        return None
    program, parts = _program(joint, round(gpus))
    tpot = minimise(program, solver, None)
    assert tpot is not None
    n_a, n_e = next(key for key, v in parts["pools"].items() if v.value() > 0.5)
    hosts = parts["hosts"]
    placement = tuple(
        frozenset(e for e in range(joint.experts) if hosts[e][g].value() > 0.5) for g in range(n_e)
    )  # fmt: skip
    return Solved(n_a, n_e, tpot, placement)


def _program(joint: Joint, gpus: int | None) -> tuple[Any, dict[str, Any]]:
    """Minimise GPUs; or, with their number given, the mean TPOT."""
    import pulp

    program = pulp.LpProblem("joint", pulp.LpMinimize)
    most_a, most_e = joint.fixed_ms.shape
    pools = {
        (a, e): program.add_variable(f"p{a}_{e}", cat="Binary")
        for a in range(1, most_a + 1)
        for e in range(1, most_e + 1)
    }
    hosts = [[program.add_variable(f"h{e}_{g}", cat="Binary") for g in range(most_e)] for e in range(joint.experts)]
    open_ = [pulp.lpSum(v for (_, n_e), v in pools.items() if n_e > g) for g in range(most_e)]
    peaks = [program.add_variable(f"m{s}", lowBound=0) for s in range(len(joint.batches))]
    size = pulp.lpSum((a + e) * v for (a, e), v in pools.items())
    fixed = pulp.lpSum(float(joint.fixed_ms[a - 1, e - 1]) * v for (a, e), v in pools.items())
    tpot = fixed + joint.expert_ms / len(peaks) * pulp.lpSum(peaks)
    program += size if gpus is None else tpot
    if gpus is not None:
        program += size == gpus
    program += pulp.lpSum(pools.values()) == 1
    program += tpot <= joint.slo_ms + EPSILON
    for g in range(most_e):
        program += pulp.lpSum(row[g] for row in hosts) <= joint.slots * open_[g]
    for row in hosts:
        program += pulp.lpSum(row) >= 1
    for s, batch in enumerate(joint.batches):
        _balanced(program, batch, hosts, peaks[s], f"b{s}")
    return program, {"pools": pools, "hosts": hosts}


def _balanced(program: Any, batch: frozenset[int], hosts: list[list[Any]], peak: Any, name: str) -> None:
    """Every activated expert is read on one of its hosts; the peak is at least what each instance reads."""
    import pulp

    loads: list[list[Any]] = [[] for _ in hosts[0]]
    for e in sorted(batch):
        reads = [program.add_variable(f"{name}_{e}_{g}", cat="Binary") for g in range(len(loads))]
        program += pulp.lpSum(reads) == 1
        for g, read in enumerate(reads):
            program += read <= hosts[e][g]
            loads[g].append(read)
    for load in loads:
        program += peak >= pulp.lpSum(load)


def enumerate_joint(joint: Joint) -> Solved | None:
    """The same optimum by trying every placement of every pool: the reference."""
    best: Solved | None = None
    for n_e in range(1, joint.fixed_ms.shape[1] + 1):
        if n_e * joint.slots < joint.experts:
            continue
        peak, placement = _best_placement(joint, n_e)
        sets = tuple(frozenset(e for e, h in enumerate(placement) if g in h) for g in range(n_e))
        for n_a in range(1, joint.fixed_ms.shape[0] + 1):
            tpot = float(joint.fixed_ms[n_a - 1, n_e - 1]) + joint.expert_ms * peak
            found = Solved(n_a, n_e, tpot, sets)
            if tpot <= joint.slo_ms + EPSILON and (best is None or _order(found) < _order(best)):
                best = found
    return best


def _best_placement(joint: Joint, n_e: int) -> tuple[float, tuple[tuple[int, ...], ...]]:
    """(mean a_max, hosts per expert) of least mean; the first that meets the bound ceil(active / n_e) ends the search."""
    bound = sum(-(-len(batch) // n_e) for batch in joint.batches) / len(joint.batches)
    best: tuple[float, tuple[tuple[int, ...], ...]] = (float("inf"), ())
    for hosts in _placements(joint, n_e):
        peak = _mean_peak(joint.batches, hosts, n_e)
        if peak < best[0]:
            best = (peak, hosts)
            if peak <= bound:
                break
    return best


def _order(found: Solved) -> tuple[int, float]:
    return found.n_a + found.n_e, found.tpot_ms


def _placements(joint: Joint, n_e: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every choice of hosts per expert that fits the slots; only those with all slots taken where that is possible."""
    choices = [h for r in range(1, n_e + 1) for h in itertools.combinations(range(n_e), r)]
    wanted = min(n_e * joint.slots, n_e * joint.experts)  # a replica more never makes a batch slower

    def grow(chosen: list[tuple[int, ...]], free: list[int]) -> Iterator[tuple[tuple[int, ...], ...]]:
        left = joint.experts - len(chosen)
        if not left:
            if sum(free) == n_e * joint.slots - wanted:
                yield tuple(chosen)
            return
        for hosts in choices:
            rest = [f - (g in hosts) for g, f in enumerate(free)]
            if min(rest) >= 0 and sum(rest) >= left - 1:
                yield from grow([*chosen, hosts], rest)

    yield from grow([], [joint.slots] * n_e)


def _mean_peak(batches: Sequence[frozenset[int]], hosts: Sequence[tuple[int, ...]], n_e: int) -> float:
    return sum(_peak([hosts[e] for e in batch], n_e) for batch in batches) / len(batches)


def _peak(hosts: list[tuple[int, ...]], n_e: int) -> int:
    """Least possible largest load: Hall's condition over subsets of instances."""
    worst = 0
    for mask in range(1, 1 << n_e):
        inside = sum(all(mask >> g & 1 for g in h) for h in hosts)
        worst = max(worst, -(-inside // mask.bit_count()))
    return worst
