"""What each regime would send for a step, and what that would cost: numbers first, then a table to read. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus.comm.cost import CostModel
from janus.comm.layout import REGIMES, Hop, parts, phases, same_box
from janus.comm.terms import LinkTraffic
from janus.types import Topology


@dataclass(frozen=True)
class Line:
    """One regime: traffic of all ranks together, per class of links, and the predicted time.

    Args:
        regime: its name.
        traffic: of one dispatch and its combine, keys ``"in_node"`` and ``"between_nodes"``.
        seconds: by `CostModel.predict`.
    """

    regime: str
    traffic: dict[str, LinkTraffic]
    seconds: float


@dataclass(frozen=True)
class Explanation:
    """The regimes side by side; `str()` gives the table.

    Args:
        lines: one per regime.
        choice: what ``"auto"`` takes.
    """

    lines: tuple[Line, ...]
    choice: str

    def __str__(self) -> str:
        rows = [f"{'regime':8} {'in-node':>24} {'between nodes':>24} {'predicted':>12}"]
        for line in self.lines:
            near, far = (f"{t.messages} msg {t.bytes} B" for t in line.traffic.values())
            mark = "  <- auto" if line.regime == self.choice else ""
            rows.append(f"{line.regime:8} {near:>24} {far:>24} {line.seconds * 1e6:>9.1f} us{mark}")
        return "\n".join(rows)


def explain(topology: Topology, counts: Sequence[int], row_bytes: int, cost: CostModel | None = None) -> Explanation:
    """Compare the regimes for one layer with gate ``"experts"``.

    Args:
        topology: the two pools.
        counts: tokens of each attention instance.
        row_bytes: bytes of one row.
        cost: link classes; the default model when left out.

    Example:
        Two attention ranks and two expert ranks, one node each, 3 rows of 10 bytes per rank:

        >>> e = explain(Topology(((0, 1),), ((2, 3),)), (3, 3), 10)
        >>> [(line.regime, line.traffic["between_nodes"].messages) for line in e.lines]
        [('direct', 8), ('gather', 2)]
    """
    cost = cost or CostModel()
    lines = tuple(
        Line(
            regime,
            traffic(regime, topology, counts, row_bytes),
            cost.predict(regime, topology=topology, counts=counts, row_bytes=row_bytes),
        )
        for regime in REGIMES
    )
    return Explanation(lines, cost.choose(topology=topology, counts=counts, row_bytes=row_bytes))


def traffic(regime: str, topology: Topology, counts: Sequence[int], row_bytes: int) -> dict[str, LinkTraffic]:
    """Payload of one dispatch and its combine with gate ``"experts"``, all ranks together."""
    total = {"in_node": LinkTraffic(), "between_nodes": LinkTraffic()}
    for hop in (hop for phase in phases(regime, topology) for hop in phase):
        size = hop.rows(counts) * row_bytes
        if size and hop.src != hop.dst:
            link = "in_node" if same_box(topology, hop.src, hop.dst) else "between_nodes"
            total[link] = total[link].plus(size).plus(size * _sums(hop, topology))
    return total


def _sums(hop: Hop, topology: Topology) -> int:
    return len(parts(hop.targets, topology))
