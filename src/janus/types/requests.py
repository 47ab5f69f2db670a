"""When requests arrived and how long they were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.types.checks import Frozen, first_outside, floats, integer, integers, number
from janus.types.files import reading, write_npz
from janus.types.request_files import FORMAT, MAX_TOKENS, read_requests
from janus.types.servegen import draw_servegen


class RequestTrace(Frozen):
    """Arrivals and lengths of requests.

    Args:
        times_s: float64 [N], seconds since the start of the trace, >= 0, ascending.
        input_tokens: int64 [N], >= 1.
        output_tokens: int64 [N], >= 1.
        duration_s: how long arrivals were watched, >= the last of `times_s`, which is the default.
        source: where it comes from, for people.
        recorded: False when requests were drawn from fitted distributions; whatever is computed from it must say so.
        dropped: rows of the file left out because they had 0 input or 0 output tokens (failed requests).

    Raises:
        JanusError: ``requests.shape``, ``requests.range``, ``requests.empty`` (a mean of no requests),
            ``requests.file``.

    Example:
        >>> t = RequestTrace([0.0, 1.0], [100, 300], [10, 30], duration_s=2.0)
        >>> t.rate_rps, t.mean_input, t.output_tokens_per_s
        (1.0, 200.0, 20.0)
    """

    def __init__(
        self,
        times_s: npt.ArrayLike,
        input_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        *,
        duration_s: float | None = None,
        source: str = "",
        recorded: bool = True,
        dropped: int = 0,
    ) -> None:
        self.times_s = floats(times_s, "times_s must be finite numbers [N]", "requests.shape")
        self.input_tokens = _tokens(input_tokens, "input_tokens")
        self.output_tokens = _tokens(output_tokens, "output_tokens")
        sizes = len(self.times_s), len(self.input_tokens), len(self.output_tokens)
        if len(set(sizes)) > 1:
            rule = "times_s, input_tokens and output_tokens must have one length"
            raise JanusError("requests.shape", f"{rule}, got {sizes}")
        _check_times(self.times_s)
        self.duration_s = _checked_duration(duration_s, self.times_s)
        self.source, self.recorded = str(source), bool(recorded)
        self.dropped = integer(dropped, "dropped", "requests.range")
        self._freeze()

    @classmethod
    def load(cls, path: str | Path) -> RequestTrace:
        """Read requests, telling the format by content.

        Azure LLM inference CSV, BurstGPT CSV, Mooncake JSONL, or what `save` wrote. Times start at 0 with the first
        arrival and rows are sorted by time. Rows with 0 input or 0 output tokens are failed requests: they never
        decode, so they are left out and counted in `.dropped`.

        Raises:
            JanusError: ``requests.file``, naming file, line, content and rule.
        """
        with reading(path, "requests.file"):
            return cls(**read_requests(path))

    @classmethod
    def from_servegen(
        cls,
        rate_csv: str | Path,
        lengths_csv: str | Path,
        *,
        seed: int = 0,
        hours: float | tuple[float, float] = 24.0,
    ) -> RequestTrace:
        """Draw requests from ServeGen's rates and length summaries: drawn, not recorded.

        Per client and 600 s window: exactly the recorded number of arrivals (rate x 600), with gaps from the fitted
        pattern; lengths from a quantile function through the recorded median and 95th percentile that meets the
        recorded mean, inputs and outputs independent. See `janus.types.servegen`.

        Args:
            rate_csv: client_id, t_seconds, rate_rps, cv, pattern, param1, param2.
            lengths_csv: client_id, t_seconds, input_mean, input_p50, input_p95, output_mean, ...
            seed: of the draw.
            hours: the first so many hours, or (start, stop); whole 600 s windows are kept.

        Raises:
            JanusError: ``requests.file``, ``requests.range``.
        """
        rng = np.random.default_rng(integer(seed, "seed", "requests.range"))
        start, stop = hours if isinstance(hours, tuple) and len(hours) == 2 else (0.0, hours)
        rule = "hours must be a number > 0 or (start, stop) with 0 <= start < stop"
        begin_s, end_s = (3600 * number(edge, rule, "requests.range") for edge in (start, stop))
        if not 0 <= begin_s < end_s:
            raise JanusError("requests.range", f"{rule}, got {hours!r}")
        return cls(**draw_servegen(rate_csv, lengths_csv, rng, begin_s, end_s))

    def save(self, path: str | Path) -> None:
        """Write a compressed npz without pickles."""
        names = ("times_s", "input_tokens", "output_tokens", "duration_s", "source", "recorded", "dropped")
        write_npz(path, "requests.file", format=FORMAT, **{name: getattr(self, name) for name in names})

    def window(self, start_s: float, stop_s: float) -> RequestTrace:
        """The requests that arrived in [start_s, stop_s), with times from `start_s` on."""
        rule = "a window needs finite 0 <= start_s < stop_s"
        start, stop = (number(edge, rule, "requests.range") for edge in (start_s, stop_s))
        if not 0 <= start < stop:
            raise JanusError("requests.range", f"{rule}, got {start} and {stop}")
        keep = slice(*np.searchsorted(self.times_s, (start, stop)))
        source = f"{self.source} [{start:g} s, {stop:g} s)"
        about: dict[str, Any] = {"duration_s": stop - start, "source": source, "recorded": self.recorded}
        return RequestTrace(self.times_s[keep] - start, self.input_tokens[keep], self.output_tokens[keep], **about)

    @property
    def num_requests(self) -> int:
        """N."""
        return len(self.times_s)

    @property
    def rate_rps(self) -> float:
        """Arrivals per second over `duration_s`."""
        return self._per_second(self.num_requests)

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens per second that serving every request asks for: the planner's demand."""
        return self._per_second(int(self.output_tokens.sum()))

    @property
    def mean_input(self) -> float:
        """Mean of `input_tokens`."""
        return float(self._some(self.input_tokens).mean())

    @property
    def mean_output(self) -> float:
        """Mean of `output_tokens`."""
        return float(self._some(self.output_tokens).mean())

    @property
    def mean_context(self) -> float:
        """Mean KV length seen by an output token, sum of o * (i + (o - 1) / 2) over sum of o: the planner's context."""
        outputs = self._some(self.output_tokens).astype(np.float64)
        return float((outputs * (self.input_tokens + (outputs - 1) / 2)).sum() / outputs.sum())

    @property
    def context_cv(self) -> float:
        """Standard deviation over mean of the KV length seen by an output token: the planner's context_cv."""
        o, i = self._some(self.output_tokens).astype(np.float64), self.input_tokens
        squares = o * i * i + i * o * (o - 1) + (o - 1) * o * (2 * o - 1) / 6  # sum over j < o of (i + j)^2
        mean = self.mean_context
        return math.sqrt(max(0.0, float(squares.sum() / o.sum()) - mean * mean)) / mean if mean else 0.0

    def input_percentile(self, q: float) -> float:
        """The q-th percentile (0..100) of `input_tokens`, linear between ranks."""
        return self._percentile(self.input_tokens, q)

    def output_percentile(self, q: float) -> float:
        """The q-th percentile (0..100) of `output_tokens`, linear between ranks."""
        return self._percentile(self.output_tokens, q)

    def summary(self) -> dict[str, Any]:
        """Plain values for a report or JSON; needs at least one request and a duration above 0."""
        names = ("source", "recorded", "num_requests", "dropped", "duration_s", "rate_rps", "output_tokens_per_s")
        names += ("mean_input", "mean_output", "mean_context", "context_cv")
        tails = {f"input_p{q}": self.input_percentile(q) for q in (50, 95, 99)}
        tails |= {f"output_p{q}": self.output_percentile(q) for q in (50, 95, 99)}
        return {name: getattr(self, name) for name in names} | tails

    def _per_second(self, amount: int) -> float:
        if self.duration_s == 0:
            raise JanusError("requests.range", "a rate needs a duration_s above 0; give duration_s= to RequestTrace")
        return amount / self.duration_s

    def _some(self, array: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if not len(array):
            raise JanusError("requests.empty", f"no requests in {self.source or 'this trace'}: no mean, no percentile")
        return array

    def _percentile(self, array: npt.NDArray[np.int64], q: float) -> float:
        rule = "a percentile must lie in 0..100"
        value = number(q, rule, "requests.range")
        if not 0 <= value <= 100:
            raise JanusError("requests.range", f"{rule}, got {value}")
        return float(np.percentile(self._some(array), value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RequestTrace):
            return False
        plain = ("duration_s", "source", "recorded", "dropped")
        arrays = ("times_s", "input_tokens", "output_tokens")
        return all(getattr(self, n) == getattr(other, n) for n in plain) and all(
            np.array_equal(getattr(self, n), getattr(other, n)) for n in arrays
        )

    def __hash__(self) -> int:
        return hash((self.num_requests, self.duration_s, self.source))

    def __repr__(self) -> str:
        kind = "recorded" if self.recorded else "drawn"
        return f"RequestTrace({self.num_requests} requests in {self.duration_s:g} s, {kind}, source={self.source!r})"


def _tokens(value: npt.ArrayLike, what: str) -> npt.NDArray[np.int64]:
    raw = integers(value, f"{what} must be integers [N]", "requests.shape", ndim=(1,))
    at = first_outside(raw, 1, MAX_TOKENS)
    if at is not None:
        rule = f"{what} must lie in 1..{MAX_TOKENS} (leave failed requests out)"
        raise JanusError("requests.range", f"{rule}; request {at[0]} has {raw[at]}")
    return raw.astype(np.int64)


def _check_times(times_s: npt.NDArray[np.float64]) -> None:
    back = np.flatnonzero(np.diff(times_s, prepend=0.0) < 0)
    if len(back):
        at = int(back[0])
        before = f"{times_s[at - 1]} s" if at else "the start"
        raise JanusError(
            "requests.range", f"times_s must ascend from 0; request {at} at {times_s[at]} s comes after {before}"
        )


def _checked_duration(duration_s: float | None, times_s: npt.NDArray[np.float64]) -> float:
    last = float(times_s[-1]) if len(times_s) else 0.0
    if duration_s is None:
        return last
    rule = f"duration_s must be finite and not before the last arrival ({last} s)"
    value = number(duration_s, rule, "requests.range")
    if value < last or math.isinf(value):
        raise JanusError("requests.range", f"{rule}, got {value}")
    return value
