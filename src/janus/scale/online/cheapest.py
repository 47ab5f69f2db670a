"""The cheapest pools that serve a window, without looking at every pair: by rising cost, until some pair is feasible."""

from __future__ import annotations

from itertools import chain

from janus.scale.search.solve import CONSTRAINTS, Candidate, Problem, evaluate_all, pick

FIRST = 64  # pairs priced at once to begin with; then twice as many each time


def cheapest(problem: Problem, most: int) -> tuple[Candidate | None, tuple[Candidate, ...]]:
    """What `pick` chooses among all pairs of at most `most` GPUs, None when none is feasible; and all that was tried.

    Pairs of equal cost are tried together, so ties end as they do there. Without a feasible pair all were tried.
    """
    pairs = [(a, e) for a in range(1, problem.max_attention + 1) for e in range(1, problem.max_experts + 1)]
    costs = {pair: _cost(problem, *pair) for pair in pairs if sum(pair) <= most}
    ordered, tried, size = sorted(costs, key=lambda pair: (costs[pair], sum(pair))), [], FIRST
    while ordered:
        last = costs[ordered[min(size, len(ordered)) - 1]]
        now = [pair for pair in ordered if costs[pair] <= last]
        tried.append(evaluate_all(problem, now))
        if best := pick(tried[-1], problem.objective):
            return best, tuple(chain(*tried))
        ordered, size = ordered[len(now) :], 2 * size
    return None, tuple(chain(*tried))


def least_bad(problem: Problem, tried: tuple[Candidate, ...]) -> tuple[int, int]:
    """(n_a, n_e) of the most GPUs there are, where no pair is feasible; `tried` are all pairs.

    Where the cluster has fewer than both largest pools need: of the pairs that take most of them, the one that gets
    furthest through `CONSTRAINTS`, then the one with the shortest step.
    """
    if not problem.lacking(problem.max_attention, problem.max_experts):
        return problem.max_attention, problem.max_experts
    there = [c for c in tried if c.rejected != "expert_slots" and not problem.lacking(c.n_a, c.n_e)]
    best = min(there, key=lambda c: (-c.gpus, -CONSTRAINTS.index(c.rejected), c.tail_ms, c.n_a))
    return best.n_a, best.n_e


def _cost(problem: Problem, n_a: int, n_e: int) -> float:
    return Candidate(n_a, n_e, usd_per_hour=problem.usd_per_hour(n_a, n_e)).cost(problem.objective)
