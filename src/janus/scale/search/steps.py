"""Times of many steps at once: the mean, and the percentile that an SLO asks for.

Two things make a step slower than its mean. The step waits for the attention instance whose requests happen to be the
longest, and some batches activate more experts than others. Both are counted; see docs/scale.md.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.scale.activation.table import ActivationTable
from janus.scale.timing.latency import Activated, Breakdown, LatencyModel

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
MEDIAN = 50.0


@lru_cache(maxsize=4096)
def deviations(percentile: float, n_a: int) -> float:
    """Standard deviations above the mean at which the slowest of `n_a` instances stands, at a percentile; >= 0.

    Requests are spread over instances without regard to their lengths, so each sum is close to normal and the slowest
    one is below x with probability Phi(x)^n_a. 100 counts as 99.99: a normal distribution has no largest value.

    Example:
        >>> round(deviations(50.0, 1), 3), round(deviations(50.0, 8), 3), round(deviations(99.0, 1), 3)
        (0.0, 1.385, 2.326)
    """
    return max(0.0, NormalDist().inv_cdf(min(percentile / 100, 0.9999) ** (1 / n_a)))


@dataclass(frozen=True)
class Steps:
    """Step times of one model on two kinds of GPUs, for any pools.

    Args:
        latency: of the parts.
        table: activated experts.
        slots: C.
        context: mean KV length, tokens.
        context_cv: its standard deviation over its mean.
    """

    latency: LatencyModel
    table: ActivationTable
    slots: int
    context: float
    context_cv: float

    def __post_init__(self) -> None:
        # pools of every size are asked for the same batches: each part is looked up once
        object.__setattr__(self, "_side", lru_cache(maxsize=None)(self._side))
        object.__setattr__(self, "_moe", lru_cache(maxsize=None)(self._moe))

    def mean_ms(self, n_a: Ints, n_e: Ints, B: Ints) -> Floats:
        """Milliseconds [N] of the mean step of pools [N], [N] with batches [N]."""
        return self.tail_ms(n_a, n_e, B, MEDIAN)

    def tail_ms(self, n_a: Ints, n_e: Ints, B: Ints, percentile: float) -> Floats:
        """Milliseconds [N] of a step at `percentile`: slowest instance and activated experts, both at it.

        A request's TPOT is the mean over its steps and so varies less than a step: on the safe side.
        """
        return np.asarray(self._composed(n_a, n_e, B, percentile).tpot)

    def breakdowns(self, n_a: Ints, n_e: Ints, B: Ints, percentile: float = MEDIAN) -> list[Breakdown]:
        """The parts of each step, at the median or another percentile of what varies."""
        columns = (column.tolist() for column in astuple(self._composed(n_a, n_e, B, percentile)))
        return [Breakdown(*row) for row in zip(*columns, strict=True)]

    def _composed(self, n_a: Ints, n_e: Ints, B: Ints, percentile: float) -> Breakdown:
        comm = 1e6 * self.latency.cost.layers_s(n_a, n_e, B, 2 * self.latency.model.hidden)
        batches = B.tolist()
        side = np.array([self._side(a, b, percentile) for a, b in zip(n_a.tolist(), batches, strict=True)])
        moe = np.array([self._moe(e, b, percentile) for e, b in zip(n_e.tolist(), batches, strict=True)])
        attention, shared, other = side.reshape(-1, 3).T
        return self.latency.composed(attention, shared, other, moe, comm)

    def _side(self, n_a: int, B: int, percentile: float) -> tuple[float, float, float]:
        return self.latency.side_us(-(-B // n_a), self.slowest_context(n_a, B, percentile))

    def _moe(self, n_e: int, B: int, percentile: float) -> float:
        return self.latency.pool_moe_us(self.activated(n_e, B, deviations(percentile, 1)), B)

    def slowest_context(self, n_a: int, B: int, percentile: float) -> float:
        """Mean KV length of the requests on the attention instance with the most cached tokens, tokens.

        The sum over b requests deviates by cv / sqrt(b) of its mean.
        """
        b = -(-B // n_a)
        return self.context * (1 + deviations(percentile, n_a) * self.context_cv / b**0.5)

    def activated(self, n_e: int, B: int, experts: float) -> Activated:
        """Of one layer, a_max so many standard deviations of the step's mean above the expected one, at most C."""
        active = self.table.at(n_e, B, self.slots)
        if not experts:
            return active
        spread = self.table.step_spread(n_e, B, self.slots, layers=self.latency.model.moe_layers)
        return Activated(min(float(self.slots), active.a_max + experts * spread), active.tokens)
