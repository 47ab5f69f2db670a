"""Kernel measurements read from CSV files into plain records, told apart by their columns.

The columns are those of the performance tables of ai-dynamo/aiconfigurator (Apache-2.0). Times there are
milliseconds, in the DeepEP tables microseconds; here every time is in microseconds.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from janus.errors import JanusError, known
from janus.types.files import read_text

CODE = "latency.table"
UNIFORM, POWER_LAW, BALANCED = "uniform", "power_law_", "balanced"


class MoeRow(NamedTuple):
    """One MoE layer's routed experts on the busiest rank: `tokens` of all ranks together, each with `top_k` choices."""

    source: str
    dtype: str
    tokens: int
    hidden: int
    width: int
    top_k: int
    experts: int
    ep: int
    distribution: str
    us: float


class MlaRow(NamedTuple):
    """One decode attention of `heads` heads over `context` cached tokens for each of `batch` requests.

    In a table of modules the projections, norms and the output product are inside; else the attention kernel alone.
    """

    source: str
    kv_dtype: str
    heads: int
    batch: int
    context: int
    us: float


class DeepepRow(NamedTuple):
    """DeepEP low-latency exchange: `tokens` per GPU, fp8 out (dispatch) and bf16 back (combine); us of each."""

    source: str
    nodes: int
    hidden: int
    tokens: int
    top_k: int
    experts: int
    dispatch_us: float
    combine_us: float


class CollectiveRow(NamedTuple):
    """One NCCL collective on `gpus` GPUs of one node; `bytes` is the table's message size times the element size."""

    source: str
    op: str
    gpus: int
    bytes: int
    us: float


@dataclass(frozen=True)
class Tables:
    """All records by kind; an empty tuple where no file of the kind was read.

    Args:
        moe_decode: DeepEP decode kernels, masked grouped products.
        fused_moe: fused Triton kernels.
        mla_decode: attention kernel of multi-head latent attention.
        mla_module: the whole attention layer around it.
        deepep: dispatch and combine.
        collectives: NCCL.
        device: name of the GPU as written in the tables, "" when none says it.
    """

    moe_decode: tuple[MoeRow, ...] = ()
    fused_moe: tuple[MoeRow, ...] = ()
    mla_decode: tuple[MlaRow, ...] = ()
    mla_module: tuple[MlaRow, ...] = ()
    deepep: tuple[DeepepRow, ...] = ()
    collectives: tuple[CollectiveRow, ...] = ()
    device: str = ""

    @classmethod
    def read(cls, paths: str | Path | Iterable[str | Path]) -> Tables:
        """Read a folder's CSV files, one file, or several.

        Raises:
            JanusError: ``latency.table`` with the file, the line and the rule.
        """
        found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        devices: dict[str, Path] = {}
        for path in _files(paths):
            kind, rows, device = read_table(path)
            found[kind] += rows
            if device:
                devices.setdefault(device, path)
        if len(devices) > 1:
            rule = f"all tables must be of one device; got {', '.join(f'{d} in {p}' for d, p in devices.items())}"
            raise JanusError(CODE, f"{rule}; fit each device by itself")
        return cls(**{kind: tuple(rows) for kind, rows in found.items()}, device=next(iter(devices), ""))


class _Line:
    """One line of a file; every access is checked and every complaint names the file and the line."""

    def __init__(self, where: str, cells: dict[str, str]) -> None:
        self.where, self.cells = where, cells

    def text(self, column: str) -> str:
        value = self.cells[column].strip()
        if not value:
            raise JanusError(CODE, f"{self.where}: {column} must not be empty")
        return value

    def whole(self, column: str, least: int = 1) -> int:
        text = self.text(column)
        if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) < least:
            raise JanusError(CODE, f"{self.where}: {column} must be a whole number >= {least}, got {text[:40]!r}")
        return int(text)

    def time(self, column: str, unit_us: float) -> float:
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value <= 0:
            raise JanusError(CODE, f"{self.where}: {column} must be a finite time > 0, got {text[:40]!r}")
        return value * unit_us

    def one(self, column: str) -> None:
        if self.whole(column) != 1:
            raise JanusError(CODE, f"{self.where}: {column} must be 1, tensor-parallel rows are not modelled")


def _moe(line: _Line) -> MoeRow:
    line.one("moe_tp_size")
    experts, ep, top_k = line.whole("num_experts"), line.whole("moe_ep_size"), line.whole("topk")
    if experts % ep or top_k > experts:
        raise JanusError(CODE, f"{line.where}: moe_ep_size must divide num_experts and topk not exceed it")
    return MoeRow(
        " ".join(filter(None, (line.text("kernel_source"), line.cells.get("version", "")))),
        line.text("moe_dtype"),
        line.whole("num_tokens"),
        line.whole("hidden_size"),
        line.whole("inter_size"),
        top_k,
        experts,
        ep,
        _distribution(line),
        line.time("latency", 1e3),
    )


def _distribution(line: _Line) -> str:
    name = line.text("distribution")
    if name not in (UNIFORM, BALANCED):
        try:
            good = name.startswith(POWER_LAW) and 0 < float(name.removeprefix(POWER_LAW)) < 10
        except ValueError:
            good = False
        if not good:
            rule = f"distribution must be {UNIFORM}, {BALANCED} or {POWER_LAW}X with 0 < X < 10"
            raise JanusError(CODE, f"{line.where}: {rule}, got {name[:40]!r}")
    return name


def _mla(line: _Line) -> MlaRow:
    return MlaRow(
        line.text("kernel_source"),
        line.text("kv_cache_dtype"),
        line.whole("num_heads"),
        line.whole("batch_size"),
        line.whole("isl") + line.whole("step", least=0),
        line.time("latency", 1e3),
    )


def _deepep(line: _Line) -> DeepepRow:
    return DeepepRow(
        line.text("version"),
        line.whole("node_num"),
        line.whole("hidden_size"),
        line.whole("num_token"),
        line.whole("num_topk"),
        line.whole("num_experts"),
        line.time("dispatch_avg_t_us", 1.0),
        line.time("combine_avg_t_us", 1.0),
    )


def _collective(line: _Line) -> CollectiveRow:
    size = ELEMENT_BYTES[known(line.text("nccl_dtype"), ELEMENT_BYTES, f"{line.where}: nccl_dtype", CODE)]
    return CollectiveRow(
        line.text("version"),
        known(line.text("op_name"), COLLECTIVES, f"{line.where}: op_name", CODE),
        line.whole("num_gpus", least=2),
        line.whole("message_size") * size,
        line.time("latency", 1e3),
    )


ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "float": 4, "int8": 1}
COLLECTIVES = ("all_gather", "all_reduce", "alltoall", "reduce_scatter")
_MOE = {
    "kernel_source", "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
    "moe_ep_size", "distribution", "latency",
}  # fmt: skip
_MLA = {"kernel_source", "kv_cache_dtype", "num_heads", "batch_size", "isl", "step", "latency"}
_DEEPEP = {"version", "node_num", "hidden_size", "num_token", "num_topk", "num_experts"}
# Most telling first: a kind is the first whose columns are all there.
KINDS: dict[str, tuple[set[str], Callable[[_Line], Any]]] = {
    "moe_decode": (_MOE | {"op_name"}, _moe),
    "fused_moe": (_MOE, _moe),
    "mla_module": (_MLA | {"gemm_type"}, _mla),
    "mla_decode": (_MLA, _mla),
    "deepep": (_DEEPEP | {"dispatch_avg_t_us", "combine_avg_t_us"}, _deepep),
    "collectives": ({"version", "op_name", "nccl_dtype", "num_gpus", "message_size", "latency"}, _collective),
}


def read_table(path: str | Path) -> tuple[str, list[Any], str]:
    """(kind, records, device) of one CSV file.

    Raises:
        JanusError: ``latency.table``.
    """
    lines = csv.reader(io.StringIO(read_text(path, CODE)))
    try:
        return _parsed(path, lines)
    except csv.Error as error:
        raise JanusError(CODE, f"{path}, line {lines.line_num}: no CSV: {error}") from None


def _parsed(path: str | Path, lines: Any) -> tuple[str, list[Any], str]:
    header = [name.strip() for name in next(lines, [])]
    kind = next((kind for kind, (columns, _) in KINDS.items() if columns <= set(header)), None)
    if kind is None or len(set(header)) < len(header):
        wanted = "; ".join(f"{kind}: {', '.join(sorted(columns))}" for kind, (columns, _) in KINDS.items())
        raise JanusError(CODE, f"{path}, line 1: no kernel table has these columns, each once; the kinds are {wanted}")
    rows, device = [], ""
    for cells in filter(None, lines):
        where = f"{path}, line {lines.line_num}"
        if len(cells) != len(header):
            raise JanusError(CODE, f"{where}: {len(header)} columns are named, got {len(cells)} cells")
        named = dict(zip(header, cells, strict=True))
        rows.append(KINDS[kind][1](_Line(where, named)))
        if device not in ("", named.get("device", "")):
            raise JanusError(CODE, f"{where}: device must be {device!r} as above, got {named['device'][:40]!r}")
        device = named.get("device", "")
    if not rows:
        raise JanusError(CODE, f"{path}: a table must hold at least one measurement below its header")
    return kind, rows, device


def _files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    try:
        listed = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    except TypeError:
        rule = "measurements must be a folder, a CSV file, or several of them"
        raise JanusError(CODE, f"{rule}; got {type(paths).__name__}") from None
    found = [file for path in listed for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]
    if not found:
        raise JanusError(CODE, f"no CSV file in {', '.join(map(str, listed)) or 'an empty list'}; give kernel tables")
    return found
