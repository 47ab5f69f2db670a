"""Ways to predict the TPOT of held-out serving points: the roofline, its fit, a hybrid, and a plain regression."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from janus.scale.engine.fit import fit_log_positive  # noqa: E402
from janus.scale.engine.model import EngineCoefficients, EngineModel  # noqa: E402  (the path above comes first)
from janus.scale.engine.silicon import SiliconPoint  # noqa: E402

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Method = Callable[["Cases", Mask, Mask], Floats]
PRIOR_WEIGHT = 3.0
RIDGES = (
    0.01,
    0.1,
    1.0,
    10.0,
)  # of the regression: the best of them is reported, chosen on the held-out rows in its favour
HYBRID_RIDGE = 30.0


@dataclass
class Cases:
    """Points and what the methods need of them, computed once."""

    points: list[SiliconPoint]
    rows: Floats = field(init=False)
    """[N, 6], as `EngineModel.work_row`."""
    features: Floats = field(init=False)
    """[N, ...]: logs of the load and parallelism, then one column per GPU, model and engine."""
    times: Floats = field(init=False)

    def __post_init__(self) -> None:
        model = EngineModel(EngineCoefficients())
        self.rows = np.stack([model.work_row(p.config) for p in self.points])
        self.times = np.array([p.tpot_ms for p in self.points])
        loads = np.log([[c.batch, c.isl, c.osl, c.tp, c.dp, c.ep] for c in (p.config for p in self.points)])
        kinds = [(p.config.cluster.gpu.name, p.config.model.name, p.engine) for p in self.points]
        constants = [
            [kind == name for kind in column] for column in zip(*kinds, strict=True) for name in sorted(set(column))
        ]
        self.features = np.hstack([loads, np.array(constants, dtype=float).T])

    def labels(self, of: str) -> list[str]:
        """What a split holds out together: ``"family"``, ``"model"`` or ``"engine"``."""
        pick: dict[str, Callable[[SiliconPoint], str]] = {
            "family": lambda p: p.family,
            "model": lambda p: p.config.model.name,
            "engine": lambda p: p.engine,
        }
        return [pick[of](p) for p in self.points]


def roofline(cases: Cases, fit: Mask, held: Mask) -> Floats:
    """Coefficients from kernel tables; no serving point is looked at."""
    return cases.rows[held] @ EngineCoefficients().factors


def fitted(cases: Cases, fit: Mask, held: Mask) -> Floats:
    """The same six coefficients, fitted."""
    prior = EngineCoefficients().factors
    return cases.rows[held] @ fit_log_positive(cases.rows[fit], cases.times[fit], prior, PRIOR_WEIGHT)


def hybrid(cases: Cases, fit: Mask, held: Mask) -> Floats:
    """The fit, times a ridge regression of what it leaves (log) on the configuration."""
    left = np.log(cases.times[fit] / fitted(cases, fit, fit))
    return fitted(cases, fit, held) * np.exp(_ridge(cases.features, fit, held, left, HYBRID_RIDGE))


def regression(ridge: float) -> Method:
    """Log TPOT on the configuration alone: logs of loads and widths, one constant per GPU, model and engine."""

    def method(cases: Cases, fit: Mask, held: Mask) -> Floats:
        return np.exp(_ridge(cases.features, fit, held, np.log(cases.times[fit]), ridge))

    return method


METHODS: dict[str, Method] = {"roofline, unfitted": roofline, "fitted": fitted, "hybrid": hybrid}


def _ridge(features: Floats, fit: Mask, held: Mask, target: Floats, ridge: float) -> Floats:
    middle, mean = features[fit].mean(axis=0), target.mean()
    x = features[fit] - middle
    slope = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (target - mean))
    return mean + (features[held] - middle) @ slope


def cross(cases: Cases, labels: Sequence[str], method: Method) -> Floats:
    """Every point predicted by a fit that saw no point of its label: [N] ms."""
    out = np.empty(len(cases.points))
    for label in sorted(set(labels)):
        held = np.array([other == label for other in labels])
        out[held] = method(cases, ~held, held)
    return out


def errors(predicted: Floats, measured: Floats) -> Floats:
    """|predicted / measured - 1| in percent."""
    return 100 * np.abs(predicted / measured - 1)


def score(error: Floats) -> tuple[float, float]:
    """Median and mean, percent, to a tenth."""
    return round(float(np.median(error)), 1), round(float(error.mean()), 1)


def best_regression(run: Callable[[Method], tuple[float, float]]) -> tuple[float, float]:
    """The ridge with the least mean of the two scores."""
    return min((run(regression(ridge)) for ridge in RIDGES), key=sum)


def one_split(cases: Cases, fit: Mask, held: Mask, method: Method) -> tuple[float, float]:
    """Score of one train/test split."""
    return score(errors(method(cases, fit, held), cases.times[held]))


def table(cases: Cases, error: Floats) -> dict[str, dict[str, Any]]:
    """Per model and engine: points, median, mean."""
    keys = [f"{p.config.model.name} {p.engine}" for p in cases.points]
    out = {}
    for key in sorted(set(keys)):
        some = error[[k == key for k in keys]]
        out[key] = dict(zip(("points", "median", "mape"), (len(some), *score(some)), strict=True))
    return out
