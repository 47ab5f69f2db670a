"""Which instance holds which replica: greedy in descending load, with a swap when stuck."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from janus.sched.popularity import Floats
from janus.types.placement import IntArray

# Weight of one shared pair of hosts against expected activated slots: only near-equal instances are told apart by it.
OVERLAP = 0.3


class Rule(Protocol):
    """How good each instance is for one more replica; keeps its own tallies."""

    def score(self, e: int) -> Floats:
        """float64 [G]: smaller is better."""
        ...

    def change(self, e: int, g: int, sign: int) -> None:
        """Note that expert `e` came to (+1) or left (-1) instance `g`."""
        ...


class Load:
    """Balance the sum of weights."""

    def __init__(self, weight_E: Floats, num_instances: int) -> None:
        self.weight, self.load = weight_E, np.zeros(num_instances)

    def score(self, e: int) -> Floats:
        """As `Rule.score`."""
        return self.load

    def change(self, e: int, g: int, sign: int) -> None:
        """As `Rule.change`."""
        self.load[g] += sign * self.weight[e]


class Overlap(Load):
    """Balance the sum of weights; near-equal instances: the one sharing fewest experts with e's other hosts."""

    def __init__(self, weight_E: Floats, num_instances: int) -> None:
        super().__init__(weight_E, num_instances)
        self.holds = np.zeros((num_instances, len(weight_E)))

    def score(self, e: int) -> Floats:
        """As `Rule.score`."""
        shared_G = self.holds @ (self.holds.T @ self.holds[:, e])
        return self.load + OVERLAP * shared_G

    def change(self, e: int, g: int, sign: int) -> None:
        """As `Rule.change`."""
        super().change(e, g, sign)
        self.holds[g, e] += sign


class Pressure:
    """The paper's: keep small the co-activation pressure I(g) = sum of a(e, e') over the pairs on g."""

    def __init__(self, coactivation_EE: Floats, num_instances: int) -> None:
        self.pairs = coactivation_EE
        self.total = np.zeros(num_instances)
        self.added = np.zeros((num_instances, len(coactivation_EE)))  # what expert e would add to I(g)

    def score(self, e: int) -> Floats:
        """As `Rule.score`."""
        return self.total + self.added[:, e]

    def change(self, e: int, g: int, sign: int) -> None:
        """As `Rule.change`."""
        self.total[g] += sign * self.added[g, e]  # the diagonal is zero, so e itself does not count
        self.added[g] += sign * self.pairs[e]


def assign_hosts(weight_E: Floats, replicas_E: IntArray, shape: tuple[int, int], rule: Rule) -> IntArray:
    """Place every replica, heaviest first, on the instance that `rule` likes best.

    Ties go to the instance with fewer experts, then to the lower id. Needs replicas <= G each and <= G * C in sum.

    Returns:
        int32 [G, C], experts in the order they came, padded with -1.
    """
    G, C = shape
    members: list[list[int]] = [[] for _ in range(G)]
    # heaviest first; replicas of one expert follow each other
    order = np.argsort(-weight_E, kind="stable")
    for e in np.repeat(order, replicas_E[order]).tolist():
        open_G = np.array([len(m) < C and e not in m for m in members])
        if not open_G.any():
            open_G[_make_room(e, members, C, rule)] = True
        # best score, then fewest experts, then lowest id
        score = np.where(open_G, rule.score(e), np.inf)
        g = int(np.lexsort((np.array([len(m) for m in members]), score))[0])
        members[g].append(e)
        rule.change(e, g, +1)
    slots: npt.NDArray[np.int32] = np.full(shape, -1, dtype=np.int32)
    for g, experts in enumerate(members):
        slots[g, : len(experts)] = experts
    return slots


def _make_room(e: int, members: list[list[int]], C: int, rule: Rule) -> int:
    """Every instance with room holds e already: move an expert there from a full one; returns the latter.

    One move is always enough: some instance h lacks e (e has at most G replicas) and is full with C experts, the one
    with room holds at most C - 1 and e among them, so h has an expert that it lacks.
    """
    g = next(i for i, m in enumerate(members) if len(m) < C)
    h = next(i for i, m in enumerate(members) if e not in m)
    moved = next(f for f in reversed(members[h]) if f not in members[g])  # the lightest
    members[h].remove(moved)
    members[g].append(moved)
    rule.change(moved, h, -1)
    rule.change(moved, g, +1)
    return h
