"""Tables split into what one set of coefficients can describe: one kind, one source, one shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from janus.scale.hardware import PRESETS, Hardware
from janus.scale.kernels.forms import FORMS, Array
from janus.scale.kernels.least_squares import least_squares
from janus.scale.kernels.loads import busiest_rank, exponent
from janus.scale.kernels.tables import BALANCED, CollectiveRow, DeepepRow, MlaRow, MoeRow, Tables

# Tables' names of dtypes -> ours. Block-wise fp8 scales and mxfp4 scales are counted by `DTYPE_BYTES`.
DTYPES = {"fp8_block": "fp8", "fp8": "fp8", "bfloat16": "bf16", "bf16": "bf16", "w4a16_mxfp4": "mxfp4", "int8": "int8"}
WEIGHT_BYTES = {"fp8": 1.0, "bf16": 2.0, "mxfp4": 4.25 / 8, "int8": 1.0}
LATENT, VALUES = 576, 512  # MLA of DeepSeek-V2 and V3: cached row of 512 + 64 elements, 512 of them values
HEAD_FLOPS = 2 * (LATENT + VALUES)  # per head and cached token, absorbed form
# DeepSeek-V3's attention: parameters without regard to heads, and per head.
HIDDEN, Q_RANK = 7168, 1536
_COMMON = HIDDEN * Q_RANK + Q_RANK + HIDDEN * LATENT + VALUES
_PER_HEAD = Q_RANK * 192 + VALUES * 256 + 128 * HIDDEN

# Form -> the constants that tell its measurements apart.
KEYS: dict[str, dict[str, type]] = {
    "moe": {"dtype": str, "hidden": float, "width": float},
    "mla_decode": {"kv_dtype": str, "latent": float, "values": float},
    "mla_module": {"kv_dtype": str, "latent": float, "values": float, "dtype": str, "hidden": float, "q_rank": float},
    "decode": {"kv_bytes": float, "token_flops": float},
    "deepep_node": {},
    "deepep_nodes": {},
    "collective": {"op": str, "gpus": float},
}

T = TypeVar("T")


class Group(NamedTuple):
    """Measurements that share coefficients.

    Attributes:
        kind: ``"moe_decode"``, ``"dispatch"``, ...
        source: kernel and version, from the table.
        form: key of `FORMS`.
        key: what is constant and must agree for a correction to apply, e.g. hidden size and dtype.
        x: features, float64 [N] each.
        us: measured times, float64 [N].
        most: upper bounds of the form's coefficients: the card's peaks, where the card is known.
    """

    kind: str
    source: str
    form: str
    key: dict[str, float | str]
    x: dict[str, Array]
    us: Array
    most: dict[str, float]

    def take(self, index: npt.NDArray[np.bool_]) -> Group:
        """Only the measurements where `index`, bool [N], is True."""
        return self._replace(x={name: value[index] for name, value in self.x.items()}, us=self.us[index])


def groups(tables: Tables) -> list[Group]:
    """Every group of the tables with enough measurements for its form's coefficients.

    Rows of ``balanced`` fused kernels are left out: at DeepSeek-V3's shape they would have read 8.1 TB/s had they
    touched all experts, on a card of 4.8, so the experts they touch are not known.
    """
    fused = [row for row in tables.fused_moe if row.distribution != BALANCED]
    hw = hardware_of(tables.device)
    found = [
        *(_moe("moe_decode", rows, hw) for rows in _split(tables.moe_decode, _moe_shape)),
        *(_moe("fused_moe", rows, hw) for rows in _split(fused, _moe_shape)),
        *(_mla("mla_decode", rows, hw) for rows in _split(tables.mla_decode, lambda r: (r.source, r.kv_dtype))),
        *(_mla("mla_module", rows, hw) for rows in _split(tables.mla_module, lambda r: (r.source, r.kv_dtype))),
        *(_deepep("dispatch", rows, hw) for rows in _split(tables.deepep, lambda r: r.source)),
        *(_deepep("combine", rows, hw) for rows in _split(tables.deepep, lambda r: r.source)),
        *(_collective(rows) for rows in _split(tables.collectives, lambda r: (r.source, r.op, r.gpus))),
    ]
    return [group for group in found if len(group.us) >= 2 * len(FORMS[group.form].start)]


def hardware_of(device: str) -> Hardware | None:
    """The preset of a device as tables name it, or None.

    Example:
        >>> hardware_of("NVIDIA H200").name
        'h200-sxm'
    """
    name = device.lower().removeprefix("nvidia ").split(" ")[0]
    return next((hw for key, hw in PRESETS.items() if key.split("-")[0] == name), None)


def _peaks(hw: Hardware | None, dtype: str) -> dict[str, float]:
    """Upper bounds by coefficient; collectives count the bytes of all ranks, so none applies to them."""
    if hw is None:
        return {}
    rate = hw.flops(dtype) / 1e12
    return {
        "memory_tb_per_s": hw.memory_bytes_per_s / 1e12,
        "rows_tb_per_s": hw.memory_bytes_per_s / 1e12,
        "compute_tflops": rate,
        "core_tflops": rate,
        "link_gb_per_s": hw.link_bytes_per_s / 1e9,
        "network_gb_per_s": hw.inter_node_gbps / 8,
    }


def _split(rows: Iterable[T], shape: Callable[[T], Hashable]) -> list[list[T]]:
    found: dict[Hashable, list[T]] = defaultdict(list)
    for row in rows:
        found[shape(row)].append(row)
    return list(found.values())


def _moe_shape(row: MoeRow) -> Hashable:
    return row.source, row.dtype, row.hidden, row.width, row.top_k, row.experts


def _column(values: Iterable[float]) -> Array:
    return np.array(list(values), dtype=np.float64)


def _same(value: float, rows: list[T]) -> Array:
    return np.full(len(rows), float(value))


def _moe(kind: str, rows: list[MoeRow], hw: Hardware | None) -> Group:
    """Of the two ways in which the table's routing may have been drawn, the one that explains the times better."""
    drawn = [_drawn(kind, rows, wide, hw) for wide in (False, True)]
    return min(drawn, key=misfit)


def misfit(group: Group) -> float:
    """Mean squared log error of the form fitted to all of a group."""
    form = FORMS[group.form]
    coefficients = least_squares(form, group.x, group.us, group.most)
    return float(np.mean(np.log(form.us(coefficients, group.x) / group.us) ** 2))


def _drawn(kind: str, rows: list[MoeRow], wide: bool, hw: Hardware | None) -> Group:
    row = rows[0]
    dtype, params = DTYPES.get(row.dtype, row.dtype), 3 * row.hidden * row.width
    loads = [busiest_rank(r.distribution, r.tokens, r.top_k, r.experts, r.ep, wide) for r in rows]
    x = {
        "experts": _column(active for active, _ in loads),
        "tokens": _column(most for _, most in loads),
        "expert_bytes": _same(params * WEIGHT_BYTES.get(dtype, 2.0), rows),
        "expert_params": _same(params, rows),
        "hidden": _same(row.hidden, rows),
        "skew": np.exp(_column(exponent(r.distribution) for r in rows)),
    }
    key = {"dtype": dtype, "hidden": row.hidden, "width": row.width}
    return Group(kind, row.source, "moe", key, x, _column(r.us for r in rows), _peaks(hw, dtype))


def _mla(kind: str, rows: list[MlaRow], hw: Hardware | None) -> Group:
    row = rows[0]
    kv = DTYPES.get(row.kv_dtype, row.kv_dtype)
    x = {
        "batch": _column(r.batch for r in rows),
        "context": _column(r.context for r in rows),
        "heads": _column(r.heads for r in rows),
        "kv_bytes": _same(LATENT * WEIGHT_BYTES.get(kv, 2.0), rows),
        "head_flops": _same(HEAD_FLOPS, rows),
    }
    key: dict[str, float | str] = {"kv_dtype": kv, "latent": LATENT, "values": VALUES}
    if kind == "mla_module":  # all of DeepSeek-V3 with weights in fp8
        x["params"] = x["weight_bytes"] = _COMMON + _PER_HEAD * x["heads"]
        key |= {"dtype": "fp8", "hidden": HIDDEN, "q_rank": Q_RANK}
    most = _peaks(hw, "fp8" if kind == "mla_module" else "bf16")
    return Group(kind, row.source, kind, key, x, _column(r.us for r in rows), most)


def _deepep(kind: str, rows: list[DeepepRow], hw: Hardware | None) -> Group:
    out = kind == "dispatch"
    x = {
        "tokens": _column(r.tokens for r in rows),
        "top_k": _column(r.top_k for r in rows),
        "row_bytes": _column(r.hidden * (1 + 4 / 128) + 16 if out else 2 * r.hidden for r in rows),
        "all_experts": _column(r.experts for r in rows),
    }
    one_node = all(r.nodes == 1 for r in rows)
    if not one_node:
        x["nodes"] = _column(r.nodes for r in rows)
    us = _column(r.dispatch_us if out else r.combine_us for r in rows)
    form = "deepep_node" if one_node else "deepep_nodes"
    return Group(kind, f"deepep {rows[0].source}", form, {}, x, us, _peaks(hw, "bf16"))


def _collective(rows: list[CollectiveRow]) -> Group:
    row = rows[0]
    key: dict[str, float | str] = {"op": row.op, "gpus": row.gpus}
    x = {"bytes": _column(r.bytes for r in rows)}
    return Group("collective", f"NCCL {row.source}", "collective", key, x, _column(r.us for r in rows), {})
