"""Which pools a policy would choose for a demand: the planner's search over the simulator's tables of step times.

Little's law on the tables: B = demand x T(B), solved between knots, T linear there. The first number of GPUs at which
some pair meets the objective ends the search, so pairs are priced only as far as somebody needs them.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from janus.errors import JanusError
from janus.scale.days.littles_law import crossing, meeting, turning
from janus.scale.days.steptimes import FloatArray, StepTimes
from janus.scale.search.memory import attention_capacity, gate_bytes, slot_bytes

BALANCED = 0.05  # of an attention time: times as close as that count as equal


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
        copies: deployments side by side that the pools are split into, the demand shared equally.
    """

    n_a: int
    n_e: int
    batch: float
    tpot_ms: float
    feasible: bool = True
    copies: int = 1

    @property
    def order(self) -> tuple[float, ...]:
        """The least comes first: fewest GPUs, lower TPOT, fewer attention instances."""
        return self.gpus, self.tpot_ms, self.n_a

    @property
    def gpus(self) -> int:
        """Of two pools, all copies."""
        return self.n_a + self.n_e


class Sizer:
    """Chooses pools from tables of step times.

    Args:
        times: the tables.
        max_attention, max_experts: largest pools of one deployment.
        copies: most deployments side by side.
        gpus: most GPUs of all copies; None for any number.
    """

    def __init__(
        self, times: StepTimes, max_attention: int, max_experts: int, copies: int = 1, gpus: int | None = None
    ) -> None:
        self.copies = copies
        self.gpus = 2 * copies * (max_attention + max_experts) if gpus is None else gpus
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
        """The fewest GPUs, ties: fewer copies, the lower TPOT, fewer attention instances; pools multiples of `step`."""
        return self._fleet(need, step, self._smallest)

    def balanced(self, need: Need, step: int = 1) -> Sized:
        """The fewest GPUs among the pairs whose attention and expert times are closest, one n_a for every n_e."""
        return self._fleet(need, step, self._balanced)

    def _fleet(self, need: Need, step: int, find: Callable[[Need, int, int], Sized | None]) -> Sized:
        """The best over the numbers of copies; without any that serves, the most and largest there are."""
        best: Sized | None = None
        for copies in range(1, self.copies + 1):
            most = -(-best.gpus // copies) - 1 if best else self.max_attention + self.max_experts
            one = find(need.shared(copies), step, min(most, self.gpus // copies))
            if one:
                sizes = one.n_a * copies, one.n_e * copies
                best = Sized(*sizes, one.batch * copies, one.tpot_ms, copies=copies)
        return best or self._largest(need, step)

    def _smallest(self, need: Need, step: int, most: int) -> Sized | None:
        if most <= self.times.least:
            return None
        pairs = self._promising(need, step)
        for gpus in sorted({a + e for a, e in pairs if a + e <= most}):
            level = [self._try(a, e, need) for a, e in pairs if a + e == gpus]
            found = [s for s in level if s]
            if found:
                return min(found, key=lambda s: s.order)
        return None

    def _balanced(self, need: Need, step: int, most: int) -> Sized | None:
        best: Sized | None = None
        for n_e in self._sizes(self.times.least, self.max_experts, step):
            if n_e >= min(most, best.gpus if best else most):
                break
            found = self._try(self._balancing(n_e, need, step), n_e, need)
            if found and found.gpus <= most and (best is None or found.order < best.order):
                best = found
        return best

    def tier(self, need: Need, tiers: tuple[int, ...], efficiency: float) -> Sized:
        """The smallest whole-model tier that serves the need, else the fewest copies of the largest."""
        tiers = tuple(width for width in tiers if width <= self.gpus)
        if not tiers:
            raise JanusError("scale.cluster", f"no tier fits in the cluster's {self.gpus} GPUs; give smaller tiers")
        for width in tiers:
            found = self.colocated(need, width, 1, efficiency)
            if found:
                return found
        width = tiers[-1]
        most = max(1, min(self.copies * (self.max_attention + self.max_experts), self.gpus) // width)
        for copies in range(2, most + 1):
            found = self.colocated(need, width, copies, efficiency)
            if found:
                return found
        return Sized(width * most, width * most, float("nan"), float("nan"), feasible=False, copies=most)

    def colocated(self, need: Need, width: int, copies: int, efficiency: float) -> Sized | None:
        """Expert-parallel copies of `width` GPUs, if they serve the need."""
        rest = self.times.colocated_rest(width, self.slots(width))
        room = min(self.times.problem.max_batch, width * self.colocated_capacity(width, need.reserved))
        share = need.shared(copies * efficiency)
        at = meeting(self.knots, self.steps(width, rest, share), share.demand, share.slo_ms, room / efficiency)
        gpus = width * copies
        return Sized(gpus, gpus, at[0] * copies * efficiency, at[1], copies=copies) if at else None

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
        steps = self.steps(n_a, self.times.rest(n_a, n_e), need)
        at = meeting(self.knots, steps, need.demand, need.slo_ms, self.room(n_a, need))
        return Sized(n_a, n_e, *at) if at else None

    def _balancing(self, n_e: int, need: Need, step: int) -> int:
        """The n_a whose attention time is closest to the experts', both at the batch that pair would hold.

        Of those within `BALANCED` of an attention time of the closest, the smallest: where few requests leave
        attention slower than the experts however many instances there are, the baseline shall not pay for all of them.
        """
        sizes = self._sizes(1, self.max_attention, step)

        @cache
        def times_ms(i: int) -> tuple[float, float]:
            n_a = sizes[i]
            steps = self.steps(n_a, self.times.rest(n_a, n_e), need)
            batch = (crossing(self.knots, steps, need.demand) or (self.knots[-1], 0.0))[0]
            attention = self.times.attention_at(np.array([np.ceil(batch / n_a)]), need.context)[0]
            return float(attention), float(np.interp(batch, self.knots, self.times.moe(n_e)))

        def surplus(i: int) -> float:
            attention, experts = times_ms(i)
            return attention - experts

        closest = turning(surplus, len(sizes))
        limit = abs(surplus(closest)) + BALANCED * times_ms(closest)[0]
        return sizes[bisect.bisect_left(range(closest), True, key=lambda i: surplus(i) <= limit)]

    def _largest(self, need: Need, step: int) -> Sized:
        """All copies of both largest pools; with fewer GPUs one copy of them all, split for the shortest step."""
        n_a, n_e = (most // step * step for most in (self.max_attention, self.max_experts))
        if (n_a + n_e) * self.copies <= self.gpus:
            sizes = n_a * self.copies, n_e * self.copies
            return Sized(*sizes, float("nan"), float("nan"), feasible=False, copies=self.copies)
        sizes_a = self._sizes(1, min(n_a, self.gpus - self.times.least), step)
        pairs = [(a, min(n_e, (self.gpus - a) // step * step)) for a in sizes_a]
        pairs = [(a, e) for a, e in pairs if e >= self.times.least]
        if not pairs:
            seen = f"{self.gpus} GPUs, {self.times.least} of them for the experts, in steps of {step}"
            raise JanusError("scale.cluster", f"no pools of this policy fit in the cluster; {seen}")
        most = max(a + e for a, e in pairs)

        def step_ms(pair: tuple[int, int]) -> float:
            limit = max(1.0, min(self.room(pair[0], need), need.demand * need.slo_ms / 1e3))
            return float(np.interp(limit, self.knots, self.steps(pair[0], self.times.rest(*pair), need)))

        best = min((p for p in pairs if sum(p) == most), key=step_ms)
        return Sized(*best, float("nan"), float("nan"), feasible=False)
