"""Coefficients fitted to measurements in log space, and a correction interpolated from the measured points around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, log
from typing import Any, NamedTuple

import numpy as np

from janus.scale.kernels.forms import FORMS, Array
from janus.scale.kernels.groups import Group
from janus.scale.kernels.least_squares import least_squares

NEIGHBOURS = 8
SOFT = 0.15  # log distance below which points count alike: a measurement repeats within a few percent, no better
TRUST = 0.9  # of the neighbours' mean correction; the rest is noise of single measurements
SAME = 1e-9  # log distance of a point from itself
FADE = log(2.0)  # log distance outside the measured range at which the form stands alone
# Of coordinates that matter more or less than their factor; skew is e^exponent, its logarithm the exponent itself.
SPACING = {"heads": 0.7, "nodes": 2.0, "all_experts": 0.5, "skew": 3.0}
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
    _low: Array = field(init=False, repr=False, compare=False)
    _high: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        logs = np.log(self.points) * self._spacing()
        some = len(logs) > 0
        object.__setattr__(self, "_logs", logs)
        object.__setattr__(self, "_low", logs.min(axis=0) if some else logs.sum(axis=0))
        object.__setattr__(self, "_high", logs.max(axis=0) if some else logs.sum(axis=0))

    def form_us(self, x: Mapping[str, Any]) -> Any:
        """The form alone, microseconds; features are numbers or float64 [N]."""
        return FORMS[self.form].us(self.coefficients, x)

    def predict(self, x: Mapping[str, float], corrected: bool = True) -> Estimate:
        """Microseconds at one point.

        Args:
            x: the form's features. Without ``"skew"``, as a planner that knows its loads has none, the least that was
                measured holds: even loads, where the table has them.
            corrected: False for a shape that was not measured: the form with these coefficients.
        """
        us = float(self.form_us(x))
        if not corrected or not len(self.us):
            return Estimate(us, "roofline")
        at = self._place(x)
        squared = np.square(self._logs - at).sum(axis=1)
        same = squared < SAME**2
        if same.any():
            return Estimate(float(np.exp(np.log(self.us[same]).mean())), "measured")
        share = self._share(at)
        if share == 0:
            return Estimate(us, "roofline")
        near = np.argpartition(squared, NEIGHBOURS)[:NEIGHBOURS] if len(squared) > NEIGHBOURS else slice(None)
        weights = (squared[near] + SOFT**2) ** -1.5
        correction = TRUST * float(weights @ self.residual[near] / weights.sum())
        return Estimate(us * exp(share * correction), "interpolated" if share == 1 else "roofline")

    def _place(self, x: Mapping[str, float]) -> Array:
        spacing, names = self._spacing(), FORMS[self.form].coordinates
        given = [spacing[i] * log(x[n]) if n in x else self._low[i] for i, n in enumerate(names)]
        return np.array(given)

    def _share(self, at: Array) -> float:
        """Of the correction: 1 inside the measured range, falling to 0 outside."""
        outside = np.maximum(np.maximum(self._low - at, at - self._high), 0.0)
        far = float(np.sqrt((outside**2).sum()))
        return max(0.0, 1 - far / FADE) if far > SAME else 1.0

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
