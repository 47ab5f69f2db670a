"""What the planner needs to know about the exchange: seconds of one dispatch and combine for two pools of any size."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

from janus.scale.hardware import Cluster
from janus.types import Topology


class Predicts(Protocol):
    """The part of `janus.comm.cost.CostModel` that the planner uses."""

    def predict(
        self, regime: str, *, topology: Topology, counts: list[int], row_bytes: int, gate: str = "experts"
    ) -> float:
        """Seconds of one dispatch and combine."""
        ...


class PortCost:
    """Latency + bytes / bandwidth of the busiest port, both pools on nodes of their own."""

    def __init__(self, alpha_s: dict[str, float], beta_s_per_byte: dict[str, float]) -> None:
        self.alpha, self.beta = alpha_s, beta_s_per_byte

    def predict(
        self, regime: str, *, topology: Topology, counts: list[int], row_bytes: int, gate: str = "experts"
    ) -> float:
        """Seconds of one dispatch and combine of `counts` rows per attention rank."""
        total, b = sum(counts) * row_bytes, max(counts) * row_bytes
        n_a, n_e = topology.n_attention, topology.n_experts
        slow, fast = self.beta["between_nodes"], self.beta["in_node"]
        if regime == "direct":
            one_way = max(n_a, n_e) * self.alpha["between_nodes"] + max(n_e * b, total) * slow
            return 2 * one_way
        per_a, per_e = max(map(len, topology.attention)), max(map(len, topology.experts))
        node_out = max(per_a * b * len(topology.experts) / per_a, total / per_e)
        cross = max(len(topology.attention), len(topology.experts)) * self.alpha["between_nodes"] + node_out * slow
        spread = self.alpha["in_node"] + total * fast if per_e > 1 else 0.0
        gather = self.alpha["in_node"] + per_a * b * fast if per_a > 1 else 0.0
        return 2 * (cross + spread + gather)


class ExchangeCost:
    """The cheapest regime's time for n_a attention and n_e expert instances, each pool on nodes of its own.

    Args:
        model: predicts seconds for one regime.
        gpus_per_node: instances per node; the last node of a pool may be partly filled.
        regimes: those to choose from.
    """

    def __init__(self, model: Predicts, gpus_per_node: int, regimes: tuple[str, ...] = ("direct", "gather")) -> None:
        self.model, self.gpus_per_node, self.regimes = model, gpus_per_node, regimes
        self._topology = lru_cache(maxsize=None)(self._make_topology)

    @classmethod
    def of(cls, cluster: Cluster) -> ExchangeCost:
        """From a cluster's latencies and bandwidths."""
        alpha = {"in_node": cluster.in_node_latency_s, "between_nodes": cluster.inter_node_latency_s}
        beta = {"in_node": 1 / cluster.gpu.link_bytes_per_s, "between_nodes": 1 / cluster.inter_node_bytes_per_s}
        return cls(PortCost(alpha, beta), cluster.node_size)

    def layer_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """Seconds of one dispatch and combine of `B` rows of `row_bytes` bytes, spread evenly over `n_a`."""
        topology, counts = self._topology(n_a, n_e), split(B, n_a)
        args: dict[str, Any] = {"topology": topology, "counts": counts, "row_bytes": row_bytes}
        return min(self.model.predict(regime, **args) for regime in self.regimes)

    def _make_topology(self, n_a: int, n_e: int) -> Topology:
        return Topology.parse(f"{n_a}A{n_e}E", gpus_per_node=self.gpus_per_node)


def split(B: int, parts: int) -> list[int]:
    """`B` requests over `parts` instances as evenly as whole numbers allow.

    Example:
        >>> split(7, 3)
        [3, 2, 2]
    """
    each, more = divmod(B, parts)
    return [each + 1] * more + [each] * (parts - more)
