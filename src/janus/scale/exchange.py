"""Seconds of one dispatch and combine for two pools of any size: `janus.comm.cost`, added up in closed form.

The planner asks for thousands of topologies, each many times; the cost model lists every hop of each. Pools that fill
node after node are regular enough to count the busiest port directly. `ExchangeCost.listed_s` is the plain way;
tests hold the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from janus.scale.hardware import Cluster
from janus.types import Topology

if TYPE_CHECKING:
    from janus.comm.cost import CostModel

REGIMES = ("direct", "gather")
_FS = 1e15  # the cost model adds up whole femtoseconds


@dataclass(frozen=True)
class Link:
    """Time of a port of one class of links: `alpha` seconds per message, `beta` seconds per row."""

    alpha: float
    beta: float

    def time(self, messages: int, rows: float) -> float:
        """Seconds of one port."""
        return self.alpha * messages + self.beta * rows


class ExchangeCost:
    """The cheaper regime's time for n_a attention and n_e expert instances, each pool on nodes of its own.

    Args:
        model: latency and inverse bandwidth per class of links.
        gpus_per_node: instances per node; the last node of a pool may be partly filled.
    """

    def __init__(self, model: CostModel, gpus_per_node: int) -> None:
        self.model, self.gpus_per_node = model, gpus_per_node

    @classmethod
    def of(cls, cluster: Cluster) -> ExchangeCost:
        """From a cluster's latencies and bandwidths."""
        from janus.comm.cost import CostModel

        alpha = {"in_node": cluster.in_node_latency_s, "between_nodes": cluster.inter_node_latency_s}
        beta = {"in_node": 1 / cluster.gpu.link_bytes_per_s, "between_nodes": 1 / cluster.inter_node_bytes_per_s}
        return cls(CostModel(alpha, beta), cluster.node_size)

    def link(self, name: str, row_bytes: int) -> Link:
        """One class of links, by the row."""
        alpha, beta = self.model.alpha_s[name], self.model.beta_s_per_byte[name]
        return Link(round(alpha * _FS) / _FS, round(beta * _FS) / _FS * row_bytes)

    def layer_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """Seconds of one dispatch and combine of `B` rows of `row_bytes` bytes, spread evenly over `n_a`."""
        near, far = self.link("in_node", row_bytes), self.link("between_nodes", row_bytes)
        pools = Pools(n_a, n_e, B, self.gpus_per_node)
        return min(direct_s(pools, far), gather_s(pools, near, far))

    def listed_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """As `layer_s`, from the cost model's list of hops: slow, the reference."""
        topology = Topology.parse(f"{n_a}A{n_e}E", gpus_per_node=self.gpus_per_node)
        counts = split(B, n_a)
        return min(self.model.predict(r, topology=topology, counts=counts, row_bytes=row_bytes) for r in REGIMES)


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
    sizes = {min(p.size, p.n_e), p.n_e - (p.expert_nodes - 1) * p.size}
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


def split(B: int, parts: int) -> list[int]:
    """`B` requests over `parts` instances as evenly as whole numbers allow.

    Example:
        >>> split(7, 3)
        [3, 2, 2]
    """
    each, more = divmod(B, parts)
    return [each + 1] * more + [each] * (parts - more)
