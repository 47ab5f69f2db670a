"""Which pools a policy would choose for a demand: the planner's search over the simulator's tables of step times.

Little's law on the tables: B = demand x T(B), solved between knots, T linear there. The first number of GPUs at which
some pair meets the objective ends the search, so pairs are priced only as far as somebody needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from janus.scale.memory import attention_capacity, gate_bytes, slot_bytes
from janus.scale.steptimes import FloatArray, StepTimes


@dataclass(frozen=True)
class Need:
    """What has to be served.

    Args:
        demand: tokens/s that the pools make, > 0.
        context: mean KV length, tokens.
        reserved: mean KV length that memory is held for, tokens; >= context.
        slo_ms: longest mean TPOT, ms.
    """

    demand: float
    context: float
    reserved: float
    slo_ms: float

    def shared(self, by: float) -> Need:
        """The need of one of `by` equal parts."""
        return replace(self, demand=self.demand / by)


@dataclass(frozen=True)
class Sized:
    """Pools and the step they would make.

    Args:
        n_a, n_e: instances; both the number of GPUs for a colocated deployment.
        batch: requests in flight, not rounded.
        tpot_ms: mean step time, ms.
        feasible: False for the best there is when nothing meets the objective.
    """

    n_a: int
    n_e: int
    batch: float
    tpot_ms: float
    feasible: bool = True


class Sizer:
    """Chooses pools from tables of step times.

    Args:
        times: the tables.
        max_attention, max_experts: largest pools.
    """

    def __init__(self, times: StepTimes, max_attention: int, max_experts: int) -> None:
        self.times, self.max_attention, self.max_experts = times, max_attention, max_experts
        self.knots = times.knots

    @cached_property
    def _overlap(self) -> FloatArray:
        """float64 [B]: the most that shared experts hide at b = knots per instance, ms: what a floor may subtract."""
        p, many = self.times.problem, self.max_attention
        return np.array(
            [p.latency.tpot(many, self.times.least, int(b) * many, 1.0, p.table).overlap for b in self.knots]
        )

    def room(self, n_a: int, need: Need) -> float:
        """Requests that `n_a` attention instances hold, at most the largest batch."""
        p = self.times.problem
        return min(p.max_batch, n_a * attention_capacity(p.latency.model, p.latency.cluster, need.reserved))

    def steps(self, n_a: int, rest: FloatArray, need: Need) -> FloatArray:
        """float64 [B]: milliseconds of a step at every knot, the batch spread evenly."""
        return self.times.attention_at(np.ceil(self.knots / n_a), need.context) + rest

    def smallest(self, need: Need, step: int = 1) -> Sized:
        """The fewest GPUs, ties: the lower TPOT, then fewer attention instances; both pools multiples of `step`."""
        pairs = self._promising(need, step)
        for gpus in sorted({a + e for a, e in pairs}):
            level = [self._try(a, e, need) for a, e in pairs if a + e == gpus]
            found = [s for s in level if s]
            if found:
                return min(found, key=lambda s: (s.tpot_ms, s.n_a))
        return self._largest(need, step)

    def balanced(self, need: Need, step: int = 1) -> Sized:
        """The fewest GPUs among the pairs whose attention and expert times are closest, one n_a for every n_e."""
        best: Sized | None = None
        for n_e in self._sizes(self.times.least, self.max_experts, step):
            if best and n_e >= best.n_a + best.n_e:
                break
            n_a = self._balancing(n_e, need, step)
            found = self._try(n_a, n_e, need)
            if found and (best is None or (found.n_a + n_e, found.tpot_ms) < (best.n_a + best.n_e, best.tpot_ms)):
                best = found
        return best or self._largest(need, step)

    def tier(self, need: Need, tiers: tuple[int, ...], efficiency: float) -> Sized:
        """The smallest whole-model tier that serves the need, else the fewest copies of the largest."""
        for width in tiers:
            found = self.colocated(need, width, 1, efficiency)
            if found:
                return found
        width = tiers[-1]
        most = max(1, (self.max_attention + self.max_experts) // width)
        for copies in range(2, most + 1):
            found = self.colocated(need, width, copies, efficiency)
            if found:
                return found
        return Sized(width * most, width * most, float("nan"), float("nan"), feasible=False)

    def colocated(self, need: Need, width: int, copies: int, efficiency: float) -> Sized | None:
        """Expert-parallel copies of `width` GPUs, if they serve the need."""
        rest = self.times.colocated_rest(width, self.slots(width))
        room = min(self.times.problem.max_batch, width * self.colocated_capacity(width, need.reserved))
        share = need.shared(copies * efficiency)
        at = meeting(self.knots, self.steps(width, rest, share), share, room / efficiency)
        gpus = width * copies
        return Sized(gpus, gpus, at[0] * copies * efficiency, at[1]) if at else None

    def slots(self, width: int) -> int:
        """Expert slots per GPU of a colocated copy: as few as hold every expert, since memory is wanted for requests."""
        return -(-self.times.problem.latency.model.experts // width)

    def colocated_capacity(self, width: int, reserved: float) -> int:
        """Requests of `reserved` cached tokens that one GPU of a colocated copy holds."""
        p = self.times.problem
        held = self.slots(width) * slot_bytes(p.latency.model) + gate_bytes(p.latency.model, p.max_batch)
        return attention_capacity(p.latency.model, p.latency.cluster, reserved, held_bytes=held)

    def _sizes(self, least: int, most: int, step: int) -> range:
        return range(-(-least // step) * step, most + 1, step)

    def _promising(self, need: Need, step: int) -> list[tuple[int, int]]:
        """The pairs that might serve the need: left without exchange their step meets it at the largest batch allowed."""
        n_a = np.array(self._sizes(1, self.max_attention, step))
        room = np.array([self.room(int(a), need) for a in n_a])
        limit = np.clip(need.demand * need.slo_ms / 1e3, 1.0, np.maximum(room, 1.0))
        b = np.ceil(self.knots / n_a[:, None])
        floors = self.times.attention_at(b, need.context) - np.interp(b, self.knots, self._overlap)
        attention = np.array([np.interp(x, self.knots, row) for x, row in zip(limit, floors, strict=True)])
        out = []
        for n_e in self._sizes(self.times.least, self.max_experts, step):
            floor_ms = attention + np.interp(limit, self.knots, self.times.moe(n_e))
            out += [(int(a), n_e) for a in n_a[floor_ms * need.demand / 1e3 <= limit + 1e-9]]
        return out

    def _try(self, n_a: int, n_e: int, need: Need) -> Sized | None:
        """The pair if it serves the need; two knots refuse most of those that do not."""
        limit = min(self.room(n_a, need), need.demand * need.slo_ms / 1e3)
        if limit >= 1:
            k = min(int(np.searchsorted(self.knots, limit, side="right")) - 1, len(self.knots) - 2)
            b = np.ceil(self.knots[k : k + 2] / n_a)
            ends = self.times.attention_at(b, need.context)
            ends += [self.times.rest_at(n_a, n_e, k), self.times.rest_at(n_a, n_e, k + 1)]
            if np.interp(limit, self.knots[k : k + 2], ends) * need.demand / 1e3 > limit + 1e-9:
                return None
        at = meeting(self.knots, self.steps(n_a, self.times.rest(n_a, n_e), need), need, self.room(n_a, need))
        return Sized(n_a, n_e, *at) if at else None

    def _balancing(self, n_e: int, need: Need, step: int) -> int:
        """The n_a whose attention time is closest to the experts', both at the batch that pair would hold."""

        def surplus(n_a: int) -> float:
            steps = self.steps(n_a, self.times.rest(n_a, n_e), need)
            batch = (crossing(self.knots, steps, need.demand) or (self.knots[-1], 0.0))[0]
            attention = self.times.attention_at(np.array([np.ceil(batch / n_a)]), need.context)[0]
            return float(attention - np.interp(batch, self.knots, self.times.moe(n_e)))

        sizes = self._sizes(1, self.max_attention, step)
        return sizes[turning(lambda i: surplus(sizes[i]), len(sizes))]

    def _largest(self, need: Need, step: int) -> Sized:
        n_a, n_e = self.max_attention // step * step, self.max_experts // step * step
        return Sized(n_a, n_e, float("nan"), float("nan"), feasible=False)


def crossing(knots: FloatArray, steps_ms: FloatArray, demand: float) -> tuple[float, float] | None:
    """(batch, step in ms) where B = demand x T(B) first holds; None when it does up to no knot.

    Example:
        >>> crossing(np.array([1.0, 16.0]), np.array([10.0, 10.0]), demand=800)
        (8.0, 10.0)
    """
    surplus = knots - demand * steps_ms / 1e3
    k = int(np.argmax(surplus >= 0))
    if surplus[k] < 0:
        return None
    if k == 0:
        return 1.0, float(steps_ms[0])
    part = surplus[k - 1] / (surplus[k - 1] - surplus[k])
    batch = knots[k - 1] + part * (knots[k] - knots[k - 1])
    return float(batch), float(batch / demand * 1e3)


def meeting(knots: FloatArray, steps_ms: FloatArray, need: Need, room: float) -> tuple[float, float] | None:
    """`crossing`, if the batch fits and the step keeps the objective."""
    at = crossing(knots, steps_ms, need.demand)
    return at if at and at[0] <= room and at[1] <= need.slo_ms else None


def turning(surplus: Callable[[int], float], count: int) -> int:
    """The i in 0..count-1 where a falling function is closest to 0, by bisection.

    Example:
        >>> turning(lambda i: 10 - 4 * i, 9)  # 10, 6, 2, -2, -6: ties go to the larger pool
        3
    """
    low, high = 0, count - 1
    if surplus(low) <= 0:
        return low
    if surplus(high) > 0:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
    return low if abs(surplus(low)) < abs(surplus(high)) else high
