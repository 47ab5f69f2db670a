"""What an exchange costs: latency and bytes of the busiest port, phase by phase. Torch-free.

Every rank has one port out and one port in per class of links; the messages of a port follow one another, the ports
work at the same time, and a phase takes as long as its busiest port. Times are kept in whole femtoseconds: integer
sums have no order, so every rank predicts, and chooses, exactly alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.comm.layout import REGIMES, Hop, parts, phases, same_box
from janus.errors import JanusError, known
from janus.types import Topology
from janus.types.checks import instance, integer

LINKS = ("in_node", "between_nodes")
_FS = 1e15  # femtoseconds per second
_ALPHA_S = {"in_node": 5e-6, "between_nodes": 12e-6}
_BETA_S = {"in_node": 1 / 450e9, "between_nodes": 1 / 50e9}

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CostModel:
    """Latency and inverse bandwidth per class of links.

    The defaults describe eight-GPU boxes: NVLink at 450 GB/s each way and 400 Gb/s (50 GB/s) per GPU between
    boxes; the latencies are those of a small message with its launch. They are for planning; on CPUs over gloo
    give your own.

    Args:
        alpha_s: seconds per message, keys ``"in_node"`` and ``"between_nodes"``.
        beta_s_per_byte: seconds per byte, same keys.

    Raises:
        JanusError: ``comm.cost`` for missing or unknown links and for numbers that are not finite and >= 0.

    Example:
        One row of 1000 bytes from one rank to one rank in another box, and its sum back:

        >>> m = CostModel({"in_node": 0, "between_nodes": 1e-6}, {"in_node": 0, "between_nodes": 1e-9})
        >>> m.predict("direct", topology=Topology(((0,),), ((1,),)), counts=(1,), row_bytes=1000)
        4e-06
    """

    alpha_s: dict[str, float] = field(default_factory=lambda: dict(_ALPHA_S))
    beta_s_per_byte: dict[str, float] = field(default_factory=lambda: dict(_BETA_S))

    def __post_init__(self) -> None:
        for name in ("alpha_s", "beta_s_per_byte"):
            object.__setattr__(self, name, _per_link(name, getattr(self, name)))

    def predict(
        self, regime: str, *, topology: Topology, counts: Sequence[int], row_bytes: int, gate: str = "experts"
    ) -> float:
        """Seconds for one dispatch and its combine.

        Args:
            regime: ``"direct"`` or ``"gather"``.
            topology: the two pools.
            counts: tokens of each attention instance.
            row_bytes: bytes of one row, H times the size of an element.
            gate: with ``"attention"`` the rows that travel depend on the routing; all of them is the upper bound
                that is predicted.
        """
        known(regime, REGIMES, "regime", "comm.regime")
        known(gate, ("experts", "attention"), "gate", "comm.gate")
        return self._femtoseconds(regime, topology, counts, row_bytes) / _FS

    def choose(self, *, topology: Topology, counts: Sequence[int], row_bytes: int, gate: str = "experts") -> str:
        """The cheapest regime; the earlier in ``("direct", "gather")`` when equal."""
        known(gate, ("experts", "attention"), "gate", "comm.gate")
        return min(REGIMES, key=lambda regime: self._femtoseconds(regime, topology, counts, row_bytes))

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Plain numbers, for JSON; `CostModel(**d)` reads them back."""
        return {"alpha_s": dict(self.alpha_s), "beta_s_per_byte": dict(self.beta_s_per_byte)}

    def _femtoseconds(self, regime: str, topology: Topology, counts: Sequence[int], row_bytes: int) -> int:
        remedy = "try Topology.parse('2A4E')"
        instance(topology, Topology, "topology must be a janus.Topology", "comm.topology", remedy)
        integer(row_bytes, "row_bytes", "comm.row_bytes")
        rows = np.asarray(counts, dtype=np.int64)
        if rows.shape != (topology.n_attention,):
            raise JanusError(
                "comm.count", f"counts must name {topology.n_attention} attention instances, got {len(counts)}"
            )
        if rows.min() < 0:
            raise JanusError("comm.count", f"counts are tokens, each >= 0, got {list(counts)}; 0 for an idle instance")
        total = 0
        for ports in _ports(regime, topology):
            total += ports.busiest(rows, row_bytes, self)
        return total


@dataclass(frozen=True)
class Ports:
    """The messages of one phase, in one direction, added up per port.

    Args:
        groups: [S, n_a] 0/1: which attention instances make up each distinct set of sources.
        messages: per link, [P, S]: messages of each port that carry rows of that set.
        loads: per link, [P, S]: how many times the rows of that set pass the port.
    """

    groups: IntArray
    messages: tuple[IntArray, ...]
    loads: tuple[IntArray, ...]

    def busiest(self, rows: IntArray, row_bytes: int, cost: CostModel) -> int:
        """Femtoseconds of the busiest port; messages without rows are not sent."""
        size = self.groups @ rows
        sent, size = (size > 0).astype(np.int64), size * row_bytes
        worst = 0
        for link, messages, loads in zip(LINKS, self.messages, self.loads, strict=True):
            if len(messages):
                alpha, beta = round(cost.alpha_s[link] * _FS), round(cost.beta_s_per_byte[link] * _FS)
                worst = max(worst, int((messages @ (sent * alpha) + loads @ (size * beta)).max()))
        return worst


@lru_cache(maxsize=64)
def _ports(regime: str, topology: Topology) -> tuple[Ports, ...]:
    """Every phase there and back."""
    there = phases(regime, topology)
    return tuple(_add_up(phase, topology, back=back) for phase in there for back in (False, True))


def _add_up(phase: Sequence[Hop], topology: Topology, *, back: bool) -> Ports:
    hops = [hop for hop in phase if hop.src != hop.dst]
    sets = sorted({hop.sources for hop in hops})
    groups = np.zeros((len(sets), topology.n_attention), dtype=np.int64)
    for i, sources in enumerate(sets):
        groups[i, list(sources)] = 1
    messages, loads = [], []
    for near in (True, False):
        chosen = [hop for hop in hops if same_box(topology, hop.src, hop.dst) == near]
        names = sorted({port for hop in chosen for port in _ends(hop)})
        counted = np.zeros((2, len(names), len(sets)), dtype=np.int64)
        for hop in chosen:
            times = len(parts(hop.targets, topology)) if back else 1
            for port in _ends(hop):
                counted[:, names.index(port), sets.index(hop.sources)] += (1, times)
        messages.append(counted[0])
        loads.append(counted[1])
    return Ports(groups, tuple(messages), tuple(loads))


def _ends(hop: Hop) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("out", hop.src), ("in", hop.dst)


def _per_link(name: str, given: Any) -> dict[str, float]:
    if not isinstance(given, dict) or set(given) != set(LINKS):
        raise JanusError("comm.cost", f"{name} must be a dict with the keys {', '.join(LINKS)}, got {given!r}")
    for link, value in given.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise JanusError("comm.cost", f"{name}[{link!r}] must be a finite number >= 0, got {value!r}")
    return {link: float(given[link]) for link in LINKS}
