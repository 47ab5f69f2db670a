"""A sum of positive parts fitted to measured times, in logarithms and towards a prior."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
HUBER = 0.15  # log errors beyond this count linearly: a few rows measured something else
STEPS, STEP_LIMIT, DONE = 100, 0.5, 1e-9


def fit_log_positive(rows: FloatArray, times: FloatArray, prior: FloatArray, weight: float) -> FloatArray:
    """Factors f > 0 [K] that minimise sum of huber(log(times / rows f)) + weight / 2 * sum of log(f / prior)^2.

    Gauss-Newton on log f with reweighting; a factor no row responds to stays at its prior.

    Args:
        rows: float64 [N, K], >= 0, every row with a sum > 0.
        times: float64 [N], > 0.
        prior: float64 [K], > 0.
        weight: > 0.

    Example:
        >>> fit_log_positive(np.eye(2), np.array([2.0, 3.0]), np.ones(2), 1e-9).round(6).tolist()
        [2.0, 3.0]
    """
    log_prior = np.log(prior)
    log_f = log_prior.copy()
    for _ in range(STEPS):
        parts = rows * np.exp(log_f)
        total = parts.sum(axis=1)
        error = np.log(times / total)
        counts = np.minimum(1.0, HUBER / np.maximum(np.abs(error), HUBER))[:, None]
        slope = parts / total[:, None]
        curve = slope.T @ (counts * slope) + weight * np.eye(len(prior))
        pull = slope.T @ (counts[:, 0] * error) + weight * (log_prior - log_f)
        step = np.clip(np.linalg.solve(curve, pull), -STEP_LIMIT, STEP_LIMIT)
        log_f += step
        if np.abs(step).max() < DONE:
            break
    return np.exp(log_f)
