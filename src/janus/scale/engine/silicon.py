"""Measured serving points of colocated engines, read from a table as AIConfigurator publishes them, and freed of copies."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from janus.errors import JanusError, known
from janus.scale.engine.config import EngineConfig
from janus.scale.hardware import Cluster, positive
from janus.scale.model import AttentionSpec, ModelSpec

# DeepSeek-R1 and V3 are one architecture, and rows of one are filed under the other.
SHIPPED = {
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2.5",
}
# 229 billion parameters, 9.8 active: its public model card and config.
_MINIMAX = ModelSpec(
    name="minimax-m2.5", layers=62, moe_layers=62, hidden=3072, experts=256, top_k=8, expert_width=1536, shared_width=0,
    dense_width=0, vocab=200_064, attention=AttentionSpec("gqa", 48, 8, 128, 128, qk_norm="full"), router_bias=True,
)  # fmt: skip
GPUS = {
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "a100_sxm": "a100-sxm",
    "b200_sxm": "b200-sxm",
    "gb200": "gb200",
}
EXPERT_DTYPES = {
    "fp8": "fp8",
    "fp8_block": "fp8",
    "nvfp4": "mxfp4",
    "mxfp4": "mxfp4",
    "bfloat16": "bf16",
    "float16": "bf16",
}
# The only checkpoints with 4-bit experts keep everything else in bf16, whatever the column says.
DENSE_DTYPES = {
    "fp8": "fp8",
    "fp8_block": "fp8",
    "nvfp4": "bf16",
    "mxfp4": "bf16",
    "bfloat16": "bf16",
    "float16": "bf16",
}
COLUMNS = (
    "id", "backend", "backend_version", "model_path", "system", "mode", "isl", "osl", "gemm_quant_mode", "moe_quant_mode",
    "batch_size", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "silicon_ttft_ms", "silicon_tpot_ms",
)  # fmt: skip
SAME, FILED_TWICE, SHARED_POINTS = 0.03, 0.01, 2
Group = tuple[str, str, str, int, int, int, int]


@dataclass(frozen=True)
class SiliconPoint:
    """One measured serving point.

    Args:
        config: model, GPUs, parallelism, load.
        engine: ``"trtllm"``, ``"vllm"`` or ``"sglang"``.
        version: of the engine, may be empty.
        tpot_ms: mean time between output tokens, first one excluded, ms.
        ttft_ms: mean time to the first token, queueing included, ms.
        row: the row's name in its file.
        family: what a fit holds out together, see `distinct`; empty before.
    """

    config: EngineConfig
    engine: str
    version: str
    tpot_ms: float
    ttft_ms: float
    row: str
    family: str = ""

    @property
    def group(self) -> Group:
        """Model, engine, version, tp, dp, ep, pp; GPU types share a group."""
        c = self.config
        return c.model.name, self.engine, self.version, c.tp, c.dp, c.ep, c.pp


def read_silicon(path: str | Path, mode: str = "agg") -> list[SiliconPoint]:
    """Rows of one serving mode, in the file's order.

    Args:
        path: CSV file with the columns `COLUMNS`.
        mode: ``"agg"``: prompts and decodes on the same GPUs.

    Raises:
        JanusError: ``silicon.file`` (missing, not text, a missing column, no row), ``silicon.row`` (named by line and column).
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise JanusError("silicon.file", f"{path} lacks the columns {missing}; it must have {list(COLUMNS)}")
            rows = [(reader.line_num, row) for row in reader if row["mode"] == mode]
    except (OSError, UnicodeError, csv.Error) as error:
        raise JanusError("silicon.file", f"{path} cannot be read as CSV: {error}") from error
    if not rows:
        raise JanusError("silicon.file", f"{path} holds no row of mode {mode!r}; give another file or mode")
    return [_point(row, f"{path.name} line {line}") for line, row in rows]


def distinct(points: Iterable[SiliconPoint]) -> list[SiliconPoint]:
    """The points with their families, and one of each set of near-duplicates.

    A family is a group (model, engine, version, parallelism), joined with the groups of the same model and engine that hold two
    or more of its measurements (same GPU and load, TPOT within 1 %): what is filed under two versions or layouts must not stand
    on both sides of a split. Near-duplicates are points of one family, GPU and load within 3 %; the median one is kept. Such
    points that differ by more all stay: they measured different things.
    """
    named = [replace(point, family=family) for point, family in _with_families(list(points))]

    def load(point: SiliconPoint) -> tuple[str, str, int, int, int]:
        c = point.config
        return point.family, c.cluster.gpu.name, c.isl, c.osl, c.batch

    kept: list[SiliconPoint] = []
    for _, same in groupby(sorted(named, key=lambda point: (load(point), point.tpot_ms)), key=load):
        kept += [cluster[(len(cluster) - 1) // 2] for cluster in _clusters(list(same))]
    return kept


def _clusters(rising: list[SiliconPoint]) -> list[list[SiliconPoint]]:
    """Points in rising TPOT, cut where one is more than 3 % above the first of its part."""
    clusters = [[rising[0]]]
    for point in rising[1:]:
        if point.tpot_ms > clusters[-1][0].tpot_ms * (1 + SAME):
            clusters.append([])
        clusters[-1].append(point)
    return clusters


def _with_families(points: list[SiliconPoint]) -> list[tuple[SiliconPoint, str]]:
    parent = {point.group: point.group for point in points}

    def root(group: Group) -> Group:
        while parent[group] != group:
            group = parent[group]
        return group

    for a, b in _copies(points):
        parent[root(a)] = root(b)
    return [(point, " ".join(str(part) or "?" for part in root(point.group))) for point in points]


def _copies(points: list[SiliconPoint]) -> list[tuple[Group, Group]]:
    at: dict[tuple[object, ...], list[SiliconPoint]] = {}
    for point in points:
        c = point.config
        load = (c.model.name, point.engine, c.cluster.gpu.name, c.isl, c.osl, c.batch)
        at.setdefault(load, []).append(point)
    shared: dict[tuple[Group, Group], set[tuple[object, ...]]] = {}
    for load, same in at.items():
        for a in same:
            for b in same:
                if a.group < b.group and abs(a.tpot_ms / b.tpot_ms - 1) < FILED_TWICE:
                    shared.setdefault((a.group, b.group), set()).add(load)
    return [pair for pair, loads in shared.items() if len(loads) >= SHARED_POINTS]


@lru_cache(maxsize=32)
def _model(path: str, gemm: str, moe: str) -> ModelSpec:
    name = SHIPPED[path]
    spec = _MINIMAX if name == _MINIMAX.name else ModelSpec.from_config(name)
    return replace(spec, name=name, expert_dtype=EXPERT_DTYPES[moe], dense_dtype=DENSE_DTYPES[gemm])


@lru_cache(maxsize=8)
def _cluster(system: str) -> Cluster:
    return Cluster(GPUS[system])


def _point(row: Mapping[str, str], where: str) -> SiliconPoint:
    for column, names in (
        ("model_path", SHIPPED), ("system", GPUS), ("gemm_quant_mode", DENSE_DTYPES), ("moe_quant_mode", EXPERT_DTYPES),
    ):  # fmt: skip
        known(row[column] or "", names, f"{column} in {where}", "silicon.row")
    tp, dp, ep, pp, batch = _parallel(row, where)
    config = EngineConfig(
        _model(row["model_path"], row["gemm_quant_mode"], row["moe_quant_mode"]), _cluster(row["system"]),
        batch, _whole(row, "isl", where), _whole(row, "osl", where), tp, dp, ep, pp,
    )  # fmt: skip
    tpot, ttft = (_time(row, column, where) for column in ("silicon_tpot_ms", "silicon_ttft_ms"))
    return SiliconPoint(config, row["backend"], row["backend_version"], tpot, ttft, row["id"])


def _parallel(row: Mapping[str, str], where: str) -> tuple[int, int, int, int, int]:
    """tp, dp, ep, pp and the batch of the whole engine (the file counts requests per attention rank).

    Some exports multiply the two names of the same n GPUs: an engine of n = 8 with tp 8 and ep 8 (so its id says) reads tp 64,
    moe_tp 8, moe_ep 8; with attention data parallelism tp 1, dp 64 and the batch cut by 64.
    """
    tp, moe_tp, ep = (_whole(row, f"{name}_size", where) for name in ("tp", "moe_tp", "moe_ep"))
    pp, batch = _whole(row, "pp_size", where), _whole(row, "batch_size", where)
    if row["attention_dp_size"]:
        dp = _whole(row, "attention_dp_size", where)
        batch *= dp
    else:  # then the batch is the whole engine's
        dp = max(1, moe_tp * ep // tp)
    if moe_tp == ep > 2 and tp * dp == ep * ep:
        tp, dp, moe_tp = (ep, 1, 1) if tp > 1 else (1, ep, 1)
    if tp * dp != moe_tp * ep:
        rule = f"{where}: tp x attention_dp must equal moe_tp x moe_ep"
        raise JanusError("silicon.row", f"{rule}; got {tp} x {dp} and {moe_tp} x {ep}")
    return tp, dp, ep, pp, batch


def _whole(row: Mapping[str, str], column: str, where: str) -> int:
    value = _time(row, column, where)
    if value != int(value):
        raise JanusError("silicon.row", f"{column} in {where} must be a whole number >= 1, got {row[column]!r}")
    return int(value)


def _time(row: Mapping[str, str], column: str, where: str) -> float:
    try:
        return positive(float(row[column]), f"{column} in {where}", "silicon.row")
    except (TypeError, ValueError) as error:
        if isinstance(error, JanusError):
            raise
        raise JanusError(
            "silicon.row", f"{column} in {where} must be a finite number > 0, got {row[column]!r}"
        ) from error
