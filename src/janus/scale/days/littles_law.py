"""Little's law on a table of step times: the batch B at which B = demand x T(B)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from janus.scale.days.steptimes import FloatArray


def crossing(knots: FloatArray, steps_ms: FloatArray, demand: float) -> tuple[float, float] | None:
    """(batch, step in ms) where B = demand x T(B) first holds; None when it does up to no knot.

    Example:
        >>> crossing(np.array([1.0, 16.0]), np.array([10.0, 10.0]), demand=800)
        (8.0, 10.0)
    """
    surplus = knots - demand * steps_ms / 1e3
    k = int(np.argmax(surplus >= 0))
    if surplus[k] < 0:
        return None
    if k == 0:
        return 1.0, float(steps_ms[0])
    part = surplus[k - 1] / (surplus[k - 1] - surplus[k])
    batch = knots[k - 1] + part * (knots[k] - knots[k - 1])
    return float(batch), float(batch / demand * 1e3)


def meeting(
    knots: FloatArray, steps_ms: FloatArray, demand: float, slo_ms: float, room: float
) -> tuple[float, float] | None:
    """`crossing`, if the batch fits and the step keeps the objective."""
    at = crossing(knots, steps_ms, demand)
    return at if at and at[0] <= room and at[1] <= slo_ms else None


def turning(surplus: Callable[[int], float], count: int) -> int:
    """The i in 0..count-1 where a falling function is closest to 0, by bisection.

    Example:
        >>> turning(lambda i: 10 - 4 * i, 9)  # 10, 6, 2, -2, -6: ties go to the larger pool
        3
    """
    low, high = 0, count - 1
    if surplus(low) <= 0:
        return low
    if surplus(high) > 0:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
    return low if abs(surplus(low)) < abs(surplus(high)) else high
