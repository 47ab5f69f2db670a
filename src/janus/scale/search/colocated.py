"""The other way to serve the same demand: attention and experts on every GPU, experts spread over N of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from janus.scale.activation.table import ActivationTable
from janus.scale.search.memory import attention_capacity, gate_bytes, slot_bytes
from janus.scale.search.solve import Problem, fixed_point
from janus.scale.search.steps import MEDIAN, Steps, deviations
from janus.scale.timing.latency import Breakdown


@dataclass(frozen=True)
class Colocated:
    """Copies of an expert-parallel deployment of N GPUs, attention data-parallel inside each.

    Args:
        width: N, GPUs of one copy.
        copies: deployments side by side, the demand shared equally.
        slots: expert slots per GPU.
        batch: requests in flight of one copy.
        breakdown: of one copy's step.
        tpot_ms: step time, ms.
        throughput: tokens/s of all copies together.
        tail_ms: TPOT at the SLO's percentile, ms.
        kind: name of the GPU.
        usd_per_hour: price of all copies, None when the GPU has no price.
    """

    width: int
    copies: int
    slots: int
    batch: int
    breakdown: Breakdown
    tpot_ms: float
    throughput: float
    tail_ms: float
    kind: str
    usd_per_hour: float | None

    def cost(self, objective: str) -> float:
        """What the search minimises: GPUs, or dollars per hour."""
        if objective == "gpus":
            return self.gpus
        assert self.usd_per_hour is not None
        return self.usd_per_hour

    def order(self, objective: str) -> tuple[float, int, float]:
        """Smaller is better: cost, then GPUs, then TPOT."""
        return self.cost(objective), self.gpus, self.tpot_ms

    @property
    def gpus(self) -> int:
        """Of all copies."""
        return self.width * self.copies

    @property
    def tokens_per_gpu_s(self) -> float:
        """Throughput over GPUs."""
        return self.throughput / self.gpus


def colocated_optimum(problem: Problem, table: ActivationTable) -> tuple[Colocated | None, ActivationTable]:
    """The fewest GPUs that serve the problem without disaggregation, over widths, slots and copies; ties: lower TPOT.

    Every width holds ceil(E/N) slots, or a quarter more where memory allows. Placement, balancer and latency model are
    the same as for the disaggregated candidates.

    Returns:
        The optimum (None when nothing fits) and the table with the rows that were added.
    """
    best: Colocated | None = None
    for width, slots in _pairs(problem):
        if best and width > best.gpus:  # a wider copy cannot need fewer GPUs: spare the measuring
            break
        if _capacity(problem, width, slots):
            table = table.extended([(width, slots)])
            found = _size(problem, table, width, slots)
            best = min((c for c in (best, found) if c), key=lambda c: c.order(problem.objective), default=None)
    return best, table


def _pairs(problem: Problem) -> list[tuple[int, int]]:
    """Widths 1..16, then whole multiples of a node; two slot counts each."""
    E, most = problem.latency.model.experts, _budget(problem)
    node = problem.latency.cluster.node_size
    widths = [n for n in range(1, most + 1) if n <= 16 or (n % node == 0 and (n <= 64 or n % (2 * node) == 0))]
    return [(n, c) for n in widths if n <= E for c in sorted({-(-E // n), min(E, math.ceil(1.25 * E / n))})]


def _budget(problem: Problem) -> int:
    """As many GPUs as the disaggregated search may use, and the cluster has."""
    most = problem.max_attention + problem.max_experts
    return min(most, problem.latency.cluster.gpus or most)


def _capacity(problem: Problem, width: int, slots: int) -> int:
    m, cluster = problem.latency.model, problem.latency.cluster
    held = slots * slot_bytes(m) + gate_bytes(m, problem.max_batch)
    return width * attention_capacity(m, cluster, problem.context, held_bytes=held)


def colocated_step(
    problem: Problem, table: ActivationTable, width: int, slots: int, B: int, percentile: float = MEDIAN
) -> Breakdown:
    """One step of a copy: as disaggregated, but both roles on each GPU, so shared experts hide behind the exchange only."""
    m, latency = problem.latency.model, problem.latency
    steps = Steps(latency, table, slots, problem.context, problem.context_cv)
    context = steps.slowest_context(width, B, percentile)
    attention, shared, other = latency.attention_side_us(-(-B // width), context)
    moe = latency.moe_layer_us(steps.activated(width, B, deviations(percentile, 1)), B)
    comm = max(1e6 * _exchange_s(problem, width, B), _floor_us(problem, width))
    return Breakdown(
        attention=(m.layers * attention + m.moe_layers * shared) / 1e3,
        moe=m.moe_layers * moe / 1e3,
        comm=m.moe_layers * comm / 1e3,
        other=other / 1e3,
        overlap=m.moe_layers * min(shared, comm) / 1e3,
    )


def _floor_us(problem: Problem, width: int) -> float:
    """Least time of an exchange: between nodes as for split pools, inside one by as much less as its messages take."""
    latency = problem.latency
    if width == 1 or not latency.comm_floor_us:
        return 0.0
    if width > latency.cost.gpus_per_node:
        return latency.comm_floor_us
    near, far = (latency.cost.link(name, 2 * latency.model.hidden).alpha for name in ("in_node", "between_nodes"))
    return latency.comm_floor_us * min(1.0, near / far if far else 1.0)


def _exchange_s(problem: Problem, width: int, B: int) -> float:
    """Dispatch and combine as expert-parallel engines do them: a token travels only where it is needed.

    Of K choices spread over n GPUs, 1 - (1 - s/n)^K of the tokens need one of s given ones. Either every GPU sends to
    every other, or once to each other node and from there inside it; the cheaper one, by the busiest port of any GPU.
    """
    m, cost = problem.latency.model, problem.latency.cost
    near, far = cost.link("in_node", 2 * m.hidden), cost.link("between_nodes", 2 * m.hidden)
    node, b = min(cost.gpus_per_node, width), -(-B // width)
    sizes = [node] * (width // node) + [width % node] * (width % node > 0)  # a part-filled last node has busier ports

    def needed(gpus: int) -> float:  # rows of one GPU that some expert of `gpus` GPUs wants
        return b * (1 - (1 - gpus / width) ** m.top_k)

    def sends(peers: int) -> int:
        return min(peers, b * m.top_k)  # a peer that no token needs gets no message

    def flat(size: int) -> float:  # the port of a GPU in a node of `size`
        beside, away = size - 1, width - size
        return max(near.time(sends(beside), beside * needed(1)), far.time(sends(away), away * needed(1)))

    def crossing(size: int) -> float:  # sent: once to each other node; received: from the others, shared in the node
        away = width - size
        sent = sum(map(needed, sizes)) - needed(size)
        return max(far.time(sends(len(sizes) - 1), sent), far.time(sends(-(-away // size)), away * needed(size) / size))

    once_per_node = max(map(crossing, sizes)) + near.time(node - 1, width * needed(1))
    phases = 1 + (len(sizes) > 1)  # across, then inside the node
    both = min(max(map(flat, sizes)) + cost.phase_s, once_per_node + phases * cost.phase_s)
    return 2 * both if width > 1 else 0.0


def _size(problem: Problem, table: ActivationTable, width: int, slots: int) -> Colocated | None:
    """Fewest copies of one width whose equal shares meet the SLO."""

    def step(B: int, percentile: float = MEDIAN) -> Breakdown:
        return colocated_step(problem, table, width, slots, B, percentile)

    def tail(B: int) -> float:
        return step(B, problem.percentile).tpot

    most = _largest(lambda B: tail(B) <= problem.slo_ms, min(_capacity(problem, width, slots), problem.max_batch))
    if not most:
        return None
    share = problem.prefill.share(problem.latency, width, width) if problem.prefill else 0.0
    for copies, batch in _copies(problem, width, most, lambda B: step(B).tpot, share):
        stretch = 1 / (1 - share / copies)
        tail_ms = tail(batch) * stretch
        if tail_ms <= problem.slo_ms:
            tpot = step(batch).tpot * stretch
            rate = (problem.batch or copies * batch) / tpot * 1e3
            gpu = problem.latency.cluster.gpu
            usd = None if gpu.usd_per_hour is None else gpu.usd_per_hour * width * copies
            return Colocated(width, copies, slots, batch, step(batch), tpot, rate, tail_ms, gpu.name, usd)
    return None


def _copies(
    problem: Problem, width: int, most: int, step_ms: Callable[[int], float], share: float
) -> Iterator[tuple[int, int]]:
    """(copies, batch of one copy), the fewest copies first."""
    limit = _budget(problem) // width
    if problem.batch is not None:
        copies = -(-problem.batch // most)
        if copies <= limit:
            yield copies, -(-problem.batch // copies)
        return
    assert problem.demand is not None
    least = max(problem.demand * step_ms(most) / 1e3 / most - 1e-9, share, 1)
    for copies in range(math.ceil(min(least, limit + 1)), limit + 1):
        stretch = 1 - share / copies
        if stretch > 0:
            batch = fixed_point(lambda B, s=stretch: step_ms(B) / s, problem.demand / copies, most)
            if batch is not None:
                yield copies, batch


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """Largest B in 1..most for which a property holds that never returns once lost; 0 when it never does."""
    if most < 1 or not holds(1):
        return 0
    low, high = 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
