"""The cost model from timed exchanges: non-negative least squares over the busiest ports. Torch-free.

The time of a route is a sum, over its phases, of the largest of several sums that are linear in the parameters. Given
which port is the busiest in each phase, it is linear, and a least-squares problem with parameters >= 0; its solution
says anew which ports are the busiest. A few such turns settle. Errors count relative to the time measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from janus.comm.cost import CostModel
from janus.comm.layout import Route
from janus.comm.ports import LEVELS, LINKS, ports_of
from janus.types import Topology

FloatArray = npt.NDArray[np.float64]
TURNS = 25
SWEEPS = 80
LIMITS = (0.5, 2.0)  # of a factor: what is further off is noise
KINDS = len(LEVELS) * len(LINKS)


@dataclass(frozen=True)
class Observation:
    """One dispatch and its combine took `seconds` over `route`, with `counts` rows of each attention instance."""

    route: Route
    counts: tuple[int, ...]
    seconds: float


def fit(observations: Sequence[Observation], topology: Topology, row_bytes: int) -> CostModel:
    """The model whose predictions come nearest to what was observed.

    Args:
        observations: at least one.
        topology: of all of them.
        row_bytes: of all of them.

    Example:
        100 us per message between two boxes and 1 ns per byte are found again from three times:

        >>> t, true = Topology(((0,),), ((1,),)), CostModel({"in_node": 0, "between_nodes": 1e-4}, {"in_node": 0, "between_nodes": 1e-9})
        >>> ns = (1, 16, 256)
        >>> seen = [true.predict("direct", topology=t, counts=(n,), row_bytes=4096) for n in ns]
        >>> found = fit([Observation(Route("direct"), (n,), s) for n, s in zip(ns, seen)], t, 4096)
        >>> [round(found.predict("direct", topology=t, counts=(n,), row_bytes=4096) / s, 3) for n, s in zip(ns, seen)]
        [1.0, 1.0, 1.0]
    """
    cells = [_Cell(o, topology, row_bytes) for o in observations]
    scale = np.maximum(np.max([cell.features.max(axis=0) for cell in cells], axis=0), 1e-300)
    best, least = np.zeros(2 * KINDS + 1), np.inf
    for start in _starts(cells):
        theta = start
        for _ in range(TURNS):
            rows = np.array([cell.busiest(theta) / cell.seconds for cell in cells])
            theta = 0.5 * theta + 0.5 * _non_negative(rows / scale, np.ones(len(cells)), theta * scale) / scale
            error = float(np.mean([abs(cell.predict(theta) / cell.seconds - 1) for cell in cells]))
            if error < least:
                best, least = theta, error
    model = _model(best)
    return replace(model, factors=_factors(model, observations, topology, row_bytes))


def _factors(
    model: CostModel, observations: Sequence[Observation], topology: Topology, row_bytes: int
) -> dict[str, list[list[float]]]:
    """What the ports leave unsaid about each route: its phases overlap, or get in each other's way."""
    found: dict[str, dict[int, list[float]]] = {}
    for o in observations:
        predicted = sum(model.phase_seconds(o.route, topology, o.counts, row_bytes))
        if predicted:
            found.setdefault(str(o.route), {}).setdefault(sum(o.counts), []).append(o.seconds / predicted)
    return {
        route: [[rows, float(np.clip(np.median(ratios), *LIMITS))] for rows, ratios in sorted(points.items())]
        for route, points in found.items()
    }


class _Cell:
    """One observation with what every port carries in it."""

    def __init__(self, observation: Observation, topology: Topology, row_bytes: int) -> None:
        ports = ports_of(observation.route, topology)
        rows = ports.rows(np.asarray(observation.counts, dtype=np.int64), None)[ports.bundle]
        entries = np.zeros((len(rows), 2 * KINDS + 1))
        lines = np.arange(len(rows))
        entries[lines, ports.kind] = ports.messages * (rows > 0)
        entries[lines, KINDS + ports.kind] = ports.loads * rows * float(row_bytes)
        self.features = np.add.reduceat(entries, ports.starts) if len(rows) else np.zeros((1, 2 * KINDS + 1))
        self.features[:, -1] = self.features[:, :KINDS].any(axis=1)  # the phase itself
        bounds = [*ports.phase_starts.tolist(), len(self.features)]
        self._phases = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        self.seconds = observation.seconds

    def busiest(self, theta: FloatArray) -> FloatArray:
        """What the busiest port of each phase carries, added up."""
        times = self.features @ theta
        return sum((self.features[p.start + int(times[p].argmax())] for p in self._phases), np.zeros(len(theta)))

    def predict(self, theta: FloatArray) -> float:
        """Seconds."""
        times = self.features @ theta
        return float(sum(times[p].max() for p in self._phases))


def _starts(cells: Sequence[_Cell]) -> list[FloatArray]:
    """First guesses: everything is due to a rank's own ports, to those of the boxes, or to what all share."""
    found = []
    for level in range(len(LEVELS)):
        theta = np.zeros(2 * KINDS + 1)
        for base in (0, KINDS):
            columns = [base + level * len(LINKS) + link for link in range(len(LINKS))]
            most = max(float(cell.features[:, columns].max() / cell.seconds) for cell in cells)
            theta[columns] = 0.3 / most if most else 0.0
        found.append(theta)
    return found


def _non_negative(a: FloatArray, b: FloatArray, x: FloatArray) -> FloatArray:
    """Minimise |a x - b| over x >= 0 by coordinate descent from `x`, with a slight pull to 0 of what does not matter."""
    gram, target = a.T @ a + 1e-9 * np.eye(a.shape[1]), a.T @ b
    x = x.copy()
    for _ in range(SWEEPS):
        for i in range(len(x)):
            x[i] = max(0.0, x[i] + (target[i] - gram[i] @ x) / gram[i, i])
    return x


def _model(theta: FloatArray) -> CostModel:
    def level(number: int, base: int) -> dict[str, float]:
        first = base + number * len(LINKS)
        return {link: float(theta[first + i]) for i, link in enumerate(LINKS)}

    return CostModel(
        level(0, 0), level(0, KINDS), level(1, 0), level(1, KINDS), level(2, 0), level(2, KINDS), float(theta[-1])
    )
