"""Traces for commands: found by path or name, told by content, and what they hold (`janus trace inspect`)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.types import RequestTrace, RoutingTrace
from janus.types.routing_files import read_expert_counts
from janus.types.samples import SAMPLES, sample

Counts = dict[str, npt.NDArray[np.int64]]
Trace = RoutingTrace | RequestTrace | Counts
Json = dict[str, Any]

BATCHES = (16, 64, 256)
DRAWS = 16  # batches per size: the mean over layers and draws is then good to about 1 %


def load_traces(names: Sequence[str | Path], *, seed: int = 0, hours: float = 24.0) -> Trace:
    """Read one trace, or draw requests from ServeGen's two files: the rates, then the lengths.

    Args:
        names: paths, or names of shipped samples.
        seed: of the draw.
        hours: the first so many hours of ServeGen's files.

    Raises:
        JanusError: ``trace.file``, ``routing.*``, ``requests.*``.
    """
    if len(names) > 2:
        raise JanusError("trace.file", f"give one trace, or ServeGen's rates and lengths; got {len(names)} files")
    paths = [sample(str(name)) if str(name) in SAMPLES else Path(name) for name in names]
    return RequestTrace.from_servegen(*paths, seed=seed, hours=hours) if len(paths) == 2 else load_trace(paths[0])


def load_requests(names: Sequence[str | Path], option: str, *, seed: int = 0, hours: float = 24.0) -> RequestTrace:
    """As `load_traces`, refusing what holds no requests.

    Raises:
        JanusError: ``trace.kind``, and what `load_traces` raises.
    """
    found = load_traces(names, seed=seed, hours=hours)
    if not isinstance(found, RequestTrace):
        raise JanusError("trace.kind", f"{option} needs a request trace, {names[0]} holds {kind(found)}")
    return found


def kind(trace: Trace) -> str:
    """``"routing"``, ``"counts"`` or ``"requests"``."""
    if isinstance(trace, RequestTrace):
        return "requests"
    return "counts" if isinstance(trace, dict) else "routing"


def load_trace(path: Path) -> Trace:
    """Read a trace, telling by content whether it holds routing, expert counts or requests.

    Raises:
        JanusError: ``trace.file`` for a file that cannot be read; ``routing.file``, ``requests.file`` for one that
            breaks the rules of its kind.
    """
    holds = _kind(path)
    if holds == "routing":
        return RoutingTrace.load(path)
    return RequestTrace.load(path) if holds == "requests" else read_expert_counts(path)


def describe(trace: Trace) -> Json:
    """Plain values for JSON.

    For routing: sizes, how uneven the experts are (largest count of a layer over its mean), how many were never
    chosen, and the mean number of distinct experts per layer in random batches of 16, 64 and 256 tokens.
    """
    if isinstance(trace, RequestTrace):
        return {"kind": "requests", **trace.summary()}
    if isinstance(trace, dict):
        recordings = {name: {"layers": len(counts), **_evenness(counts)} for name, counts in trace.items()}
        return {"kind": "counts", "recordings": recordings}
    sizes = {"tokens": trace.num_tokens, "layers": trace.num_layers, "num_experts": trace.num_experts}
    distinct = {str(B): _distinct(trace, B) for B in BATCHES} if trace.num_tokens else {}
    return {
        "kind": "routing",
        "source": trace.source,
        "synthetic": trace.synthetic,
        **sizes,
        "top_k": trace.top_k,
        **_evenness(trace.counts()),
        "distinct_experts": distinct,
    }


def print_summary(summary: Json, as_json: bool) -> None:
    """One JSON object, or a table of two columns."""
    if as_json:
        print(json.dumps(summary))
        return
    rows = list(_rows(summary, ""))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value:,.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")


def _kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.readline(1 << 16)
        names = _members(path) if head[:2] == b"PK" else set()
    except Exception as error:  # zipfile raises half a dozen kinds on corrupt bytes
        raise JanusError("trace.file", f"cannot read a trace from {path}: {error}") from error
    if head[:2] == b"PK":
        if {"ids", "topk"} & names:
            return "routing"
        return "requests" if "times_s" in names else "counts"
    try:
        first = json.loads(head)
    except (ValueError, RecursionError):  # a CSV, JSON over several lines, or one that the reader will refuse
        return "counts" if head.lstrip()[:1] in (b"{", b"") else "requests"
    return "requests" if not isinstance(first, dict) or "timestamp" in first else "counts"


def _members(npz: Path) -> set[str]:
    with zipfile.ZipFile(npz) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _evenness(counts_LE: npt.NDArray[np.int64]) -> Json:
    mean = np.maximum(counts_LE.mean(axis=1), np.finfo(float).tiny)
    worst = counts_LE.max(axis=1) / mean
    return {
        "experts_never_chosen": int((counts_LE == 0).sum()),
        "max_over_mean": {"median_layer": float(np.median(worst)), "worst_layer": float(worst.max())},
    }


def _distinct(trace: RoutingTrace, B: int) -> float:
    rng = np.random.default_rng(0)
    total = 0
    for _ in range(DRAWS):
        ids_BLK = trace.sample(B, rng)
        total += sum(len(np.unique(layer[layer >= 0])) for layer in ids_BLK.swapaxes(0, 1))
    return total / (DRAWS * trace.num_layers)


def _rows(value: Any, name: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [row for key, part in value.items() for row in _rows(part, f"{name}.{key}" if name else key)]
