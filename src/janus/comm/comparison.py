"""What each regime would send for a step, and what that would cost: numbers first, then a table to read. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus.comm.cost import CostModel
from janus.comm.layout import REGIMES, Route
from janus.comm.ports import LINKS, tally
from janus.comm.terms import LinkTraffic
from janus.types import Topology
from janus.types.checks import instance


@dataclass(frozen=True)
class Line:
    """One regime: traffic of all ranks together, per class of links, and the predicted time.

    Args:
        regime: its name.
        depth: its best depth; 1 where nothing is cut into pieces.
        traffic: of one dispatch and its combine, keys ``"in_node"`` and ``"between_nodes"``.
        seconds: by `CostModel.predict`.
    """

    regime: str
    depth: int
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
        rows = [f"{'regime':9} {'in-node':>24} {'between nodes':>24} {'predicted':>12}"]
        for line in self.lines:
            near, far = (f"{line.traffic[link].messages} msg {line.traffic[link].bytes} B" for link in LINKS)
            mark = "  <- auto" if line.regime == self.choice else ""
            rows.append(
                f"{Route(line.regime, line.depth)!s:9} {near:>24} {far:>24} {line.seconds * 1e6:>9.1f} us{mark}"
            )
        return "\n".join(rows)


def explain(topology: Topology, counts: Sequence[int], row_bytes: int, cost: CostModel | None = None) -> Explanation:
    """Compare the regimes for one layer with gate ``"experts"``.

    Args:
        topology: the two pools.
        counts: tokens of each attention instance.
        row_bytes: bytes of one row.
        cost: link classes; the default model when left out.

    Returns:
        The table; what ``"auto"`` never takes in this topology, because it repeats another, is in it all the same.

    Example:
        Two attention ranks and two expert ranks, one node each, 3 rows of 10 bytes per rank:

        >>> e = explain(Topology(((0, 1),), ((2, 3),)), (3, 3), 10)
        >>> [(line.regime, line.traffic["between_nodes"].messages) for line in e.lines]
        [('direct', 8), ('gather', 2), ('spread', 4), ('relay', 4)]
    """
    cost = CostModel() if cost is None else cost
    instance(cost, CostModel, "cost must be a janus.comm.CostModel", "comm.cost", "leave it out for the default")
    counts = tuple(cost.checked(topology, counts, row_bytes, "experts").tolist())
    given = {"topology": topology, "counts": counts, "row_bytes": row_bytes}
    lines = []
    for regime in REGIMES:
        route = cost.route(regime, **given)
        seconds = sum(cost.phase_seconds(route, topology, counts, row_bytes))
        lines.append(Line(regime, route.depth, traffic(route, topology, counts, row_bytes), seconds))
    return Explanation(tuple(lines), cost.choose(**given))


def traffic(route: Route | str, topology: Topology, counts: Sequence[int], row_bytes: int) -> dict[str, LinkTraffic]:
    """Payload of one dispatch and its combine with gate ``"experts"``, all ranks together."""
    route = Route(route) if isinstance(route, str) else route
    found = tally(route, topology, counts)
    return {link: LinkTraffic(c["messages"], c["rows"] * row_bytes) for link, c in found.items()}
