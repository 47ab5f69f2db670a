"""Seconds of one dispatch and combine for two pools of any size: `janus.comm.cost`, added up in closed form.

The planner asks for thousands of topologies, each many times; the cost model lists every hop of each. Pools that fill
node after node are regular enough to count the busiest port directly (`exchange_loops`). `ExchangeCost.listed_s` is
the plain way; tests hold the two equal.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.scale.hardware import Cluster, whole
from janus.types import Topology

if TYPE_CHECKING:
    from janus.comm.cost import CostModel

_FS = 1e15  # the cost model adds up whole femtoseconds


class Link(NamedTuple):
    """Time of a port of one class of links: `alpha` seconds per message, `beta` seconds per row."""

    alpha: float
    beta: float

    def time(self, messages: float, rows: float) -> float:
        """Seconds of one port."""
        return self.alpha * messages + self.beta * rows


class ExchangeCost:
    """The cheapest route's time for n_a attention and n_e expert instances, each pool on nodes of its own.

    Args:
        model: latency and inverse bandwidth per class of links; one with shared ports or with a time per phase has no
            closed form, and every answer lists the hops.
        gpus_per_node: instances per attention node; the last node of a pool may be partly filled.
        expert_gpus_per_node: instances per expert node; default the same.
    """

    def __init__(self, model: CostModel, gpus_per_node: int, expert_gpus_per_node: int | None = None) -> None:
        self.model, self.gpus_per_node = model, gpus_per_node
        self.expert_gpus_per_node = expert_gpus_per_node or gpus_per_node

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
        return cls(CostModel(alpha, beta), *(c.node_size for c in sides))

    @property
    def phase_s(self) -> float:
        """Seconds of a phase, whatever travels in it."""
        return self.model.round_s

    def link(self, name: str, row_bytes: int) -> Link:
        """One class of links, by the row."""
        alpha, beta = self.model.alpha_s[name], self.model.beta_s_per_byte[name]
        return Link(round(alpha * _FS) / _FS, round(beta * _FS) / _FS * row_bytes)

    def layer_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """Seconds of one dispatch and combine of `B` rows of `row_bytes` bytes, spread evenly over `n_a`."""
        for value, name, least in ((n_a, "n_a", 1), (n_e, "n_e", 1), (B, "B (rows)", 0)):
            whole(value, name, "exchange.range", least)
        if not self.closed:
            return self.listed_s(n_a, n_e, B, row_bytes)
        return min(self.regimes_s(n_a, n_e, B, row_bytes).values())

    def layers_s(
        self, n_a: npt.ArrayLike, n_e: npt.ArrayLike, B: npt.ArrayLike, row_bytes: int
    ) -> npt.NDArray[np.float64]:
        """float64 [N]: `layer_s` of many at once, a few microseconds each.

        Args:
            n_a, n_e: integers [N], or one for all; instances.
            B: integers [N], or one for all; rows.
            row_bytes: of one row.

        Raises:
            JanusError: ``exchange.range`` for anything but whole numbers, instances below 1 or rows below 0.

        Example:
            >>> from janus.scale import Cluster
            >>> cost = ExchangeCost.of(Cluster("h100-sxm"))
            >>> cost.layers_s([1, 2], 6, [64, 64], 14336)[1] == cost.layer_s(2, 6, 64, 14336)
            np.True_
        """
        given = np.broadcast_arrays(np.atleast_1d(n_a), n_e, B)
        if any(g.dtype.kind not in "iu" for g in given):
            kinds = ", ".join(str(g.dtype) for g in given)
            raise JanusError("exchange.range", f"n_a, n_e and B must be whole numbers, got {kinds}")
        pools_N3 = np.stack(given, axis=-1).astype(np.int64)
        if (pools_N3 < (1, 1, 0)).any():
            low = pools_N3[(pools_N3 < (1, 1, 0)).any(axis=1)][0].tolist()
            raise JanusError("exchange.range", f"n_a and n_e must be >= 1 and B >= 0, got n_a, n_e, B = {low}")
        if not self.closed:
            return np.array([self.listed_s(a, e, b, row_bytes) for a, e, b in pools_N3.tolist()])
        return self._table(pools_N3, row_bytes).min(axis=1)

    def regimes_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> dict[str, float]:
        """Of `layer_s`: seconds of each regime that may pay for these pools, at its best depth, in closed form."""
        from janus.scale.timing.exchange_loops import REGIMES

        seconds = self._table(np.array([[n_a, n_e, B]]), row_bytes)[0].tolist()
        return {name: s for name, s in zip(REGIMES, seconds, strict=True) if s < np.inf}

    def _table(self, pools_N3: npt.NDArray[np.int64], row_bytes: int) -> npt.NDArray[np.float64]:
        """[N, regimes]: seconds, inf for a regime that cannot pay."""
        from janus.scale.timing.exchange_loops import REGIMES, regimes

        pools_N5 = np.empty((len(pools_N3), 5), dtype=np.int64)
        pools_N5[:, :3], pools_N5[:, 3:] = pools_N3, (self.gpus_per_node, self.expert_gpus_per_node)
        out = np.empty((len(pools_N3), len(REGIMES)))
        regimes(pools_N5, np.array([self.link(name, row_bytes) for name in ("in_node", "between_nodes")]), out)
        return out

    def listed_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """As `layer_s`, from the cost model's list of hops: slow, the reference."""
        topology = self.topology(n_a, n_e)
        return self.model.predict("auto", topology=topology, counts=split(B, n_a), row_bytes=row_bytes)

    def topology(self, n_a: int, n_e: int) -> Topology:
        """The two pools, each filling node after node of its own size."""
        ranks = range(n_a + n_e)
        p, q = self.gpus_per_node, self.expert_gpus_per_node
        attention = tuple(tuple(ranks[i : min(i + p, n_a)]) for i in range(0, n_a, p))
        return Topology(attention, tuple(tuple(ranks[i : i + q]) for i in range(n_a, n_a + n_e, q)))

    @cached_property
    def closed(self) -> bool:
        """True when the costs have a closed form: ports of ranks alone, no time per phase, no measured factors."""
        m = self.model
        shared = (m.node_alpha_s, m.node_beta_s_per_byte, m.world_alpha_s, m.world_beta_s_per_byte)
        return not m.round_s and not m.factors and not any(value for level in shared for value in level.values())


def split(B: int, parts: int) -> list[int]:
    """`B` requests over `parts` instances as evenly as whole numbers allow.

    Example:
        >>> split(7, 3)
        [3, 2, 2]
    """
    each, more = divmod(B, parts)
    return [each + 1] * more + [each] * (parts - more)
