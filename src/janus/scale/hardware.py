"""GPUs and how they are wired, as the datasheets and the assumptions about them say."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from typing import Any

from janus.errors import JanusError, known
from janus.types.checks import shown


@dataclass(frozen=True)
class Hardware:
    """One GPU and the links it has.

    Args:
        name: for people.
        memory_bytes: device memory, bytes.
        memory_bytes_per_s: peak memory bandwidth, bytes/s.
        bf16_flops: peak dense bf16 rate, FLOP/s.
        fp8_flops: peak dense fp8 rate, FLOP/s; the bf16 rate where the card has no fp8.
        link_bytes_per_s: in-node link, bytes/s per GPU and direction.
        gpus_per_node: as the system is usually sold.
        inter_node_gbps: network card, gigabits/s per GPU and direction, as usually sold.
        usd_per_hour: price of one GPU for one hour, dollars; None when nobody said. Presets carry none: prices differ
            between buyers and from month to month, so yours is the only one worth planning with.

    Raises:
        JanusError: ``hardware.range``, ``hardware.name``.

    Example:
        >>> Hardware.preset("h100-sxm").memory_bytes_per_s / 1e12
        3.35
    """

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float
    link_bytes_per_s: float
    gpus_per_node: int = 8
    inter_node_gbps: float = 400.0
    usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "name" and (field.name != "usd_per_hour" or self.usd_per_hour is not None):
                positive(getattr(self, field.name), f"Hardware.{field.name}", "hardware.range")

    @classmethod
    def preset(cls, name: str, *, usd_per_hour: float | None = None) -> Hardware:
        """A system by name; `PRESETS` lists them with their source.

        Args:
            name: e.g. ``"h200-sxm"``.
            usd_per_hour: what one such GPU costs you, dollars per hour.
        """
        found = PRESETS[known(name, PRESETS, "hardware", "hardware.name")]
        return found if usd_per_hour is None else replace(found, usd_per_hour=usd_per_hour)

    def alike(self, other: Hardware) -> bool:
        """True for the same card, whatever it costs."""
        return replace(self, usd_per_hour=None) == replace(other, usd_per_hour=None)

    def flops(self, dtype: str) -> float:
        """Peak FLOP/s for weights of `dtype`: fp8 has its own rate, mxfp4 weights are multiplied in bf16."""
        return self.fp8_flops if dtype == "fp8" else self.bf16_flops


def positive(value: Any, what: str, code: str) -> float:
    """`value` if it is a finite number > 0, else a `JanusError` that names `what`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:  # an int may be too large to be a float
        raise JanusError(code, f"{what} must be a finite number > 0, got {shown(value)}")
    return value


def whole(value: Any, what: str, code: str, least: int = 1) -> int:
    """`value` if it is a whole number >= `least`, else a `JanusError` that names `what`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise JanusError(code, f"{what} must be a whole number >= {least}, got {shown(value)}")
    return value


_GIB = 2**30
# Vendors' datasheets, as collected in the system files of ai-dynamo/aiconfigurator (Apache-2.0): dense rates without
# sparsity; bandwidths per GPU and direction. Columns: memory, memory bandwidth, bf16, fp8, in-node link, GPUs per
# node, network. A100 has no fp8; the nodes of a GB200 rack talk over NVLink, hence 7200 Gb/s.
PRESETS: dict[str, Hardware] = {
    "a100-sxm": Hardware("a100-sxm", 80 * _GIB, 2.039e12, 312e12, 312e12, 300e9, 8, 200),
    "h100-sxm": Hardware("h100-sxm", 80 * _GIB, 3.35e12, 989e12, 1978e12, 450e9, 8, 400),
    "h200-sxm": Hardware("h200-sxm", 141 * _GIB, 4.8e12, 989e12, 1978e12, 450e9, 8, 400),
    "b200-sxm": Hardware("b200-sxm", 180 * _GIB, 7.7e12, 2250e12, 4500e12, 900e9, 8, 800),
    "gb200": Hardware("gb200", 198_674_743_296, 8.0e12, 2500e12, 5000e12, 900e9, 4, 7200),
}


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind in nodes.

    Args:
        hardware: the GPU, or the name of a preset.
        gpus_per_node: GPUs that reach each other over the in-node link; default as the system is sold.
        inter_node_gbps: network, gigabits/s per GPU's card and direction; default as sold.
        memory_use: share of device memory that weights, KV cache and exchange buffers may take; the rest is the
            runtime's (CUDA context, graphs, workspaces, fragmentation). An assumption.
        in_node_latency_s: fixed time of one in-node message, seconds. An assumption (see docs).
        inter_node_latency_s: fixed time of one message between nodes, seconds. An assumption.
        gpus: how many of them there are, for both pools together; None for as many as are asked for.

    Raises:
        JanusError: ``cluster.range``, ``hardware.name``.

    Example:
        >>> Cluster("h100-sxm").inter_node_bytes_per_s
        50000000000.0
    """

    hardware: Hardware | str
    gpus_per_node: int | None = None
    inter_node_gbps: float | None = None
    memory_use: float = 0.9
    in_node_latency_s: float = 5e-6
    inter_node_latency_s: float = 12e-6
    gpus: int | None = None

    def __post_init__(self) -> None:
        hw = Hardware.preset(self.hardware) if isinstance(self.hardware, str) else self.hardware
        if not isinstance(hw, Hardware):
            raise JanusError("hardware.name", f"hardware must be a Hardware or a preset's name, got {hw!r}")
        object.__setattr__(self, "hardware", hw)
        object.__setattr__(
            self, "gpus_per_node", hw.gpus_per_node if self.gpus_per_node is None else self.gpus_per_node
        )
        gbps = hw.inter_node_gbps if self.inter_node_gbps is None else self.inter_node_gbps
        object.__setattr__(self, "inter_node_gbps", gbps)
        for name in ("gpus_per_node", "inter_node_gbps", "memory_use", "in_node_latency_s", "inter_node_latency_s"):
            positive(getattr(self, name), f"Cluster.{name}", "cluster.range")
        if not isinstance(self.gpus_per_node, int) or self.memory_use > 1:
            rule = "gpus_per_node must be a whole number and memory_use at most 1"
            raise JanusError("cluster.range", f"{rule}; got {self.gpus_per_node!r}, {self.memory_use!r}")
        if self.gpus is not None:
            whole(self.gpus, "Cluster.gpus", "cluster.range")

    def alike(self, other: Cluster) -> bool:
        """True when the same GPUs are wired the same way, whatever they cost and however many there are."""
        one, two = (replace(c, hardware=self.gpu, gpus=None) for c in (self, other))
        return one == two and self.gpu.alike(other.gpu)

    @property
    def gpu(self) -> Hardware:
        """The GPU, resolved."""
        assert isinstance(self.hardware, Hardware)
        return self.hardware

    @property
    def node_size(self) -> int:
        """GPUs per node, resolved."""
        assert self.gpus_per_node is not None
        return self.gpus_per_node

    @property
    def inter_node_bytes_per_s(self) -> float:
        """Network of one GPU, bytes/s per direction."""
        assert self.inter_node_gbps is not None
        return self.inter_node_gbps * 1e9 / 8

    @property
    def usable_bytes(self) -> float:
        """Device memory Janus plans with, bytes."""
        return self.gpu.memory_bytes * self.memory_use
