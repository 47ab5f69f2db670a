"""The request-trace files of the field, told apart by content and read line by line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from janus.errors import JanusError
from janus.types.checks import shown
from janus.types.files import NPZ_MAGIC, read_head, read_npz, read_text

FORMAT = "janus.requests/1"
CODE = "requests.file"
MAX_TOKENS = 2**31 - 1
MAX_NUMBER = 1e15  # of seconds or tokens; microseconds of it are still whole in a float64
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)  # near enough for a float to keep microseconds
KNOWN = (
    "Azure LLM inference CSV (TIMESTAMP,ContextTokens,GeneratedTokens), BurstGPT CSV (Timestamp,Request tokens,"
    "Response tokens,...), Mooncake JSONL (timestamp, input_length, output_length) and RequestTrace.save"
)
Row = tuple[float, int, int]  # seconds, input tokens, output tokens


def read_requests(path: str | Path) -> dict[str, Any]:
    """The arguments of `RequestTrace` that a file holds; see `RequestTrace.load` for the formats."""
    if read_head(path, CODE)[:2] == NPZ_MAGIC:
        return _ours(path)
    lines = read_text(path, CODE).split("\n")
    first = lines[0].strip()
    if first.startswith("{"):
        rows, kind = _rows(lines, 1, _mooncake_row), "Mooncake"
    else:
        columns = [name.strip() for name in first.split(",")]
        kind, names, to_seconds = _csv_kind(columns)
        at = [columns.index(name) for name in names]
        rows = _rows(lines[1:], 2, lambda line: _csv_row(line, len(columns), at, to_seconds))
    return _trace(list(rows), f"{kind}: {Path(path).name}")


def csv_table(path: str | Path, names: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and named cells of each row of a CSV whose header holds `names`; the strings are not parsed."""
    lines = read_text(path, CODE).split("\n")
    columns = [name.strip() for name in lines[0].split(",")]
    missing = [name for name in names if name not in columns]
    if missing:
        raise JanusError(CODE, f"line 1 of {path} must name the column {missing[0]!r}; it is {shown(lines[0])}")
    for at, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line.split(",")]
        if line.strip():
            if len(cells) != len(columns):
                raise bad_line(at, line, f"a row has {len(columns)} cells, got {len(cells)}")
            yield at, dict(zip(columns, cells, strict=True))


def bad_line(at: int, line: str, rule: str) -> JanusError:
    """The error of one line: its number, its content and the rule it breaks."""
    return JanusError(CODE, f"line {at}: {rule}; the line is {line[:120]!r}{' ...' * (len(line) > 120)}")


def finite(text: Any, what: str, most: float = MAX_NUMBER) -> float:
    """A number in 0..most from a cell."""
    try:
        value = float(text) if not isinstance(text, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value <= most:
        above = f"; at most {most:g}" if value > most else ""
        raise JanusError(CODE, f"{what} must be a finite number >= 0, got {shown(text)}{above}")
    return value


def _rows(lines: list[str], start: int, parse: Callable[[str], Row]) -> Iterator[Row]:
    for at, line in enumerate(lines, start):
        if not line.strip():
            continue
        try:
            yield parse(line)
        except JanusError as error:
            raise bad_line(at, line.rstrip("\r"), error.message) from None


def _csv_kind(columns: list[str]) -> tuple[str, tuple[str, str, str], Callable[[str], float]]:
    azure = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    burst = ("Timestamp", "Request tokens", "Response tokens")
    if set(azure) <= set(columns):
        return "Azure", azure, _date
    if set(burst) <= set(columns):
        return "BurstGPT", burst, lambda text: finite(text, "Timestamp (seconds)")
    raise JanusError(CODE, f"unknown request trace, its first line is {shown(','.join(columns))}; known: {KNOWN}")


def _csv_row(line: str, width: int, at: list[int], to_seconds: Callable[[str], float]) -> Row:
    cells = line.split(",")
    if len(cells) != width:
        raise JanusError(CODE, f"a row has {width} cells, got {len(cells)}")
    time, inputs, outputs = (cells[i].strip() for i in at)
    return to_seconds(time), _whole(inputs), _whole(outputs)


def _mooncake_row(line: str) -> Row:
    try:
        row = json.loads(line)
        time, inputs, outputs = row["timestamp"], row["input_length"], row["output_length"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        rule = "a line is a JSON object with timestamp, input_length and output_length"
        raise JanusError(CODE, f"{rule} ({type(error).__name__}: {error})") from None
    return finite(time, "timestamp (milliseconds)") / 1000, _whole(inputs), _whole(outputs)


def _whole(value: Any) -> int:
    try:
        tokens = value if type(value) is int else int(value) if isinstance(value, str) else -1
    except ValueError:
        tokens = -1
    if not 0 <= tokens <= MAX_TOKENS:
        raise JanusError(CODE, f"a token count is an integer in 0..{MAX_TOKENS}, got {shown(value)}")
    return tokens


def _date(text: str) -> float:
    try:
        date = datetime.fromisoformat(text)  # digits beyond microseconds are cut
    except ValueError:
        rule = "TIMESTAMP must be a date and time like 2023-11-16 18:15:46.680"
        raise JanusError(CODE, f"{rule}, got {shown(text)}") from None
    return ((date if date.tzinfo else date.replace(tzinfo=UTC)) - EPOCH).total_seconds()


def _trace(rows: list[Row], source: str) -> dict[str, Any]:
    alive = sorted((row for row in rows if row[1] and row[2]), key=lambda row: row[0])  # stable: ties keep file order
    if not alive:
        raise JanusError(CODE, f"no request with input and output tokens among {len(rows)} rows")
    times, inputs, outputs = (np.array(column) for column in zip(*alive, strict=True))
    return {
        "times_s": np.round(times.astype(np.float64) - times[0], 6),
        "input_tokens": inputs,
        "output_tokens": outputs,
        "source": source,
        "dropped": len(rows) - len(alive),
    }


def _ours(path: str | Path) -> dict[str, Any]:
    arrays = read_npz(path, CODE)
    single = ("duration_s", "source", "recorded", "dropped")
    names = ("times_s", "input_tokens", "output_tokens", *single)
    if str(arrays.get("format")) != FORMAT or not set(names) <= set(arrays):
        found = ", ".join(sorted(arrays)) or "no array"
        raise JanusError(CODE, f"not a request trace written by RequestTrace.save ({FORMAT}): it holds {found}")
    if any(arrays[name].ndim for name in single) or arrays["recorded"].dtype != bool:
        raise JanusError(CODE, f"{', '.join(single)} must be single values")
    about = {name: arrays[name].item() for name in single}
    return {name: arrays[name] for name in names[:3]} | about
