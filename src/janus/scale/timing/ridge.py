"""Least squares with a prior and without negative numbers, for a few terms."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def ridge(relative: FloatArray, error: float, center: FloatArray, widths: FloatArray) -> FloatArray:
    """The x >= 0 that minimises sum(((relative @ x - 1) / error)^2) + sum(((x - center) / widths)^2).

    Every set of numbers held at 0 is tried; of a convex sum the best allowed one is the optimum.

    Args:
        relative: float64 [points, terms], what one unit of each term adds to each point, as a share of its measurement.
        error: relative error of a measurement.
        center, widths: float64 [terms], where the terms are without any point, and how far they may be off.

    Example:
        >>> ridge(np.array([[0.5]]), 0.01, np.array([1.0]), np.array([1.0])).round(3).tolist()  # half as long: twice
        [2.0]
    """
    A = np.vstack([relative / error, np.diag(1 / widths)])
    y = np.concatenate([np.full(len(relative), 1 / error), center / widths])
    terms = len(center)
    best, least = np.zeros(terms), float(y @ y)
    for free in itertools.product((False, True), repeat=terms):
        x = np.zeros(terms)
        x[list(free)] = np.linalg.lstsq(A[:, free], y, rcond=None)[0]
        off = float(np.sum((A @ x - y) ** 2))
        if x.min() >= 0 and off < least:
            best, least = x, off
    return best
