"""The same optimum from a mixed-integer program: few pairs are evaluated, however many types of GPU there are.

Logic-based Benders decomposition. The master problem chooses a type and a size for each pool and a range for the batch,
under linear constraints that every feasible plan meets: expert slots, memory of the attention instances, GPUs there are,
Little's law and the SLO with times that are never longer than the real ones. So its optimum is a lower bound. The pairs
that cost as much are evaluated exactly (`evaluate_all`); when none is feasible, the master must find a dearer one. An
incumbent from a heuristic bounds the cost from above. Placement follows from the chosen pool, by `janus.sched.place`;
`janus.scale.search.joint` puts it inside and checks that on small instances.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from janus.scale.search.solve import Candidate, Problem, evaluate_all, pick, search
from janus.scale.search.solvers import TOLERANCE, Unsolved, minimise, solver_name

LEVEL_RATIO = 1.25  # of neighbouring batch ranges: finer ones bound times better and make a larger program
# Times of the master are lowered by this share: a fitted time may fall a little between the batches that are looked at
MARGIN = 0.02
STEP = 0.02  # of the cost: pairs up to this share dearer than the master's optimum are evaluated with it


@dataclass(frozen=True)
class Limits:
    """How to solve: the solver's name and the seconds there are (None: no limit).

    Raises:
        JanusError: ``scale.solver``.
    """

    solver: str = "auto"
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver", solver_name(self.solver))


@dataclass
class State:
    """What the search knows: evaluated pairs, the best of them, and a bound below which nothing is feasible."""

    problems: tuple[Problem, ...]
    seen: dict[tuple[int, int, int], Candidate]
    rounds: int = 0
    bound: float = 0.0

    @property
    def best(self) -> Candidate | None:
        """The incumbent."""
        return pick(self.seen.values(), self.problems[0].objective)

    @property
    def ceiling(self) -> float:
        """Cost of the incumbent, infinite without one."""
        return self.best.cost(self.problems[0].objective) if self.best else math.inf

    def evaluate(self, keys: list[tuple[int, int, int]]) -> None:
        """Look at pairs (number of the problem, n_a, n_e) not looked at yet."""
        for number, problem in enumerate(self.problems):
            new = [key for key in dict.fromkeys(keys) if key[0] == number and key not in self.seen]
            found = evaluate_all(problem, [key[1:] for key in new])
            self.seen.update(zip(new, found, strict=True))


def solve(problems: tuple[Problem, ...], limits: Limits) -> tuple[tuple[Candidate, ...], Candidate | None, str]:
    """The pair of least cost over all problems; ties as in `pick`.

    Args:
        problems: one per pair of GPU types, of one model, demand and objective.
        limits: solver and time.

    Returns:
        (the pairs that were evaluated, the best one or None, what was proven). At the time limit, and on Ctrl-C when
        there is an incumbent, that one is returned and the proof says so.
    """
    state = State(problems, {})
    pairs = sum(p.max_attention * p.max_experts for p in problems)
    try:
        _warm_start(state)
        cut_short = _descend(state, limits)
    except KeyboardInterrupt:
        if state.best is None:
            raise
        cut_short = "interrupted"
    if state.best is None and not cut_short:  # say of every pair why not
        every = tuple(c for problem in problems for c in search(problem))
        return every, pick(every, problems[0].objective), f"optimal: {limits.solver}, then every pair was evaluated"
    work = f"{state.rounds} programs in {limits.solver}, {len(state.seen)} of {pairs} pairs evaluated"
    if cut_short:
        work = f"{cut_short}: best so far; nothing costs less than {state.bound:.6g} {problems[0].objective}; {work}"
        return tuple(state.seen.values()), state.best, work
    return tuple(state.seen.values()), state.best, f"optimal: {work}"


def _descend(state: State, limits: Limits) -> str:
    """Raise the bound until it meets the incumbent; "" or the reason why it did not."""
    started = time.monotonic()
    master = Master(state.problems)
    costs = _costs(state.problems)
    while True:
        left = None if limits.time_limit_s is None else limits.time_limit_s - (time.monotonic() - started)
        if left is not None and left <= 0:
            return "time limit"
        try:
            cheapest = master.solve(state.bound, state.ceiling, limits.solver, left)
        except Unsolved:
            return "time limit"
        state.rounds += 1
        if cheapest is None:
            return ""
        # all pairs of this cost and a little more: those not worth it cost less to evaluate than another program
        upto = cheapest * (1 + STEP) if state.problems[0].objective == "usd" else cheapest
        least = cheapest - TOLERANCE * max(1.0, cheapest)
        keys = [key for key, cost in costs.items() if least <= cost <= upto + 1e-9]
        state.evaluate(keys)
        dearer = [cost for cost in costs.values() if cost > upto + 1e-9]
        if state.ceiling <= upto + 1e-9 or not dearer:
            return ""
        state.bound = min(dearer)


def _costs(problems: tuple[Problem, ...]) -> dict[tuple[int, int, int], float]:
    out = {}
    for number, p in enumerate(problems):
        for n_a in range(1, p.max_attention + 1):
            for n_e in range(1, p.max_experts + 1):
                usd = p.usd_per_hour(n_a, n_e)
                assert p.objective == "gpus" or usd is not None
                out[number, n_a, n_e] = float(n_a + n_e) if p.objective == "gpus" else float(usd or 0.0)
    return out


def _warm_start(state: State) -> None:
    """Pools of doubling sizes, then smaller neighbours of the best while those are feasible and cost less."""
    ladders = []
    for number, p in enumerate(state.problems):
        least = -(-p.latency.model.experts // p.slots)
        sizes = [least + i for i in (0, 1, 2, 4, 8, 16, 32, 64) if least + i <= p.max_experts]
        ladders += [(number, a, e) for a in _doubling(p.max_attention) for e in sizes]
    state.evaluate(ladders)
    while best := state.best:
        number = next(i for i, p in enumerate(state.problems) if p.kinds == best.kinds)
        before = state.ceiling
        around = [
            (best.n_a - 1, best.n_e),
            (best.n_a, best.n_e - 1),
            (best.n_a + 1, best.n_e - 2),
            (best.n_a - 2, best.n_e + 1),
        ]
        p = state.problems[number]
        state.evaluate([(number, a, e) for a, e in around if 1 <= a <= p.max_attention and 1 <= e <= p.max_experts])
        if state.ceiling >= before:
            return


def _doubling(most: int) -> Iterator[int]:
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


class Master:
    """The relaxation: pools by type and size, and a range of batches; times from below.

    Args:
        problems: as for `solve`.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        self.levels = _levels(problems)
        p = problems[0]
        self.attention = {c.gpu.name: next(q for q in problems if q.kinds[0] == c.gpu.name) for c in _each(problems, 0)}
        self.experts = {c.gpu.name: next(q for q in problems if q.kinds[1] == c.gpu.name) for c in _each(problems, 1)}
        self.x = [(kind, n) for kind in self.attention for n in range(1, p.max_attention + 1)]
        self.y = [(kind, n) for kind in self.experts for n in range(1, p.max_experts + 1)]
        self.inside = [_inside(*ends, p.table.batch_sizes) for ends in pairwise(self.levels)]
        low = 1 - MARGIN
        self.mean_x = low * np.array([self._attention_ms(kind, n, 50.0) for kind, n in self.x])
        self.tail_x = low * np.array([self._attention_ms(kind, n, p.percentile) for kind, n in self.x])
        self.time_y = low * np.array([self._experts_ms(kind, n) for kind, n in self.y])
        self._in_units()

    def _in_units(self) -> None:
        """Times in units of about one step, cut off where they break the SLO anyway: solvers choke on 1e300."""
        p, times = self.problems[0], (self.mean_x, self.tail_x, self.time_y)
        times = [np.nan_to_num(t) for t in times]  # what overflows bounds nothing
        self.unit_ms = unit = min(p.slo_ms, max(float(t.max()) for t in times))
        self.mean_x, self.tail_x, self.time_y = (np.minimum(t / unit, 2.0) for t in times)
        self.slo = min(p.slo_ms / unit, 4.0)
        starved = 0.0 if p.demand is None else 1e3 / p.demand / unit  # the longest step that one request more allows
        self.allowed = [min((end - 1) * starved, 4.0) for end in self.levels[1:]]

    def solve(self, floor: float, ceiling: float, solver: str, seconds: float | None) -> float | None:
        """Least cost in [floor, ceiling] that the relaxation allows, None when it allows none.

        Raises:
            Unsolved: the solver ran out of time.
        """
        import pulp

        program = pulp.LpProblem("pools", pulp.LpMinimize)
        x = [program.add_variable(f"x{i}", cat="Binary") for i in range(len(self.x))]
        y = [program.add_variable(f"y{j}", cat="Binary") for j in range(len(self.y))]
        z = [program.add_variable(f"z{k}", cat="Binary") for k in range(len(self.levels) - 1)]
        cost = pulp.lpSum([*self._costs(self.x, x, 0), *self._costs(self.y, y, 1)])
        program += cost
        for chosen in (x, y, z):
            program += pulp.lpSum(chosen) == 1
        program += cost >= floor
        if ceiling < math.inf:
            program += cost <= ceiling
        self._memory(program, x, y, z)
        self._times(program, x, y, z)
        return minimise(program, solver, seconds)

    def _costs(self, options: list[tuple[str, int]], chosen: list[Any], side: int) -> list[Any]:
        p = self.problems[0]
        prices = {c.gpu.name: c.gpu.usd_per_hour for c in _each(self.problems, side)}
        return [
            v * n * (1 if p.objective == "gpus" else prices[kind]) for (kind, n), v in zip(options, chosen, strict=True)
        ]

    def _memory(self, program: Any, x: list[Any], y: list[Any], z: list[Any]) -> None:
        """Requests on the attention instances, experts in the slots, GPUs in the cluster, prompts in the time."""
        import pulp

        room = [v * n * self.attention[kind].capacity for (kind, n), v in zip(self.x, x, strict=True)]
        program += pulp.lpSum(room) >= pulp.lpSum(v * int(b) for b, v in zip(self.levels[:-1], z, strict=True))
        held = [v * n * self.experts[kind].slots for (kind, n), v in zip(self.y, y, strict=True)]
        program += pulp.lpSum(held) >= self.problems[0].latency.model.experts
        sides = [{c.gpu.name: c for c in _each(self.problems, side)} for side in (0, 1)]
        for cluster in dict.fromkeys(c for side in sides for c in side.values()):
            if cluster.gpus is not None:  # both pools draw on it where both name the very same cluster
                chosen = ((sides[0], self.x, x), (sides[1], self.y, y))
                used = [v * n for of, o, c in chosen for (kind, n), v in zip(o, c, strict=True) if of[kind] == cluster]
                program += pulp.lpSum(used) <= cluster.gpus

    def _times(self, program: Any, x: list[Any], y: list[Any], z: list[Any]) -> None:
        """Little's law and the SLO, each with the times of the range of batches that is chosen."""
        import pulp

        mean, tail, experts = (program.add_variable(name, lowBound=0) for name in ("mean", "tail", "experts"))
        for k, level in enumerate(z):
            for bound, times, chosen in ((mean, self.mean_x, x), (tail, self.tail_x, x), (experts, self.time_y, y)):
                least = pulp.lpSum(v * float(t) for v, t in zip(chosen, times[:, k], strict=True))
                program += bound >= least - float(times[:, k].max()) * (1 - level)
        program += tail + experts <= self.slo
        if self.problems[0].demand is not None:
            program += pulp.lpSum(v * longest for longest, v in zip(self.allowed, z, strict=True)) >= mean + experts

    def _attention_ms(self, kind: str, n: int, percentile: float) -> list[float]:
        """Per range: attention, what is outside the layers, and the rows of an instance once over its NIC and back."""
        p = self.attention[kind]
        m, steps = p.latency.model, p.steps

        def at(B: int) -> float:
            attention, _, other = p.latency.side_us(-(-B // n), steps.slowest_context(n, B, percentile))
            return (m.layers * attention + m.moe_layers * self._crossing_us(kind, B / n) + other) / 1e3

        return [min(map(at, batches)) for batches in self.inside]

    def _experts_ms(self, kind: str, n: int) -> list[float]:
        """Per range: routed experts."""
        p = self.experts[kind]
        if n * p.slots < p.latency.model.experts:
            return [0.0] * len(self.inside)  # the table has no such pool; the slots forbid it

        def at(B: int) -> float:
            return p.latency.model.moe_layers * p.latency.pool_moe_us(p.table.at(n, B, p.slots), B) / 1e3

        return [min(map(at, batches)) for batches in self.inside]

    def _crossing_us(self, kind: str, rows: float) -> float:
        """Over the fastest network that the attention pool may have with any expert pool."""
        costs = [p.latency.cost for p in self.problems if p.kinds[0] == kind]
        if not all(cost.closed for cost in costs):  # times of phases or factors may make a route cheaper than its rows
            return 0.0
        row_bytes = 2 * self.problems[0].latency.model.hidden
        return min(2e6 * cost.link("between_nodes", row_bytes).time(1, rows) for cost in costs)


def _inside(first: int, end: int, measured: Sequence[int]) -> list[int]:
    """Batches of a range [first, end) to take the least time of: times of a table or a fitted kernel may fall in it.

    Both ends, the measured batch sizes inside, where a table bends, and two between.
    """
    last = end - 1
    between = [round(first * (last / first) ** share) for share in (1 / 3, 2 / 3)]
    return sorted({first, last, *between, *(B for B in measured if first < B < last)})


def _each(problems: tuple[Problem, ...], side: int) -> list[Any]:
    found = {p.kinds[side]: (p.latency.cluster, p.latency.expert_cluster)[side] for p in problems}
    return list(found.values())


def _levels(problems: tuple[Problem, ...]) -> list[int]:
    """Ends of the ranges of batches, ascending: the fixed batch alone, or 1, 2, ... as far as a fixed point can lie."""
    p = problems[0]
    if p.batch is not None:
        return [p.batch, p.batch + 1]
    assert p.demand is not None
    most = min(p.max_batch, int(min(p.demand * p.slo_ms / 1e3, p.max_batch)) + 1)
    ends = [1]
    while ends[-1] <= most:
        ends.append(max(ends[-1] + 1, int(ends[-1] * LEVEL_RATIO)))
    return ends
