"""Physical forms: microseconds of a kernel from bytes, FLOPs and a few coefficients, one form per kind.

A smooth maximum `(a^p + b^p)^(1/p)` joins what overlaps (reading and computing); what does not is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = Mapping[str, Any]  # name -> float or float64 [N]


class Form(NamedTuple):
    """One kind of kernel.

    Attributes:
        us: microseconds from (coefficients, features).
        start: where a fit starts: coefficient -> value; the name ends with its unit.
        scales_with: coefficient -> the peak it is a share of ("memory", "compute", "link", "network"); a fixed time
            has none.
        features: what `us` needs.
        coordinates: what varies within one table; the correction is interpolated along their logarithms. All but
            ``"skew"`` (how unevenly the table's loads were drawn, so how uncertain they are) are features.
    """

    us: Callable[[Numbers, Numbers], Any]
    start: dict[str, float]
    scales_with: dict[str, str]
    features: tuple[str, ...]
    coordinates: tuple[str, ...]


def smooth_max(a: Any, b: Any, p: float) -> Any:
    """`(a^p + b^p)^(1/p)`: the larger where they differ, 2^(1/p) of either where equal; p < 0 gives a minimum.

    Example:
        >>> round(smooth_max(3.0, 4.0, 2), 6)
        5.0
    """
    return (a**p + b**p) ** (1 / p)


def moe_us(c: Numbers, x: Numbers) -> Any:
    """Routed experts of one rank: read every activated expert, multiply its tokens; rows are moved beside."""
    read = x["experts"] * x["expert_bytes"] / (c["memory_tb_per_s"] * 1e6)
    compute = 2 * x["expert_params"] * x["tokens"] / (c["compute_tflops"] * 1e6)
    rows = x["tokens"] * x["hidden"] / (c["rows_tb_per_s"] * 1e6)
    return c["fixed_us"] + smooth_max(read, compute, 4) + rows


def mla_decode_us(c: Numbers, x: Numbers) -> Any:
    """MLA attention kernel: the cache read once for all heads, FLOPs of at least 16 heads (one tile); queries beside.

    One sequence is split over few processors, so its length costs a little by itself.
    """
    return c["fixed_us"] + _core(c, x, "compute_tflops") + _queries(c, x)


def mla_module_us(c: Numbers, x: Numbers) -> Any:
    """The attention layer around it: projections by weights or FLOPs, then the attention kernel."""
    read = x["weight_bytes"] / (c["memory_tb_per_s"] * 1e6)
    compute = 2 * x["params"] * x["batch"] / (c["compute_tflops"] * 1e6)
    return c["fixed_us"] + smooth_max(read, compute, 4) + _core(c, x, "core_tflops")


def decode_us(c: Numbers, x: Numbers) -> Any:
    """Attention of new tokens over a cache of any kind: read or multiply every cached token."""
    cached = x["batch"] * x["context"]
    read = cached * x["kv_bytes"] / (c["memory_tb_per_s"] * 1e6)
    compute = cached * x["token_flops"] / (c["compute_tflops"] * 1e6)
    return c["fixed_us"] + smooth_max(read, compute, 3)


def _core(c: Numbers, x: Numbers, rate: str) -> Any:
    cached = x["batch"] * x["context"]
    read = cached * x["kv_bytes"] / (c["memory_tb_per_s"] * 1e6)
    compute = cached * np.maximum(x["heads"], 16) * x["head_flops"] / (c[rate] * 1e6)
    return smooth_max(read, compute, 3)


def _queries(c: Numbers, x: Numbers) -> Any:
    return (x["batch"] * (x["heads"] + 16) * c["query_ns"] + x["context"] * c["token_ns"]) / 1e3


def deepep_node_us(c: Numbers, x: Numbers) -> Any:
    """DeepEP within one node: every choice is a row over NVLink; counting per expert, and experts that are crowded."""
    rows = x["tokens"] * x["top_k"] * x["row_bytes"] / (c["link_gb_per_s"] * 1e3)
    crowd = c["crowd_us"] * x["tokens"] / x["all_experts"]
    return c["fixed_us"] + x["all_experts"] * c["expert_ns"] / 1e3 + rows + crowd


def deepep_nodes_us(c: Numbers, x: Numbers) -> Any:
    """DeepEP over nodes: of N nodes' choices 1 - 1/N leave over the network, and more nodes start later."""
    bytes_ = x["tokens"] * x["top_k"] * x["row_bytes"]
    far = bytes_ * (1 - 1 / x["nodes"]) / (c["network_gb_per_s"] * 1e3)
    moved = smooth_max(bytes_ / (c["link_gb_per_s"] * 1e3), far, 4)
    return c["fixed_us"] + c["node_us"] * np.log2(x["nodes"]) + moved


def collective_us(c: Numbers, x: Numbers) -> Any:
    """NCCL: the cheaper of two protocols, one with low latency and one with high bandwidth."""
    low = x["bytes"] / (c["low_gb_per_s"] * 1e3)
    high = c["switch_us"] + x["bytes"] / (c["high_gb_per_s"] * 1e3)
    return c["fixed_us"] + smooth_max(low, high, -6)


_MLA = ("batch", "context", "heads", "kv_bytes", "head_flops")
_DEEPEP = ("tokens", "top_k", "row_bytes", "all_experts")
_MEMORY = {"memory_tb_per_s": "memory"}
FORMS: dict[str, Form] = {
    "moe": Form(
        moe_us,
        {"fixed_us": 30.0, "memory_tb_per_s": 4.0, "compute_tflops": 800.0, "rows_tb_per_s": 0.2},
        _MEMORY | {"compute_tflops": "compute", "rows_tb_per_s": "memory"},
        ("experts", "tokens", "expert_bytes", "expert_params", "hidden"),
        ("experts", "tokens", "skew"),
    ),
    "mla_decode": Form(
        mla_decode_us,
        {"fixed_us": 11.0, "memory_tb_per_s": 3.0, "compute_tflops": 500.0, "query_ns": 1.0, "token_ns": 0.5},
        _MEMORY | {"compute_tflops": "compute"},
        _MLA,
        ("batch", "context", "heads"),
    ),
    "mla_module": Form(
        mla_module_us,
        {"fixed_us": 30.0, "memory_tb_per_s": 3.0, "compute_tflops": 500.0, "core_tflops": 300.0},
        _MEMORY | {"compute_tflops": "compute", "core_tflops": "compute"},
        (*_MLA, "weight_bytes", "params"),
        ("batch", "context", "heads"),
    ),
    "decode": Form(
        decode_us,
        {"fixed_us": 15.0, "memory_tb_per_s": 1.0, "compute_tflops": 100.0},
        _MEMORY | {"compute_tflops": "compute"},
        ("batch", "context", "kv_bytes", "token_flops"),
        ("batch", "context"),
    ),
    "deepep_node": Form(
        deepep_node_us,
        {"fixed_us": 9.0, "expert_ns": 10.0, "link_gb_per_s": 250.0, "crowd_us": 0.2},
        {"link_gb_per_s": "link"},
        _DEEPEP,
        ("tokens", "top_k", "row_bytes", "all_experts"),
    ),
    "deepep_nodes": Form(
        deepep_nodes_us,
        {"fixed_us": 15.0, "node_us": 4.0, "link_gb_per_s": 250.0, "network_gb_per_s": 45.0},
        {"link_gb_per_s": "link", "network_gb_per_s": "network"},
        ("tokens", "top_k", "row_bytes", "nodes"),
        ("tokens", "nodes"),
    ),
    "collective": Form(
        collective_us,
        {"fixed_us": 6.0, "low_gb_per_s": 30.0, "switch_us": 10.0, "high_gb_per_s": 300.0},
        {"low_gb_per_s": "link", "high_gb_per_s": "link"},
        ("bytes",),
        ("bytes",),
    ),
}
