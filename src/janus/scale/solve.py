"""The exhaustive search: every (n_a, n_e), its fixed-point batch, and the first constraint it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from janus.scale.activation import ActivationTable
from janus.scale.latency import Breakdown, LatencyModel
from janus.scale.memory import attention_capacity
from janus.scale.prefill import Prefill

# Order of the checks: a candidate is counted under the first one it fails.
CONSTRAINTS = ("expert_slots", "attention_memory", "prefill", "max_batch", "slo")


@dataclass(frozen=True)
class Problem:
    """Everything the search needs, resolved and checked.

    Args:
        latency: of the model on the cluster.
        table: activation of the expert pool.
        slots: C.
        demand: tokens/s to serve with headroom, or None when `batch` is fixed.
        batch: requests in flight, or None when Little's law sets them.
        slo_ms: longest allowed TPOT, ms.
        context: mean KV length, tokens.
        max_attention, max_experts: largest pools.
        max_batch: most requests in flight (exchange buffers are sized for it).
        prefill: prompts the pools also process, or None.
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

    @property
    def capacity(self) -> int:
        """Requests one attention instance can hold."""
        return attention_capacity(self.latency.model, self.latency.cluster, self.context)


@dataclass(frozen=True)
class Candidate:
    """One pair of pool sizes and what became of it.

    Args:
        n_a, n_e: instances.
        batch: requests in flight, 0 when the search stopped before it knew.
        breakdown: of the step at `batch`, or None.
        tpot_ms: step time with the prefill share added; nan when unknown.
        rejected: name of the constraint it breaks, "" when feasible.
        detail: the constraint with its values, for people.
    """

    n_a: int
    n_e: int
    batch: int = 0
    breakdown: Breakdown | None = None
    tpot_ms: float = float("nan")
    rejected: str = ""
    detail: str = ""

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


def fixed_point(tpot_ms: Callable[[int], float], demand: float, b_max: int) -> int | None:
    """Smallest bracketed batch that Little's law allows: B - demand * TPOT(B) turns >= 0 at B.

    f(1) >= 0 gives 1. Else B doubles until f >= 0 (so that a TPOT that bends up later cannot hide an early crossing)
    and a binary search ends with f(B - 1) < 0 <= f(B). None when f(b_max) < 0 and no doubling point crossed.

    Args:
        tpot_ms: step time of a batch, ms.
        demand: tokens/s.
        b_max: largest batch to try, >= 1.

    Example:
        >>> fixed_point(lambda B: 10 + 0.5 * B, demand=1000, b_max=64)  # B = 10 + 0.5 B
        20
    """

    def surplus(B: int) -> float:
        return B - demand * tpot_ms(B) / 1e3

    if surplus(1) >= 0:
        return 1
    low, high = 1, min(2, b_max)
    while surplus(high) < 0:
        if high == b_max:
            return None
        low, high = high, min(2 * high, b_max)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if surplus(middle) < 0 else (low, middle)
    return high


def evaluate(problem: Problem, n_a: int, n_e: int) -> Candidate:
    """Check one pair against every constraint in the order of `CONSTRAINTS`."""
    model, nothing = problem.latency.model, Candidate(n_a, n_e)
    if n_e * problem.slots < model.experts:
        have = f"n_e * C = {n_e} * {problem.slots} = {n_e * problem.slots}"
        return replace(
            nothing, rejected="expert_slots", detail=f"{have} slots hold fewer than E = {model.experts} experts"
        )
    room = n_a * problem.capacity
    if room < (problem.batch or 1):
        need = f"{problem.batch or 1} requests of {problem.context:g} cached tokens"
        detail = f"{n_a} attention instances hold {room} requests beside their weights; needed: {need}"
        return replace(nothing, rejected="attention_memory", detail=detail)
    share = problem.prefill.share(problem.latency, n_a, n_e) if problem.prefill else 0.0
    if share >= 1:
        detail = f"prompts alone would take {share:.0%} of the pools' time"
        return replace(nothing, rejected="prefill", detail=detail)

    def step_ms(B: int) -> float:
        return problem.latency.tpot(n_a, n_e, B, problem.context, problem.table).tpot / (1 - share)

    batch, limit, why = _batch(problem, room, step_ms)
    at = batch or limit
    breakdown = problem.latency.tpot(n_a, n_e, at, problem.context, problem.table)
    found = Candidate(n_a, n_e, at, breakdown, breakdown.tpot / (1 - share))
    if batch is None and found.tpot_ms <= problem.slo_ms:  # slow enough to need more requests than there is room for
        detail = f"at the largest batch of {limit} ({why}) {found.throughput:.0f} tokens/s leave, {problem.demand:.0f} are asked"
        return replace(found, rejected=why, detail=detail)
    if batch is None or found.tpot_ms > problem.slo_ms:
        detail = f"TPOT {found.tpot_ms:.1f} ms at batch {at} is above the SLO of {problem.slo_ms:g} ms"
        return replace(found, rejected="slo", detail=detail)
    return found


def _batch(problem: Problem, room: int, step_ms: Callable[[int], float]) -> tuple[int | None, int, str]:
    """(batch or None, largest batch tried, the constraint that set that largest batch)."""
    if problem.demand is None:
        assert problem.batch is not None
        return problem.batch, problem.batch, "slo"
    # A fixed point above demand * SLO has a TPOT above the SLO: no need to look further.
    by_slo = int(problem.demand * problem.slo_ms / 1e3) + 1
    limit, why = min((by_slo, "slo"), (room, "attention_memory"), (problem.max_batch, "max_batch"))
    return fixed_point(step_ms, problem.demand, limit), limit, why


def search(problem: Problem) -> tuple[Candidate, ...]:
    """Every pair up to the largest pools, n_a outermost."""
    pairs = ((a, e) for a in range(1, problem.max_attention + 1) for e in range(1, problem.max_experts + 1))
    return tuple(evaluate(problem, n_a, n_e) for n_a, n_e in pairs)


def pick(candidates: tuple[Candidate, ...]) -> Candidate | None:
    """The feasible one with the fewest GPUs; ties: the lower TPOT, then fewer attention instances."""
    feasible = [c for c in candidates if not c.rejected]
    return min(feasible, key=lambda c: (c.gpus, c.tpot_ms, c.n_a), default=None)
