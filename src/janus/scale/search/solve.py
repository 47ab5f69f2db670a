"""The exhaustive search: every (n_a, n_e), its fixed-point batch, and the first constraint it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.scale.activation.table import ActivationTable
from janus.scale.search.memory import attention_capacity
from janus.scale.search.steps import Ints, Steps
from janus.scale.timing.latency import Breakdown, LatencyModel
from janus.scale.timing.prefill import Prefill

# Order of the checks: a candidate is counted under the first one it fails.
CONSTRAINTS = ("expert_slots", "attention_memory", "prefill", "max_batch", "slo", "cluster_gpus")
OBJECTIVES = ("gpus", "usd")


@dataclass(frozen=True)
class Problem:
    """Everything the search needs, resolved and checked, for one type of GPU per pool.

    Args:
        latency: of the model on the two pools' GPUs.
        table: activation of the expert pool.
        slots: C.
        demand: tokens/s to serve with headroom, or None when `batch` is fixed.
        batch: requests in flight, or None when Little's law sets them.
        slo_ms: longest allowed TPOT at `percentile`, ms.
        context: mean KV length, tokens.
        max_attention, max_experts: largest pools.
        max_batch: most requests in flight (exchange buffers are sized for it).
        prefill: prompts the pools also process, or None.
        percentile: of the requests whose TPOT must meet `slo_ms`.
        context_cv: standard deviation of the KV length over its mean; 0 when all requests are alike.
        objective: ``"gpus"`` or ``"usd"``.
    """

    latency: LatencyModel
    table: ActivationTable
    slots: int
    demand: float | None
    batch: int | None
    slo_ms: float
    context: float
    max_attention: int
    max_experts: int
    max_batch: int
    prefill: Prefill | None
    percentile: float = 50.0
    context_cv: float = 0.0
    objective: str = "gpus"

    @cached_property
    def capacity(self) -> int:
        """Requests one attention instance can hold."""
        return attention_capacity(self.latency.model, self.latency.cluster, self.context)

    @property
    def steps(self) -> Steps:
        """Times of this problem's steps."""
        return Steps(self.latency, self.table, self.slots, self.context, self.context_cv)

    @cached_property
    def kinds(self) -> tuple[str, str]:
        """Names of the GPUs of the attention and of the expert pool."""
        return self.latency.cluster.gpu.name, self.latency.expert_cluster.gpu.name

    def usd_per_hour(self, n_a: int, n_e: int) -> float | None:
        """Price of both pools, or None when one of the GPUs has no price."""
        a, e = self.latency.cluster.gpu.usd_per_hour, self.latency.expert_cluster.gpu.usd_per_hour
        return None if a is None or e is None else n_a * a + n_e * e

    def lacking(self, n_a: int, n_e: int) -> str:
        """Why the cluster does not have so many GPUs, "" when it does."""
        a, e = self.latency.cluster, self.latency.expert_cluster
        asked = [(a, n_a + n_e)] if a == e else [(a, n_a), (e, n_e)]
        for cluster, wanted in asked:
            if cluster.gpus is not None and wanted > cluster.gpus:
                return f"{wanted} {cluster.gpu.name} GPUs are needed, the cluster has {cluster.gpus}"
        return ""


@dataclass(frozen=True)
class Candidate:
    """One pair of pool sizes and what became of it.

    Args:
        n_a, n_e: instances.
        batch: requests in flight, 0 when the search stopped before it knew.
        breakdown: of the mean step at `batch`, or None.
        tpot_ms: mean step time with the prefill share added; nan when unknown.
        tail_ms: TPOT at the SLO's percentile, ms; nan when unknown.
        rejected: name of the constraint it breaks, "" when feasible.
        detail: the constraint with its values, for people.
        kinds: names of the GPUs of the attention and of the expert pool.
        usd_per_hour: price of both pools, None when a GPU has no price.
    """

    n_a: int
    n_e: int
    batch: int = 0
    breakdown: Breakdown | None = None
    tpot_ms: float = float("nan")
    tail_ms: float = float("nan")
    rejected: str = ""
    detail: str = ""
    kinds: tuple[str, str] = ("", "")
    usd_per_hour: float | None = None

    @property
    def gpus(self) -> int:
        """Instances of both pools."""
        return self.n_a + self.n_e

    @property
    def name(self) -> str:
        """As `Topology.parse` reads it."""
        return f"{self.n_a}A{self.n_e}E"

    @property
    def throughput(self) -> float:
        """Output tokens per second: batch / TPOT."""
        return self.batch / self.tpot_ms * 1e3 if self.batch else 0.0

    def cost(self, objective: str) -> float:
        """What the search minimises: GPUs, or dollars per hour."""
        if objective == "gpus":
            return self.gpus
        assert self.usd_per_hour is not None
        return self.usd_per_hour


def fixed_points(step_ms: Callable[[Ints, Ints], npt.NDArray[Any]], demand: float, most: Ints) -> Ints:
    """Smallest bracketed batch per pair that Little's law allows: B - demand * TPOT(B) turns >= 0 at B; 0 for none.

    f(1) >= 0 gives 1. Else B doubles until f >= 0 (so that a TPOT that bends up later cannot hide an early crossing)
    and a binary search ends with f(B - 1) < 0 <= f(B). 0 where f(most) < 0 and no doubling point crossed.

    Args:
        step_ms: times of (numbers of the pairs [m], batches [m]) -> [m], ms.
        demand: tokens/s.
        most: integers [N], largest batch to try, >= 1 each.

    Example:
        >>> fixed_points(lambda pairs, B: 10 + 0.5 * B, 1000, np.array([64, 8])).tolist()  # B = 10 + 0.5 B
        [20, 0]
    """

    def wanted(pairs: Ints, B: Ints) -> npt.NDArray[Any]:
        with np.errstate(over="ignore"):  # endless demand wants endless batches
            return demand * step_ms(pairs, B) / 1e3

    low, high = np.zeros_like(most), np.ones_like(most)  # f(low) < 0 where low > 0
    open_ = np.arange(len(most))
    alone = wanted(open_, high)
    found = high >= alone
    # no step is shorter than that of one request: f < 0 at every power of two below demand * TPOT(1)
    low = np.where(found, low, np.minimum(2 ** np.floor(np.log2(np.clip(alone, 1, most))).astype(most.dtype), most))
    low = np.where(~found & (low >= alone), np.maximum(low // 2, 1), low)
    high = np.where(found, high, np.minimum(2 * low, most))
    open_ = np.flatnonzero(~found)
    while len(open_):
        crossed = high[open_] >= wanted(open_, high[open_])
        found[open_[crossed]] = True
        open_ = open_[~crossed & (high[open_] < most[open_])]
        low[open_] = high[open_]
        high[open_] = np.minimum(2 * high[open_], most[open_])
    open_ = np.flatnonzero(found & (high - low > 1))
    while len(open_):
        middle = (low[open_] + high[open_]) // 2
        crossed = middle >= wanted(open_, middle)
        high[open_[crossed]] = middle[crossed]
        low[open_[~crossed]] = middle[~crossed]
        open_ = open_[high[open_] - low[open_] > 1]
    return np.where(found, high, 0)


def fixed_point(tpot_ms: Callable[[int], float], demand: float, b_max: int) -> int | None:
    """As `fixed_points`, of one function of the batch; None when there is none.

    Example:
        >>> fixed_point(lambda B: 10 + 0.5 * B, demand=1000, b_max=64)
        20
    """
    found = fixed_points(lambda _, B: np.array([tpot_ms(int(b)) for b in B]), demand, np.array([b_max]))
    return int(found[0]) or None


def evaluate(problem: Problem, n_a: int, n_e: int) -> Candidate:
    """Check one pair against every constraint in the order of `CONSTRAINTS`."""
    return evaluate_all(problem, [(n_a, n_e)])[0]


def evaluate_all(problem: Problem, pairs: Sequence[tuple[int, int]]) -> list[Candidate]:
    """Check pairs (n_a, n_e) against every constraint in the order of `CONSTRAINTS`; all of them at once."""
    out = [_before_timing(problem, n_a, n_e) for n_a, n_e in pairs]
    left = [i for i, c in enumerate(out) if not c.rejected]
    if left:
        for i, timed in zip(left, _timed(problem, [out[i] for i in left]), strict=True):
            out[i] = timed
    return out


def _before_timing(problem: Problem, n_a: int, n_e: int) -> Candidate:
    """What can be told without the time of a step."""
    model = problem.latency.model
    found = Candidate(n_a, n_e, kinds=problem.kinds, usd_per_hour=problem.usd_per_hour(n_a, n_e))
    if n_e * problem.slots < model.experts:
        have = f"n_e * C = {n_e} * {problem.slots} = {n_e * problem.slots}"
        return replace(
            found, rejected="expert_slots", detail=f"{have} slots hold fewer than E = {model.experts} experts"
        )
    room = n_a * problem.capacity
    if room < (problem.batch or 1):
        need = f"{problem.batch or 1} requests of {problem.context:g} cached tokens"
        detail = f"{n_a} attention instances hold {room} requests beside their weights; needed: {need}"
        return replace(found, rejected="attention_memory", detail=detail)
    share = _share(problem, n_a, n_e)
    if share >= 1:
        return replace(found, rejected="prefill", detail=f"prompts alone would take {share:.0%} of the pools' time")
    return found


def _share(problem: Problem, n_a: int, n_e: int) -> float:
    return problem.prefill.share(problem.latency, n_a, n_e) if problem.prefill else 0.0


def _timed(problem: Problem, found: list[Candidate]) -> Iterable[Candidate]:
    """Batch, times and verdict of candidates that passed everything else."""
    n_a, n_e = np.array([c.n_a for c in found]), np.array([c.n_e for c in found])
    stretch = 1 / (1 - np.array([_share(problem, c.n_a, c.n_e) for c in found]))
    steps = problem.steps
    limits = [_limit(problem, c.n_a) for c in found]
    most = np.array([limit for limit, _ in limits])
    if problem.demand is None:
        batches = most
    else:
        batches = fixed_points(
            lambda i, B: steps.mean_ms(n_a[i], n_e[i], B) * stretch[i], problem.demand, most
        )  # fmt: skip
    at = np.where(batches > 0, batches, most)
    mean = steps.breakdowns(n_a, n_e, at)
    tail = steps.tail_ms(n_a, n_e, at, problem.percentile) * stretch
    for i, c in enumerate(found):
        timed = replace(
            c, batch=int(at[i]), breakdown=mean[i], tpot_ms=float(mean[i].tpot * stretch[i]), tail_ms=float(tail[i])
        )
        yield _judged(problem, timed, solved=bool(batches[i]), why=limits[i][1])


def _judged(problem: Problem, found: Candidate, solved: bool, why: str) -> Candidate:
    if not solved and found.tail_ms <= problem.slo_ms:  # slow enough to need more requests than there is room for
        detail = f"at the largest batch of {found.batch} ({why}) {found.throughput:.0f} tokens/s leave, {problem.demand:.0f} are asked"
        return replace(found, rejected=why, detail=detail)
    if not solved or found.tail_ms > problem.slo_ms:
        over = f"{found.tail_ms:.1f} ms (P{problem.percentile:g}; mean {found.tpot_ms:.1f})"
        detail = f"TPOT {over} at batch {found.batch} is above the SLO of {problem.slo_ms:g} ms"
        return replace(found, rejected="slo", detail=detail)
    lacking = problem.lacking(found.n_a, found.n_e)
    return replace(found, rejected="cluster_gpus", detail=lacking) if lacking else found


def _limit(problem: Problem, n_a: int) -> tuple[int, str]:
    """(largest batch to try, the constraint that sets it)."""
    if problem.demand is None:
        assert problem.batch is not None
        return problem.batch, "slo"
    # A fixed point above demand * SLO has a TPOT above the SLO: no need to look further.
    by_slo = int(min(problem.demand * problem.slo_ms / 1e3, problem.max_batch)) + 1
    return min((by_slo, "slo"), (n_a * problem.capacity, "attention_memory"), (problem.max_batch, "max_batch"))


def search(problem: Problem) -> tuple[Candidate, ...]:
    """Every pair up to the largest pools, n_a outermost."""
    pairs = [(a, e) for a in range(1, problem.max_attention + 1) for e in range(1, problem.max_experts + 1)]
    return tuple(evaluate_all(problem, pairs))


def searched_again(problem: Problem, before: Iterable[Candidate], n_e: int) -> tuple[Candidate, ...]:
    """`search` after `n_e` was measured: pools between its measured neighbours were interpolated, the others stand."""
    measured = [g for g, slots in problem.table.rows if slots == problem.slots and g != n_e]
    low = max((g for g in measured if g < n_e), default=0)
    high = min((g for g in measured if g > n_e), default=problem.max_experts + 1)
    old = list(before)
    again = [i for i, c in enumerate(old) if low < c.n_e < high]
    for i, c in zip(again, evaluate_all(problem, [(old[i].n_a, old[i].n_e) for i in again]), strict=True):
        old[i] = c
    return tuple(old)


def pick(candidates: Iterable[Candidate], objective: str = "gpus") -> Candidate | None:
    """The feasible one of least cost; ties: fewer GPUs, the lower TPOT, then fewer attention instances."""
    feasible = [c for c in candidates if not c.rejected]
    return min(feasible, key=lambda c: (c.cost(objective), c.gpus, c.tpot_ms, c.n_a, c.kinds), default=None)
