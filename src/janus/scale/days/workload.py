"""What arrives in each decision window, as a planner asks for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.scale.days.steptimes import FloatArray
from janus.types import RequestTrace


@dataclass(frozen=True, eq=False)
class Workload:
    """Tokens that the decode pools have to make, by the window in which their request arrived.

    A request with o output tokens asks for o - 1: its first comes from the prefill, which is elsewhere.

    Args:
        window_s: seconds.
        tokens: float64 [W].
        context: float64 [W]: mean KV length seen by those tokens; in a window without any, that of the window before.
        context_cv: float64 [W]: standard deviation of the KV lengths over their mean.
        arrivals: integers [W], requests.
        reserve: mean full length of a request in flight over its mean KV length, in the whole trace; >= 1.
    """

    window_s: float
    tokens: FloatArray
    context: FloatArray
    context_cv: FloatArray
    arrivals: npt.NDArray[np.intp]
    reserve: float

    @classmethod
    def of(cls, requests: RequestTrace, window_s: float) -> Workload:
        """Count a trace of at least one request.

        Example:
            >>> two = RequestTrace([0.0, 15.0], [10, 20], [3, 1], duration_s=20)
            >>> load = Workload.of(two, 10)
            >>> load.tokens.tolist(), load.context.tolist()  # tokens 2 and 3 see 11 and 12
            ([2.0, 0.0], [11.5, 11.5])
        """
        windows = max(1, int(np.ceil(requests.duration_s / window_s)))
        at = np.minimum((requests.times_s // window_s).astype(np.int64), windows - 1)
        i, n = requests.input_tokens.astype(np.float64), (requests.output_tokens - 1).astype(np.float64)

        def total(values: FloatArray) -> FloatArray:
            return np.bincount(at, values, minlength=windows).astype(np.float64)

        tokens = total(n)
        seen = total(n * i + n * (n + 1) / 2)  # sums over j = 1..n of (i + j) and of its square
        squares = total(n * i * i + i * n * (n + 1) + n * (n + 1) * (2 * n + 1) / 6)
        mean = _carried(np.divide(seen, tokens, out=np.zeros(windows), where=tokens > 0), float(i.mean()))
        spread = np.divide(squares, tokens, out=mean**2, where=tokens > 0) - mean**2
        full = float((n * (i + requests.output_tokens)).sum())
        reserve = full / float(seen.sum()) if seen.sum() else 1.0
        arrivals = np.bincount(at, minlength=windows)
        return cls(window_s, tokens, mean, np.sqrt(np.maximum(spread, 0.0)) / mean, arrivals, max(1.0, reserve))

    @property
    def demand(self) -> FloatArray:
        """float64 [W]: tokens/s."""
        return self.tokens / self.window_s


def _carried(values: FloatArray, first: float) -> FloatArray:
    """Zeros take the last value before them; before any, the first there is, or `first`."""
    good = np.flatnonzero(values)
    if not len(good):
        return np.full(len(values), first)
    last = np.maximum.accumulate(np.where(values > 0, np.arange(len(values)), -1))
    return values[np.where(last < 0, good[0], last)]
