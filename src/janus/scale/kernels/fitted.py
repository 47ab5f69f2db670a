"""Fitted kernels put to use: which of them times which part of a model on which card, and how far it may be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from typing import NamedTuple

from janus.errors import JanusError, known
from janus.scale.hardware import Hardware
from janus.scale.kernels.fitting import Estimate, Kernel, fit
from janus.scale.kernels.groups import HIDDEN, Q_RANK, groups, hardware_of
from janus.scale.kernels.tables import COLLECTIVES, Tables
from janus.scale.model import ModelSpec, dtype_bytes

EXPERTS = 256  # whose counts a DeepEP exchange reads: DeepSeek-V3's, for the fixed time of a phase
PEERS = {"in_node": 7, "between_nodes": 8}  # a DeepEP rank's messages inside one node, and to a second one


class Part(NamedTuple):
    """The kernel that times one part of a step.

    Attributes:
        kernel: scaled to the card where that is another one than it was measured on.
        exact: True when shape and card are those of the measurements, so that its correction applies.
        note: provenance in words.
    """

    kernel: Kernel
    exact: bool
    note: str

    def us(self, x: Mapping[str, float]) -> Estimate:
        """Microseconds for the form's features."""
        return self.kernel.predict(x, corrected=self.exact)


class Exchanged(NamedTuple):
    """Link times as DeepEP reaches them: seconds per message and per byte, and what two phases take at least."""

    alpha_s: dict[str, float]
    beta_s_per_byte: dict[str, float]
    floor_us: float
    note: str


@dataclass(frozen=True)
class KernelSet:
    """Kernels fitted to the tables of one card.

    Args:
        kernels: in no particular order.
        hardware: the card.
    """

    kernels: tuple[Kernel, ...]
    hardware: Hardware

    @classmethod
    def fit(cls, tables: Tables, hardware: Hardware | str | None = None) -> KernelSet:
        """Fit every group of the tables.

        Args:
            tables: what `Tables.read` returned.
            hardware: the card they were measured on; default the preset that the tables name.

        Raises:
            JanusError: ``latency.device`` when no preset has the name; ``latency.table`` when nothing can be fitted.
        """
        card = hardware_of(tables.device) if hardware is None else hardware
        card = Hardware.preset(card) if isinstance(card, str) else card
        if not isinstance(card, Hardware):
            rule = f"measurements must be of a known card, got device {tables.device!r}"
            raise JanusError("latency.device", f"{rule}; name it with measured_on=Hardware(...) or a preset's name")
        kernels = tuple(fit(group) for group in groups(tables))
        if not kernels:
            raise JanusError("latency.table", "the tables hold too few measurements of any kernel to fit it")
        return cls(kernels, card)

    def moe(self, model: ModelSpec, gpu: Hardware) -> Part | None:
        """For the routed experts: a kernel of the same dtype, best of the same shape, else of the nearest size."""

        def rank(kernel: Kernel) -> tuple[float, ...]:
            size = float(kernel.key["hidden"]) * float(kernel.key["width"])
            away = abs(log(size / (model.hidden * model.expert_width)))
            return not _same_experts(kernel, model), away, kernel.kind != "moe_decode", kernel.error

        found = [k for k in self.kernels if k.form == "moe" and k.key["dtype"] == model.expert_dtype]
        if not found:
            return None
        best = min(found, key=rank)
        return self._part(best, _same_experts(best, model), gpu, model.expert_dtype)

    def attention(self, model: ModelSpec, gpu: Hardware) -> Part | None:
        """For the attention layer: the whole module where it was measured, else its kernel alone."""
        a = model.attention
        if a.index_heads:
            return None
        modules = [k for k in self.kernels if k.kind == "mla_module" and _same_module(k, model)]
        cores = [k for k in self.kernels if k.kind == "mla_decode" and _same_latent(k, model)]
        cores += [k for k in self.kernels if k.kind == "decode" and _same_cache(k, model)]
        found = modules or cores
        return self._part(min(found, key=lambda k: k.error), True, gpu, model.dense_dtype) if found else None

    def _measured_on(self, gpu: Hardware) -> bool:
        """Is it this card, whatever it costs?"""
        return replace(gpu, usd_per_hour=self.hardware.usd_per_hour) == self.hardware

    def _part(self, kernel: Kernel, same_shape: bool, gpu: Hardware, dtype: str) -> Part:
        measured_on, off = self.hardware.name, f"{100 * kernel.error:.0f} % off on unseen rows"
        if not self._measured_on(gpu):
            note = f"roofline: scaled from {measured_on} by peaks, {kernel.source} ({kernel.kind})"
            return Part(kernel.scaled(ratios(self.hardware, gpu, dtype)), False, note)
        if not same_shape:
            shape = " x ".join(f"{kernel.key[name]:g}" for name in ("hidden", "width"))
            note = f"roofline: coefficients of {kernel.source} on {measured_on} at another shape ({shape})"
            return Part(kernel, False, note)
        return Part(kernel, True, f"interpolated: {kernel.source} ({kernel.kind}) on {measured_on}, {off}")

    def exchange(self, gpu: Hardware) -> Exchanged | None:
        """Links of `gpu` at the shares of their peaks that DeepEP reaches here; None without both kinds of table.

        A message costs a phase's fixed time divided by the messages a rank sends in it, so that an exchange among as
        many peers as were measured takes what was measured; with fewer, `floor_us` holds.
        """
        pairs = {form: self._directions(form) for form in ("deepep_node", "deepep_nodes")}
        if not all(pairs.values()):
            return None
        scaled = ratios(self.hardware, gpu, "bf16")
        near, far = ([k.scaled(scaled).coefficients for k in pair] for pair in pairs.values())
        start_near = [c["fixed_us"] + EXPERTS * c["expert_ns"] / 1e3 for c in near]
        start_far = [c["fixed_us"] + c["node_us"] for c in far]
        alpha = {
            "in_node": sum(start_near) / 2 / PEERS["in_node"] * 1e-6,
            "between_nodes": sum(start_far) / 2 / PEERS["between_nodes"] * 1e-6,
        }
        beta = {
            "in_node": sum(1e-9 / c["link_gb_per_s"] for c in near) / 2,
            "between_nodes": sum(1e-9 / c["network_gb_per_s"] for c in far) / 2,
        }
        how = "fitted to" if self._measured_on(gpu) else "scaled by peaks from"
        note = f"roofline: links {how} DeepEP on {self.hardware.name}, routes as the exchange lists them"
        return Exchanged(alpha, beta, sum(start_far), note)

    def _directions(self, form: str) -> list[Kernel]:
        """Dispatch and combine of one form, the better fitted table each; empty unless both are there."""
        found = []
        for kind in ("dispatch", "combine"):
            fitted = [k for k in self.kernels if (k.kind, k.form) == (kind, form)]
            found += sorted(fitted, key=lambda k: k.error)[:1]
        return found if len(found) == 2 else []

    def collective(self, op: str, gpus: int, bytes_: float) -> Estimate:
        """One NCCL collective inside a node, microseconds.

        Args:
            op: ``"all_gather"``, ``"all_reduce"``, ``"alltoall"`` or ``"reduce_scatter"``.
            gpus: as many as were measured: 2, 4 or 8.
            bytes_: the message size that nccl-tests names: of the whole buffer.

        Raises:
            JanusError: ``latency.collective``.
        """
        known(op, COLLECTIVES, "collective", "latency.collective")
        fitted = {int(k.key["gpus"]): k for k in self.kernels if k.kind == "collective" and k.key["op"] == op}
        if gpus not in fitted or not bytes_ > 0:
            listed = ", ".join(map(str, sorted(fitted))) or "none"
            rule = f"{op} was measured on {listed} GPUs, for sizes > 0 bytes"
            raise JanusError("latency.collective", f"{rule}; got {gpus!r} GPUs, {bytes_!r} bytes")
        return fitted[gpus].predict({"bytes": float(bytes_)})


def ratios(of: Hardware, to: Hardware, dtype: str) -> dict[str, float]:
    """Peaks of `to` over those of `of`, by what coefficients scale with.

    Example:
        >>> ratios(Hardware.preset("h200-sxm"), Hardware.preset("h100-sxm"), "fp8")["compute"]
        1.0
    """
    return {
        "memory": to.memory_bytes_per_s / of.memory_bytes_per_s,
        "compute": to.flops(dtype) / of.flops(dtype),
        "link": to.link_bytes_per_s / of.link_bytes_per_s,
        "network": to.inter_node_gbps / of.inter_node_gbps,
    }


def moe_features(model: ModelSpec, experts: float, tokens: float) -> dict[str, float]:
    """Features of form ``"moe"``: activated experts and routed tokens of the busiest instance."""
    return {
        "experts": max(experts, 1.0),
        "tokens": max(tokens, 1.0),
        "expert_bytes": model.expert_bytes,
        "expert_params": float(model.expert_params),
        "hidden": float(model.hidden),
    }


def attention_features(model: ModelSpec, b: float, context: float) -> dict[str, float]:
    """Features of every form of attention, for `b` requests that attend to `context` tokens."""
    a = model.attention
    return {
        "batch": max(b, 1.0),
        "context": max(context, 1.0),
        "heads": float(a.heads),
        "kv_bytes": model.kv_bytes_per_token(),
        "head_flops": a.flops_per_cached_token / a.heads,
        "token_flops": float(a.flops_per_cached_token),
        "params": float(model.attention_params),
        "weight_bytes": model.attention_params * dtype_bytes(model.dense_dtype),
    }


def _same_experts(kernel: Kernel, model: ModelSpec) -> bool:
    key = kernel.key
    return (key["dtype"], key["hidden"], key["width"]) == (model.expert_dtype, model.hidden, model.expert_width)


def _same_latent(kernel: Kernel, model: ModelSpec) -> bool:
    a = model.attention
    cached = (a.kind, a.kv_rank + a.rope_dim, a.kv_rank, model.kv_dtype)
    return cached == ("mla", kernel.key["latent"], kernel.key["values"], kernel.key["kv_dtype"])


def _same_module(kernel: Kernel, model: ModelSpec) -> bool:
    a = model.attention
    dims = (model.hidden, a.q_rank, a.head_dim, a.v_head_dim, model.dense_dtype)
    return _same_latent(kernel, model) and dims == (HIDDEN, Q_RANK, 128, 128, kernel.key["dtype"])


def _same_cache(kernel: Kernel, model: ModelSpec) -> bool:
    cached = (model.kv_bytes_per_token(), model.attention.flops_per_cached_token)
    return cached == (kernel.key["kv_bytes"], kernel.key["token_flops"])
