"""Coefficients fitted to measurements in log space, and a correction interpolated from the measured points around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from janus.scale.kernels.forms import FORMS, Array
from janus.scale.kernels.groups import Group
from janus.scale.kernels.least_squares import least_squares

NEIGHBOURS = 8
SOFT = 0.15  # log distance below which points count alike: a measurement repeats within a few percent, no better
TRUST = 0.9  # of the neighbours' mean correction; the rest is noise of single measurements
FADE = np.log(2.0)  # log distance outside the measured range at which the form stands alone
SPACING = {"heads": 0.7, "nodes": 2.0, "all_experts": 0.5}  # of coordinates that matter more or less than a factor
HELD_OUT = 0.2


class Estimate(NamedTuple):
    """A time and where it comes from: ``"measured"``, ``"interpolated"`` or ``"roofline"``."""

    us: float
    provenance: str


@dataclass(frozen=True)
class Kernel:
    """One fitted kernel.

    Args:
        kind, source, form, key: as in `Group`.
        coefficients: of the form, by name.
        points: coordinates of the measurements, float64 [N, D]; none after scaling to another card.
        us: their measured times, float64 [N].
        residual: log(measured / form) at each, float64 [N].
        error: mean absolute relative error on a fifth of the rows that the fit did not see; 0 when not tried.
    """

    kind: str
    source: str
    form: str
    key: dict[str, float | str]
    coefficients: dict[str, float]
    points: Array
    us: Array
    residual: Array
    error: float = 0.0
    _logs: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_logs", np.log(self.points) * self._spacing())

    def form_us(self, x: Mapping[str, Any]) -> Any:
        """The form alone, microseconds; features are numbers or float64 [N]."""
        return FORMS[self.form].us(self.coefficients, x)

    def predict(self, x: Mapping[str, float], corrected: bool = True) -> Estimate:
        """Microseconds at one point.

        Args:
            x: the form's features.
            corrected: False for a shape that was not measured: the form with these coefficients.
        """
        us = float(self.form_us(x))
        if not corrected or not len(self.us):
            return Estimate(us, "roofline")
        at = np.array([x[name] for name in FORMS[self.form].coordinates])
        same = np.flatnonzero((np.abs(self.points - at) <= 1e-9 * at).all(axis=1))
        if len(same):
            return Estimate(float(np.exp(np.log(self.us[same]).mean())), "measured")
        fade, share = self._correction(np.log(at) * self._spacing())
        return Estimate(us * float(np.exp(share * fade)), "interpolated" if share == 1 else "roofline")

    def _correction(self, at: Array) -> tuple[float, float]:
        """(log correction, its share: 1 inside the measured range, falling to 0 outside)."""
        logs = self._logs
        outside = np.linalg.norm(np.maximum(0, np.maximum(logs.min(axis=0) - at, at - logs.max(axis=0))))
        share = max(0.0, 1 - float(outside) / FADE)
        if share == 0:
            return 0.0, 0.0
        squared = ((logs - at) ** 2).sum(axis=1)
        near = np.argpartition(squared, NEIGHBOURS)[:NEIGHBOURS] if len(squared) > NEIGHBOURS else slice(None)
        weights = 1 / (squared[near] + SOFT**2) ** 1.5
        return TRUST * float(weights @ self.residual[near] / weights.sum()), share

    def _spacing(self) -> Array:
        return np.array([SPACING.get(name, 1.0) for name in FORMS[self.form].coordinates])

    def scaled(self, ratios: Mapping[str, float]) -> Kernel:
        """The form on a card whose peaks are `ratios` ("memory", "compute", "link", "network") of this one's.

        Fixed times stay; without measurements there, there is no correction.
        """
        kinds = FORMS[self.form].scales_with
        coefficients = {k: v * ratios.get(kinds.get(k, ""), 1.0) for k, v in self.coefficients.items()}
        none = np.zeros(0)
        return Kernel(
            self.kind, self.source, self.form, self.key, coefficients, self.points[:0], none, none, self.error
        )


def fit(group: Group, error: bool = True) -> Kernel:
    """Fit one group; with `error` a second time on four fifths of it, to say how far off it is on the last fifth."""
    form = FORMS[group.form]
    coefficients = least_squares(form, group.x, group.us, group.most)
    residual = np.log(group.us / form.us(coefficients, group.x))
    points = np.stack([group.x[name] for name in form.coordinates], axis=1)
    wrong = float(np.mean(held_out(group, seed=0)["kernel"])) if error else 0.0
    return Kernel(
        group.kind, group.source, group.form, group.key, coefficients, points, group.us.copy(), residual, wrong
    )


def held_out(group: Group, seed: int) -> dict[str, Array]:
    """Absolute relative errors on a random fifth, fitted on the rest.

    What is held out is points: rows at the same coordinates (a repetition, another dtype of as many bytes) go together.

    Returns:
        float64 [N / 5] each: ``"kernel"`` as predicted, ``"form"`` without its correction, and two baselines:
        ``"nearest"`` measured point and ``"loglinear"`` regression on the coordinates.
    """
    names = FORMS[group.form].coordinates
    _, point = np.unique(np.stack([group.x[n] for n in names], axis=1), axis=0, return_inverse=True)
    order = np.random.default_rng(seed).permutation(int(point.max()) + 1)
    out = np.isin(point.ravel(), order[: max(1, round(HELD_OUT * len(order)))])
    asked, known = group.take(out), group.take(~out)
    kernel = fit(known, error=False)
    logs = np.log(np.stack([asked.x[n] for n in names], axis=1))
    seen = np.log(kernel.points)
    nearest = ((logs[:, None] - seen[None]) ** 2).sum(axis=2).argmin(axis=1)
    line = np.linalg.lstsq(np.c_[np.ones(len(seen)), seen], np.log(known.us), rcond=None)[0]
    each = [kernel.predict({n: v[i] for n, v in asked.x.items()}).us for i in range(len(asked.us))]
    found = {
        "kernel": np.array(each),
        "form": kernel.form_us(asked.x),
        "nearest": known.us[nearest],
        "loglinear": np.exp(np.c_[np.ones(len(logs)), logs] @ line),
    }
    return {name: np.abs(us / asked.us - 1) for name, us in found.items()}
