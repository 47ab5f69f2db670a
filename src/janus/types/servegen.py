"""Drawing requests from ServeGen's per-client rates and length summaries.

Arrivals. A window's rate times its length is the number of requests that was recorded there, and it is kept exactly.
The gaps between them are drawn from the fitted pattern (Gamma: shape, scale; Weibull: shape, scale; in seconds). If
the gaps fill less than the window, as bursts do, the burst starts at a uniform time; if they fill more, all of them
are shrunk to fit.

Lengths. Three numbers are recorded: mean, median m and 95th percentile q. The quantile function drawn from runs
log-linearly through m^2 / q (at least 1) at 0, m at 0.5, q at 0.95 and a top at 1, chosen between q and 10 q so that
the mean is met; where no top can meet it, everything is scaled to the mean, which then wins over m and q.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError, known
from janus.types.files import reading
from janus.types.request_files import CODE, bad_line, csv_table, finite

WINDOW_S = 600.0
RATE_COLUMNS = ("client_id", "t_seconds", "rate_rps", "pattern", "param1", "param2")
LENGTH_COLUMNS = ("client_id", "t_seconds", *(f"{k}_{s}" for k in ("input", "output") for s in ("mean", "p50", "p95")))
LEVELS = np.array([0.0, 0.5, 0.95, 1.0])
MAX_REQUESTS = 10_000_000
MAX_RATE, MAX_PARAMETER, MIN_SHAPE = 1e6, 1e9, 1e-3  # beyond them gaps overflow; fitted shapes begin at 0.012
FloatArray = npt.NDArray[np.float64]
Knots = tuple[FloatArray, FloatArray]  # of inputs and of outputs


def draw_servegen(
    rate_csv: str | Path, lengths_csv: str | Path, rng: np.random.Generator, begin_s: float, end_s: float
) -> dict[str, Any]:
    """The arguments of `RequestTrace` for the windows that lie wholly in [begin_s, end_s)."""
    with reading(rate_csv, CODE):
        windows = [row for row in _rates(rate_csv) if begin_s <= row[1] and row[1] + WINDOW_S <= end_s]
        _check_amount(windows)
    with reading(lengths_csv, CODE):
        lengths = _lengths(lengths_csv)
    times, inputs, outputs = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for client, start, count, pattern, shape, scale in windows:
        of_input, of_output = _lengths_at(lengths, client, start)
        times.append(start + arrivals(count, pattern, shape, scale, rng))
        inputs.append(_draw_lengths(of_input, count, rng))
        outputs.append(_draw_lengths(of_output, count, rng))
    all_times = np.concatenate(times) - begin_s
    order = np.argsort(all_times, kind="stable")
    columns = {"times_s": all_times, "input_tokens": np.concatenate(inputs), "output_tokens": np.concatenate(outputs)}
    source = f"drawn from ServeGen summaries: {Path(rate_csv).name}, {Path(lengths_csv).name}"
    about = {"duration_s": end_s - begin_s, "source": source, "recorded": False}
    return {name: column[order] for name, column in columns.items()} | about


def arrivals(count: int, pattern: str, shape: float, scale: float, rng: np.random.Generator) -> FloatArray:
    """`count` ascending times in [0, 600) s with gaps of the fitted pattern."""
    gaps = rng.gamma(shape, scale, count) if pattern == "Gamma" else scale * rng.weibull(shape, count)
    times = np.cumsum(gaps) - gaps[0]  # the first request opens the burst
    span = float(times[-1])
    if span >= WINDOW_S:
        times *= (WINDOW_S - 1e-6) / span
        return times
    return times + rng.uniform(0, WINDOW_S - span)


def length_knots(mean: float, p50: float, p95: float) -> FloatArray:
    """float64 [4]: the quantile function at `LEVELS` that meets the three numbers (see the module).

    Example:
        >>> length_knots(mean=100, p50=100, p95=100).tolist()
        [100.0, 100.0, 100.0, 100.0]
    """
    knots = np.array([max(1.0, p50 * p50 / p95), p50, p95, p95])
    low, high = p95, 10 * p95
    for _ in range(60):
        knots[3] = (low + high) / 2
        low, high = (knots[3], high) if _mean_of(knots) < mean else (low, knots[3])
    return knots * (mean / _mean_of(knots))


def _mean_of(knots: FloatArray) -> float:
    a, b = knots[:-1], knots[1:]
    ratio = np.log(b / a)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(ratio > 1e-9, (b - a) / ratio, a)  # mean of a log-linear piece
    return float(np.diff(LEVELS) @ means)


def _draw_lengths(knots: FloatArray, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    drawn = np.exp(np.interp(rng.random(count), LEVELS, np.log(knots)))
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


def _rates(path: str | Path) -> list[tuple[str, float, int, str, float, float]]:
    out = []
    for at, row in csv_table(path, RATE_COLUMNS):
        line = ",".join(row.values())
        try:
            start, rate = finite(row["t_seconds"], "t_seconds"), finite(row["rate_rps"] or "0", "rate_rps", MAX_RATE)
            count = round(rate * WINDOW_S)
            if not count:  # an idle window has no pattern
                continue
            pattern = known(row["pattern"], ("Gamma", "Weibull"), "the pattern of a window with arrivals", CODE)
            shape, scale = (finite(row[name], name, MAX_PARAMETER) for name in ("param1", "param2"))
            if not (shape >= MIN_SHAPE and scale > 0):
                rule = f"param1 (shape) and param2 (scale) must be > 0, the shape at least {MIN_SHAPE}"
                raise JanusError(CODE, rule)
        except JanusError as error:
            raise bad_line(at, line, error.message) from None
        out.append((row["client_id"], start, count, pattern, shape, scale))
    return out


def _check_amount(windows: list[tuple[str, float, int, str, float, float]]) -> None:
    total = sum(window[2] for window in windows)
    if total > MAX_REQUESTS:
        raise JanusError(CODE, f"{total} requests are more than {MAX_REQUESTS}; choose fewer hours or check rate_rps")


def _lengths(path: str | Path) -> dict[str, dict[float, Knots]]:
    out: dict[str, dict[float, Knots]] = {}
    for at, row in csv_table(path, LENGTH_COLUMNS):
        cells = [row[name] for name in LENGTH_COLUMNS[2:]]
        if not any(cells):  # the client was idle for these hours
            continue
        try:
            values = [finite(cell, name) for cell, name in zip(cells, LENGTH_COLUMNS[2:], strict=True)]
            for mean, p50, p95 in (values[:3], values[3:]):
                if not (mean >= 1 and 1 <= p50 <= p95 <= 1e9 and mean <= 1e9):
                    raise JanusError(CODE, "lengths need mean >= 1 and 1 <= p50 <= p95 <= 1e9")
            start = finite(row["t_seconds"], "t_seconds")
        except JanusError as error:
            raise bad_line(at, ",".join(row.values()), error.message) from None
        out.setdefault(row["client_id"], {})[start] = length_knots(*values[:3]), length_knots(*values[3:])
    return out


def _lengths_at(lengths: dict[str, dict[float, Knots]], client: str, start: float) -> Knots:
    spans = lengths.get(client)
    if not spans:
        raise JanusError(CODE, f"client {client} has arrivals at {start:g} s but no lengths in any row")
    earlier = [span for span in spans if span <= start]
    return spans[max(earlier) if earlier else min(spans)]
