"""Seconds of one dispatch and combine for two pools of any size: `janus.comm.cost`, added up in closed form.

The planner asks for thousands of topologies, each many times; the cost model lists every hop of each. Pools that fill
node after node are regular enough to count the busiest port directly. `ExchangeCost.listed_s` is the plain way;
tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from janus.scale.hardware import Cluster
from janus.scale.pieces import Array, relay_s, spread_s
from janus.types import Topology

if TYPE_CHECKING:
    from janus.comm.cost import CostModel

_FS = 1e15  # the cost model adds up whole femtoseconds


@dataclass(frozen=True)
class Link:
    """Time of a port of one class of links: `alpha` seconds per message, `beta` seconds per row."""

    alpha: float
    beta: float

    def time(self, messages: int, rows: float) -> float:
        """Seconds of one port."""
        return self.alpha * messages + self.beta * rows

    def times(self, rows: Array) -> Array:
        """Seconds of one message with so many rows each; none is sent without rows."""
        return self.alpha * (rows > 0) + self.beta * rows


class ExchangeCost:
    """The cheapest route's time for n_a attention and n_e expert instances, each pool on nodes of its own.

    Args:
        model: latency and inverse bandwidth per class of links; one with shared ports or with a time per phase has no
            closed form, and every answer lists the hops.
        gpus_per_node: instances per node; the last node of a pool may be partly filled.
    """

    def __init__(self, model: CostModel, gpus_per_node: int) -> None:
        self.model, self.gpus_per_node = model, gpus_per_node

    @classmethod
    def of(cls, cluster: Cluster, expert_cluster: Cluster | None = None) -> ExchangeCost:
        """From latencies and bandwidths; with pools on different hardware each class of links is as its slower side.

        Args:
            cluster: of the attention instances.
            expert_cluster: of the expert instances; default the same.
        """
        from janus.comm.cost import CostModel

        sides = (cluster, expert_cluster or cluster)
        alpha = {
            "in_node": max(c.in_node_latency_s for c in sides),
            "between_nodes": max(c.inter_node_latency_s for c in sides),
        }
        beta = {
            "in_node": 1 / min(c.gpu.link_bytes_per_s for c in sides),
            "between_nodes": 1 / min(c.inter_node_bytes_per_s for c in sides),
        }
        return cls(CostModel(alpha, beta), min(c.node_size for c in sides))

    def link(self, name: str, row_bytes: int) -> Link:
        """One class of links, by the row."""
        alpha, beta = self.model.alpha_s[name], self.model.beta_s_per_byte[name]
        return Link(round(alpha * _FS) / _FS, round(beta * _FS) / _FS * row_bytes)

    def layer_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """Seconds of one dispatch and combine of `B` rows of `row_bytes` bytes, spread evenly over `n_a`."""
        if not self._ranks_only:
            return self.listed_s(n_a, n_e, B, row_bytes)
        return min(self.regimes_s(n_a, n_e, B, row_bytes).values())

    def regimes_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> dict[str, float]:
        """Of `layer_s`: seconds of each regime that may pay for these pools, at its best depth, in closed form."""
        near, far = self.link("in_node", row_bytes), self.link("between_nodes", row_bytes)
        pools = Pools(n_a, n_e, B, self.gpus_per_node)
        found = routes(n_a, n_e, self.gpus_per_node)
        return {regime: FORMS[regime](pools, depths, near, far) for regime, depths in found}

    def listed_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """As `layer_s`, from the cost model's list of hops: slow, the reference."""
        topology = Topology.parse(f"{n_a}A{n_e}E", gpus_per_node=self.gpus_per_node)
        return self.model.predict("auto", topology=topology, counts=split(B, n_a), row_bytes=row_bytes)

    @cached_property
    def _ranks_only(self) -> bool:
        m = self.model
        shared = (m.node_alpha_s, m.node_beta_s_per_byte, m.world_alpha_s, m.world_beta_s_per_byte)
        return not m.round_s and not m.factors and not any(value for level in shared for value in level.values())


@lru_cache(maxsize=1 << 16)
def routes(n_a: int, n_e: int, gpus_per_node: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The regimes that ``"auto"`` tries for these pools, each with its depths.

    Example:
        >>> routes(1, 2, 8)
        (('direct', (1,)), ('gather', (1,)), ('spread', (1, 2, 4)))
    """
    from janus.comm.cost import candidates

    found: dict[str, tuple[int, ...]] = {}
    for route in candidates("auto", Topology.parse(f"{n_a}A{n_e}E", gpus_per_node=gpus_per_node)):
        found[route.regime] = (*found.get(route.regime, ()), route.depth)
    return tuple(found.items())


@dataclass(frozen=True)
class Pools:
    """`B` rows spread over `n_a` attention instances as by `split`, `size` instances per node."""

    n_a: int
    n_e: int
    B: int
    size: int

    def rows(self, a: int) -> int:
        """Rows of attention instance a."""
        each, more = divmod(self.B, self.n_a)
        return each + (a < more)

    def before(self, a: int) -> int:
        """Rows of the attention instances below a."""
        each, more = divmod(self.B, self.n_a)
        return a * each + min(a, more)

    @property
    def expert_nodes(self) -> int:
        """Nodes of the expert pool."""
        return -(-self.n_e // self.size)

    @property
    def last_size(self) -> int:
        """Instances of the last expert node; the others are full."""
        return self.n_e - (self.expert_nodes - 1) * self.size

    def attention_nodes(self) -> list[tuple[int, int, int]]:
        """(first instance, instances, rows) of every attention node."""
        firsts = range(0, self.n_a, self.size)
        sizes = [min(self.size, self.n_a - first) for first in firsts]
        return [(f, n, self.before(f + n) - self.before(f)) for f, n in zip(firsts, sizes, strict=True)]


def direct_s(p: Pools, far: Link) -> float:
    """Every attention instance to every expert instance, and back."""
    out = far.time(p.n_e if p.B else 0, p.n_e * p.rows(0))
    into = far.time(min(p.n_a, p.B), p.B)
    return 2 * max(out, into)


def gather_s(p: Pools, near: Link, far: Link) -> float:
    """Inside the attention node, once across per pair of nodes, inside the expert node, and back.

    Rows never grow from one instance to the next, so of the full attention nodes the first has the busiest ports.
    """
    nodes = p.attention_nodes()
    ends = {nodes[0], nodes[-1]}
    inside = [_inner(p, node, near) for node in ends]
    crossing = [far.time(served := -(-p.expert_nodes // n), served * rows) for _, n, rows in ends if rows]
    sizes = {min(p.size, p.n_e), p.last_size}
    crossing += [far.time(*_from(nodes, 0, n)) for n in sizes]
    spread = max(_spread(p, nodes, n, near) for n in sizes)
    return max(there for there, _ in inside) + max(home for _, home in inside) + 2 * (max(crossing) + spread)


def _from(nodes: list[tuple[int, int, int]], i: int, n: int) -> tuple[int, int]:
    """(messages, rows) that reach position i of an expert node of n instances: attention nodes i, i + n, ..."""
    rows = [rows for _, _, rows in nodes[i::n] if rows]
    return len(rows), sum(rows)


def _inner(p: Pools, node: tuple[int, int, int], near: Link) -> tuple[float, float]:
    """Busiest port inside one attention node, (to the senders, home): home takes one sum per node a sender served.

    Senders are the first min(n, expert nodes) positions; position j serves the expert nodes j, j + n, ... The busiest
    port is at an end of a run of positions that serve equally many.
    """
    first, n, total = node
    senders = min(n, p.expert_nodes)
    busy = min(n, max(0, min(p.B, p.n_a) - first))  # instances with rows; those without send nothing
    turn = p.expert_nodes % n  # senders below it serve one expert node more
    there, home = [0.0], [0.0]
    for j in {0, turn - 1, turn, senders - 1, senders} & set(range(n)):
        rows = p.rows(first + j)
        served = -(-(p.expert_nodes - j) // n) if j < senders else 0
        others = senders - (j < senders) if rows else 0
        there.append(near.time(others, rows * others))
        home.append(near.time(others, rows * (p.expert_nodes - served)))
        if j < senders:
            there.append(near.time(busy - (rows > 0), total - rows))
            home.append(near.time(busy - (rows > 0), served * (total - rows)))
    return max(there), max(home)


def _spread(p: Pools, nodes: list[tuple[int, int, int]], n: int, near: Link) -> float:
    """Busiest port inside an expert node of n instances: position 0 sends the most, the last one receives the most."""
    if n == 1:
        return 0.0
    messages, rows = _from(nodes, 0, n)
    few, least = _from(nodes, n - 1, n)
    arrived = sum(rows > 0 for _, _, rows in nodes)
    return max(near.time(messages * (n - 1), rows * (n - 1)), near.time(arrived - few, p.B - least))


FORMS: dict[str, Callable[[Pools, tuple[int, ...], Link, Link], float]] = {
    "direct": lambda pools, _, near, far: direct_s(pools, far),
    "gather": lambda pools, _, near, far: gather_s(pools, near, far),
    "spread": spread_s,
    "relay": relay_s,
}


def split(B: int, parts: int) -> list[int]:
    """`B` requests over `parts` instances as evenly as whole numbers allow.

    Example:
        >>> split(7, 3)
        [3, 2, 2]
    """
    each, more = divmod(B, parts)
    return [each + 1] * more + [each] * (parts - more)
