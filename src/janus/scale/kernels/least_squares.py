"""Fit the coefficients of a form to measured times."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from janus.scale.kernels.forms import Array, Form

PRIOR = 0.003  # log error per factor e away from the start: holds what the data cannot tell, bends nothing else


def least_squares(
    form: Form, x: Mapping[str, Array], us: Array, most: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Coefficients of least squared log error, by Levenberg-Marquardt steps on their logarithms (so all stay > 0).

    A weak pull to the form's start values settles what a table cannot tell apart, such as two costs per token when
    only one shape was measured.

    Args:
        form: what to fit.
        x: its features, float64 [N] each.
        us: measured microseconds, float64 [N].
        most: upper bounds of coefficients by name, e.g. the card's peaks.
    """
    names, goal = list(form.start), np.log(us)
    top = np.log([(most or {}).get(name, np.inf) for name in names])
    start = np.minimum(np.log(np.array(list(form.start.values()))), top)

    def errors(logs: Array) -> Array:
        fits = np.log(form.us(dict(zip(names, np.exp(logs), strict=True)), x)) - goal
        return np.r_[fits, PRIOR * (logs - start)]

    logs, damping = start.copy(), 1e-2
    error = errors(logs)
    for _ in range(100):
        slopes = np.stack([(errors(logs + 1e-5 * unit) - error) / 1e-5 for unit in np.eye(len(logs))], axis=1)
        slopes[:, (logs == top) & (slopes.T @ error < 0)] = 0  # it would leave its bound
        normal, gradient = slopes.T @ slopes, slopes.T @ error
        while damping < 1e8:
            bent = normal + np.diag(damping * normal.diagonal() + 1e-9)
            step = np.clip(np.linalg.solve(bent, -gradient), -1, 1)
            moved = np.minimum(np.clip(logs + step, -30, 30), top)
            better = errors(moved)
            if better @ better < error @ error:
                break
            damping *= 4
        else:
            break
        gained = 1 - (better @ better) / (error @ error)
        logs, error, damping = moved, better, damping / 3
        if gained < 1e-9:
            break
    return dict(zip(names, map(float, np.exp(logs)), strict=True))
