"""Which instance holds which replica: greedy in descending load, with a swap when stuck."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from janus.sched.popularity import Floats
from janus.types.placement import IntArray

# Weight of one shared pair of hosts against expected activated slots: only near-equal instances are told apart by it.
# A power of two, so that every product is exact.
OVERLAP = 1 / 32


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


class Full(Exception):
    """No instance may take the replica, and moving one expert does not change that."""


def assign_hosts(
    weight_E: Floats,
    replicas_E: IntArray,
    shape: tuple[int, int],
    rule: Rule,
    *,
    kept: list[list[int]] | None = None,
    node_size: int = 1,
) -> IntArray:
    """Place every replica, heaviest first, on the instance that `rule` likes best.

    Ties go to the instance with fewer experts, then to the lower id. Needs replicas <= G each and <= G * C in sum.

    Args:
        weight_E: float64 [E].
        replicas_E: int32 [E], those already in `kept` included.
        shape: (G, C).
        rule: what makes an instance good.
        kept: experts that instances hold already, and keep.
        node_size: instances per node; a replica goes to a node without the expert while there is one.

    Returns:
        int32 [G, C], experts in the order they came, padded with -1.

    Raises:
        Full: with nodes of more than one instance, or with `kept`, where no single move makes room.
    """
    members = Members(shape, kept, node_size)
    for g, experts in enumerate(members.rows):
        for e in experts:
            rule.change(e, g, +1)
    missing_E = replicas_E - members.count(len(weight_E))
    # heaviest first; replicas of one expert follow each other
    order = np.argsort(-weight_E, kind="stable")
    for e in np.repeat(order, missing_E[order]).tolist():
        open_G = members.open(e)
        if not open_G.any():
            open_G[members.make_room(e, rule)] = True
        # best score, then fewest experts, then lowest id
        score = np.where(open_G, rule.score(e), np.inf)
        g = int(np.lexsort((members.size_G, score))[0])
        members.add(e, g)
        rule.change(e, g, +1)
    return members.slots()


class Members:
    """Which experts instances hold while a map is filled."""

    def __init__(self, shape: tuple[int, int], kept: list[list[int]] | None, node_size: int) -> None:
        self.shape, self.node_size = shape, node_size
        self.rows: list[list[int]] = [[] for _ in range(shape[0])]
        self.size_G = np.zeros(shape[0], dtype=np.int64)
        self.hosts: dict[int, list[int]] = {}
        for g, row in enumerate(kept or ()):
            for e in row:
                self.add(e, g)

    def add(self, e: int, g: int) -> None:
        """Expert e comes to g."""
        self.rows[g].append(e)
        self.size_G[g] += 1
        self.hosts.setdefault(e, []).append(g)

    def remove(self, e: int, g: int) -> None:
        """Expert e leaves g."""
        self.rows[g].remove(e)
        self.size_G[g] -= 1
        self.hosts[e].remove(g)

    def count(self, num_experts: int) -> IntArray:
        """int32 [E]: replicas of each expert."""
        return np.array([len(self.hosts.get(e, ())) for e in range(num_experts)], dtype=np.int32)

    def open(self, e: int) -> npt.NDArray[np.bool_]:
        """bool [G]: instances with room that may take e: on a node without it while there is one."""
        open_G = self.size_G < self.shape[1]
        hosts, size = self.hosts.get(e, []), self.node_size
        everywhere = len({h // size for h in hosts}) == self.shape[0] // size
        for h in hosts:
            first = h if everywhere else h // size * size
            open_G[first : h + 1 if everywhere else first + size] = False
        return open_G

    def may_take(self, g: int, e: int, leaves: int = -1) -> bool:
        """Whether e, having left `leaves`, may come to g: not twice on one instance, and on as many nodes as can be."""
        hosts = [h for h in self.hosts.get(e, ()) if h != leaves]
        if g in hosts:
            return False
        nodes = {h // self.node_size for h in hosts} | {g // self.node_size}
        return len(nodes) >= min(len(hosts) + 1, self.shape[0] // self.node_size)

    def make_room(self, e: int, rule: Rule) -> int:
        """No instance with room may take e: move an expert there from a full one that may; returns the latter.

        Without nodes one move is always enough: e has at most G replicas, so some instance h lacks it; h is full with
        C experts, one with room holds at most C - 1 and e among them, so h has an expert that it lacks.
        """
        G, C = self.shape
        ways = ((g, h) for g in range(G) if self.size_G[g] < C for h in range(G) if self.may_take(h, e))
        for g, h in ways:
            for f in reversed(self.rows[h]):  # the lightest
                if self.may_take(g, f, leaves=h):
                    self.remove(f, h)
                    self.add(f, g)
                    rule.change(f, h, -1)
                    rule.change(f, g, +1)
                    return h
        raise Full

    def slots(self) -> IntArray:
        """int32 [G, C], padded with -1."""
        slots: npt.NDArray[np.int32] = np.full(self.shape, -1, dtype=np.int32)
        for g, experts in enumerate(self.rows):
            slots[g, : len(experts)] = experts
        return slots


def deal(replicas_E: IntArray, order_E: npt.NDArray[np.integer], shape: tuple[int, int], node_size: int) -> IntArray:
    """Deal replicas, expert after expert in the order given, to the nodes in turn and there to the instances in turn.

    R(e) replicas in a row reach min(R(e), nodes) nodes, and no instance twice while R(e) <= G; no instance gets more
    than its share. So a map with any such replicas exists, for any node size that divides G.
    """
    nodes = shape[0] // node_size
    rows: list[list[int]] = [[] for _ in range(shape[0])]
    for t, e in enumerate(np.repeat(order_E, replicas_E[order_E]).tolist()):
        rows[t % nodes * node_size + t // nodes % node_size].append(e)
    return Members(shape, rows, node_size).slots()
