"""Step times as tables, so that a day of a million steps is a million look-ups.

One step is attention(b, S), of the fullest instance, plus the rest, which depends on the batch B and the pools alone:
routed experts, exchange, everything else, less the overlap. Both are what `LatencyModel.tpot` says at knots and linear
between them; beyond the last knot the last piece goes on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from janus.scale.activation.table import ActivationTable
from janus.scale.search.colocated import colocated_step
from janus.scale.search.solve import Problem

FloatArray = npt.NDArray[np.float64]
CONTEXTS: FloatArray = np.array([2.0**power for power in range(21)])  # tokens; windows are powers of two
_ANY_CONTEXT = 1.0  # the rest of a step does not depend on it


class Curve(NamedTuple):
    """What the loops look up. A request counts `batch_share` in `rest` and `instance_share` in `attention`."""

    b_knots: FloatArray
    """float64 [b]: requests on one attention instance."""
    contexts: FloatArray
    """float64 [S]: mean cached tokens of those requests."""
    attention: FloatArray
    """float64 [b, S], ms."""
    batch_knots: FloatArray
    """float64 [B]: requests in flight, all instances."""
    rest: FloatArray
    """float64 [B], ms."""
    batch_share: float
    instance_share: float


def knots(most: int) -> FloatArray:
    """float64: 1, 2, ... 8, four to each doubling up to 64, two beyond, up to the first that reaches `most`; at least two.

    Few requests are told apart finely, because a message more or less is most of their exchange.

    Example:
        >>> knots(20).tolist()
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0]
    """
    most, size, sizes = max(most, 2), 8, list(range(1, 9))
    while sizes[-1] < most:
        parts = 4 if size < 64 else 2
        sizes += [size + size * part // parts for part in range(1, parts + 1)]
        size *= 2
    reached = next(size for size in sizes if size >= most)
    return np.array([size for size in sizes if size <= reached], dtype=np.float64)


class StepTimes:
    """Tables of one model on one cluster, filled where somebody asks and kept.

    Args:
        problem: latency model, activation of the expert pool, slots and largest batch; its demand is not used.
        colocated: activation of expert-parallel deployments, with rows for every (width, slots) that is asked for.
    """

    def __init__(self, problem: Problem, colocated: ActivationTable) -> None:
        self.problem, self._colocated_table = problem, colocated
        self.knots = knots(problem.max_batch)
        self.least = min(n for n, _ in problem.table.rows)  # expert instances that hold every expert
        self.attention = np.array([[self._attention(b, s) for s in CONTEXTS] for b in self.knots])
        self._rest: dict[tuple[int, int], FloatArray] = {}
        self._moe: dict[int, FloatArray] = {}
        self._colocated: dict[tuple[int, int], FloatArray] = {}

    def _attention(self, b: float, s_ctx: float) -> float:
        return self.problem.latency.tpot(1, self.least, int(b), float(s_ctx), self.problem.table).attention

    def rest_at(self, n_a: int, n_e: int, k: int) -> float:
        """Milliseconds of a step without attention, at batch `knots[k]`."""
        row = self._rest.setdefault((n_a, n_e), np.full(len(self.knots), np.nan))
        if np.isnan(row[k]):
            step = self.problem.latency.tpot(n_a, n_e, int(self.knots[k]), _ANY_CONTEXT, self.problem.table)
            row[k] = step.tpot - step.attention
        return float(row[k])

    def rest(self, n_a: int, n_e: int) -> FloatArray:
        """float64 [B]: milliseconds of a step without attention, at every knot."""
        return np.array([self.rest_at(n_a, n_e, k) for k in range(len(self.knots))])

    def moe(self, n_e: int) -> FloatArray:
        """float64 [B]: milliseconds of the routed experts of a step, at every knot."""
        if n_e not in self._moe:
            p = self.problem
            steps = (p.latency.tpot(1, n_e, int(B), _ANY_CONTEXT, p.table) for B in self.knots)
            self._moe[n_e] = np.array([step.moe for step in steps])
        return self._moe[n_e]

    def colocated_rest(self, width: int, slots: int) -> FloatArray:
        """float64 [B]: as `rest`, of one expert-parallel copy of `width` GPUs with `slots` expert slots each."""
        if (width, slots) not in self._colocated:
            steps = [colocated_step(self.problem, self._colocated_table, width, slots, int(B)) for B in self.knots]
            self._colocated[width, slots] = np.array([step.tpot - step.attention for step in steps])
        return self._colocated[width, slots]

    def attention_at(self, b: FloatArray, s_ctx: float) -> FloatArray:
        """float64, ms: attention of instances with `b` requests (any shape) of `s_ctx` cached tokens each."""
        j = min(int(np.searchsorted(CONTEXTS, s_ctx, side="right")) - 1, len(CONTEXTS) - 2)
        part = (s_ctx - CONTEXTS[j]) / (CONTEXTS[j + 1] - CONTEXTS[j])
        return between(b, self.knots, self.attention[:, j] * (1 - part) + self.attention[:, j + 1] * part)

    def curve(self, rest: FloatArray, *, copies: int = 1, efficiency: float = 1.0) -> Curve:
        """The tables for the loops: a batch spread over `copies`, every GPU doing `efficiency` of its work.

        At an efficiency below 1 a deployment with B requests is as slow as a full one with B / efficiency: at any TPOT
        its tokens/s are the efficiency times the full one's.
        """
        shares = 1.0 / (copies * efficiency), 1.0 / efficiency
        return Curve(self.knots, CONTEXTS, self.attention, self.knots, rest, *shares)


def between(x: FloatArray, at: FloatArray, values: FloatArray) -> FloatArray:
    """Linear through (`at`, `values`), the outer pieces going on beyond both ends.

    Example:
        >>> between(np.array([1.5, 4.0]), np.array([1.0, 2.0]), np.array([10.0, 20.0])).tolist()
        [15.0, 40.0]
    """
    i = np.clip(np.searchsorted(at, x, side="right") - 1, 0, len(at) - 2)
    part = (x - at[i]) / (at[i + 1] - at[i])
    return values[i] + part * (values[i + 1] - values[i])
