"""How long one decode step takes, part by part, in milliseconds: measured kernels where there are some, else a roofline.

TPOT is what `janus.types.Slo` says it is: the mean time between the output tokens of one request, the first token
excluded. A decode step gives every request in the batch one token, so its duration is their TPOT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from janus.errors import JanusError
from janus.scale.hardware import Cluster, Hardware, positive, whole
from janus.scale.kernels.fitted import KernelSet, attention_features, moe_features
from janus.scale.kernels.fitting import Estimate
from janus.scale.kernels.tables import Tables
from janus.scale.model import ModelSpec, dtype_bytes
from janus.scale.timing.exchange import ExchangeCost
from janus.scale.timing.terms import Activated, Activation, Breakdown, Efficiency
from janus.sched import RooflineCost

if TYPE_CHECKING:
    from janus.scale.timing.points import StepPoint


class LatencyModel:
    """Times of the parts of a step: from fitted kernels where they cover a part, else from architecture and peaks.

    Per operation of the roofline, time = max(bytes / (bandwidth * memory), FLOPs / (rate * compute)), operations of one
    instance one after the other, instances of a pool side by side; the busiest one counts. See docs/scale_latency.md.

    Args:
        model: the model.
        cluster: the GPUs of the attention pool.
        efficiency: see `Efficiency`.
        cost: of the exchange; default `ExchangeCost` of the clusters.
        expert_cluster: the GPUs of the expert pool; default the same.
        kernels: fitted to measurements; default none.
        comm_floor_us: least time of one layer's exchange, microseconds.
        notes: provenance of single parts, in place of what the arguments imply.

    Raises:
        JanusError: ``latency.kind``.
    """

    def __init__(
        self,
        model: ModelSpec,
        cluster: Cluster,
        efficiency: Efficiency,
        cost: ExchangeCost,
        expert_cluster: Cluster | None = None,
        kernels: KernelSet | None = None,
        comm_floor_us: float = 0.0,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        expert_cluster = cluster if expert_cluster is None else expert_cluster
        kinds = ((model, ModelSpec), (cluster, Cluster), (expert_cluster, Cluster), (efficiency, Efficiency))
        for value, kind in (*kinds, (cost, ExchangeCost)):
            if not isinstance(value, kind):
                raise JanusError("latency.kind", f"a LatencyModel is made of a {kind.__name__} here, got {value!r}")
        self.model, self.cluster, self.expert_cluster = model, cluster, expert_cluster
        self.efficiency, self.cost, self.kernels, self.comm_floor_us = efficiency, cost, kernels, comm_floor_us
        self._attention = kernels.attention(model, cluster.gpu) if kernels else None
        self._moe = kernels.moe(model, expert_cluster.gpu) if kernels else None
        self.notes = dict(notes or {})
        self.side_us = lru_cache(maxsize=65536)(self.attention_side_us)
        self._experts = lru_cache(maxsize=65536)(self._experts_us)  # pools of every n_a ask for the same

    @classmethod
    def roofline(
        cls,
        model: ModelSpec,
        cluster: Cluster,
        expert_cluster: Cluster | None = None,
        *,
        efficiency: Efficiency | None = None,
        cost: ExchangeCost | None = None,
    ) -> LatencyModel:
        """A model from datasheet numbers alone.

        Args:
            model: the model.
            cluster: the GPUs of the attention pool.
            expert_cluster: the GPUs of the expert pool; default the same.
            efficiency: shares of the peaks, and fixed times.
            cost: of the exchange; default each class of links as the slower of both pools has it.

        Raises:
            JanusError: ``latency.kind``.
        """
        _check(model, cluster, expert_cluster)
        cost = cost or ExchangeCost.of(cluster, expert_cluster)
        return cls(model, cluster, efficiency or Efficiency(), cost, expert_cluster)

    @classmethod
    def fit(
        cls,
        measurements: Tables | str | Path | Iterable[str | Path] | Sequence[StepPoint],
        *,
        model: ModelSpec,
        cluster: Cluster,
        expert_cluster: Cluster | None = None,
        efficiency: Efficiency | None = None,
        cost: ExchangeCost | None = None,
        measured_on: Hardware | str | None = None,
        activation: Activation | None = None,
    ) -> LatencyModel:
        """A model from kernel measurements; `provenance` says which part rests on which, the rest is the roofline.

        Args:
            measurements: CSV files, a folder of them (see `janus.scale.kernels.tables`), or `Tables`; or whole steps, a
                list of `StepPoint`, to which the roofline is then fitted (see `fitted_to`).
            model: the model.
            cluster: the GPUs of the attention pool.
            expert_cluster: the GPUs of the expert pool; default the same.
            efficiency: of what the measurements do not cover.
            cost: of the exchange, e.g. measured by `janus.comm.Exchange.calibrate`; default DeepEP's link times where
                the measurements hold them, else the datasheet's.
            measured_on: the card, where the tables name none that is known.
            activation: of this model's routing, needed by `StepPoint`s and by nothing else.

        Raises:
            JanusError: ``latency.table``, ``latency.device``, ``latency.kind``; ``points.*`` for whole steps.
        """
        from janus.scale.timing.points import fitted_to, step_points

        _check(model, cluster, expert_cluster)
        if points := step_points(measurements, activation):
            base = cls.roofline(model, cluster, expert_cluster, efficiency=efficiency, cost=cost)
            return fitted_to(base, *points)
        tables = measurements if isinstance(measurements, Tables) else Tables.read(cast(Any, measurements))
        kernels = KernelSet.fit(tables, measured_on)
        return cls.of_kernels(kernels, model, cluster, expert_cluster, efficiency=efficiency, cost=cost)

    @classmethod
    def of_kernels(
        cls,
        kernels: KernelSet,
        model: ModelSpec,
        cluster: Cluster,
        expert_cluster: Cluster | None = None,
        *,
        efficiency: Efficiency | None = None,
        cost: ExchangeCost | None = None,
    ) -> LatencyModel:
        """As `fit`, from kernels that are fitted already: for several models from one set of tables."""
        _check(model, cluster, expert_cluster)
        floor, notes = 0.0, {}
        if cost is None:
            cost = ExchangeCost.of(cluster, expert_cluster)
            slower = min((cluster, expert_cluster or cluster), key=lambda c: c.inter_node_bytes_per_s)
            if found := kernels.exchange(slower.gpu):
                from janus.comm.cost import CostModel

                cost.model = CostModel(found.alpha_s, found.beta_s_per_byte)
                floor, notes = found.floor_us, {"comm": found.note}
        efficiency = efficiency or Efficiency()
        return cls(model, cluster, efficiency, cost, expert_cluster, kernels, floor, notes)

    @classmethod
    def measure(
        cls,
        model: ModelSpec,
        cluster: Cluster,
        *,
        device: str = "auto",
        budget_s: float = 60.0,
        cost: ExchangeCost | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> LatencyModel:
        """A model from measurements on the machine at hand, with torch; nothing is measured between machines.

        Args:
            model: whose shapes are measured, as far as memory and time allow.
            cluster: what the device is a GPU of; its datasheet stays for what is not measured.
            device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
            budget_s: about how long it may take, seconds.
            cost: of the exchange, e.g. measured by `janus.comm.Exchange.calibrate`; default the datasheet's.
            progress: called with the share of the budget that is used.

        Raises:
            JanusError: ``latency.kind``, ``latency.range``, ``latency.measure`` (no torch, no such device).
        """
        from janus.scale.kernels.measuring import measure

        _check(model, cluster, None)
        positive(budget_s, "budget_s (seconds)", "latency.range")
        found = measure(model, cluster.gpu, device, budget_s, progress)
        text = f"roofline: shares of {cluster.gpu.name}'s peaks and launches measured on {found.device}"
        kernels = found.kernels
        notes = {"other": f"{text}; step_us assumed"}
        if kernels.attention(model, cluster.gpu) is None:
            notes["attention"] = text
        if kernels.moe(model, cluster.gpu) is None:
            notes["moe"] = text
        return cls(
            model, cluster, Efficiency(**found.shares), cost or ExchangeCost.of(cluster), None, kernels, 0.0, notes
        )

    def owned(self, cluster: Cluster, expert_cluster: Cluster) -> Self:
        """The same times on the same GPUs, at another price or in another number."""
        again = copy(self)
        again.cluster, again.expert_cluster = cluster, expert_cluster
        return again

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, the measured points included.

        Raises:
            JanusError: ``latency.file`` when the file cannot be written.
        """
        from janus.scale.timing.latency_file import write

        write(self, path)

    @classmethod
    def load(cls, path: str | Path) -> LatencyModel:
        """Read what `save` wrote.

        Raises:
            JanusError: ``latency.file``, whatever is wrong with the file.
        """
        from janus.scale.timing.latency_file import read

        return read(path)

    @property
    def provenance(self) -> dict[str, str]:
        """Part of a step -> where its time comes from: "measured: ...", "interpolated: ..." or "roofline: ...".

        Example:
            >>> from janus.scale import Cluster, ModelSpec
            >>> LatencyModel.roofline(ModelSpec.from_config("deepseek-v2"), Cluster("h100-sxm")).provenance["moe"]
            'roofline: datasheet of h100-sxm, default efficiency'
        """
        assumed = "default" if self.efficiency == Efficiency() else "given"
        sides: dict[str, Cluster] = {
            "attention": self.cluster,
            "moe": self.expert_cluster,
            "comm": self.cluster,
            "other": self.cluster,
        }
        words: dict[str, str] = {
            k: f"roofline: datasheet of {c.gpu.name}, {assumed} efficiency" for k, c in sides.items()
        }
        words["comm"] = f"roofline: latencies and bandwidths of {self.cluster.gpu.name}'s links, or as given"
        for name, part in (("attention", self._attention), ("moe", self._moe)):
            if part is not None:
                words[name] = part.note
        return words | self.notes

    def sources(self, n_a: int, n_e: int, B: int, s_ctx: float, activation: Activation) -> dict[str, str]:
        """Of one prediction, "measured", "interpolated" or "roofline" per part: outside a table's range the form decides."""
        found: dict[str, str] = dict.fromkeys(("attention", "moe", "comm", "other"), "roofline")
        if self._attention is not None:
            found["attention"] = self._core(-(-B // n_a), s_ctx).provenance
        if self._moe is not None:
            found["moe"] = self._moe.us(moe_features(self.model, *activation.at(n_e, B))).provenance
        return found

    def tpot(self, n_a: int, n_e: int, B: int, s_ctx: float, activation: Activation) -> Breakdown:
        """Milliseconds of one step of a batch of `B` requests on `n_a` + `n_e` instances.

        Args:
            n_a: attention instances.
            n_e: expert instances.
            B: requests in flight; the fullest attention instance holds ceil(B / n_a).
            s_ctx: mean KV length, tokens.
            activation: expected activated experts, e.g. an `ActivationTable`.

        Raises:
            JanusError: ``latency.range``.
        """
        for name, value in (("n_a", n_a), ("n_e", n_e), ("B", B)):
            whole(value, name, "latency.range")
        positive(s_ctx, "s_ctx (tokens)", "latency.range")
        comm_us = 1e6 * self.cost.layer_s(n_a, n_e, B, 2 * self.model.hidden)
        return self.breakdown(-(-B // n_a), s_ctx, B, activation.at(n_e, B), comm_us)

    def breakdown(self, b: int, s_ctx: float, B: int, active: Activated, comm_us: float) -> Breakdown:
        """One step put together from its parts.

        Args:
            b: requests on the fullest attention instance.
            s_ctx: their mean KV length, tokens.
            B: tokens in the batch.
            active: what one layer asks of the expert pool.
            comm_us: dispatch and combine of one layer, microseconds.
        """
        return self.composed(*self.side_us(b, s_ctx), self.pool_moe_us(active, B), comm_us)

    def composed(self, attention_us: Any, shared_us: Any, other_us: Any, moe_us: Any, comm_us: Any) -> Breakdown:
        """The step of these parts, microseconds; numbers, or arrays [N] for N steps at once.

        Args:
            attention_us: one attention layer.
            shared_us: one layer's shared experts.
            other_us: everything outside the layers.
            moe_us: one layer's routed experts.
            comm_us: one layer's dispatch and combine.
        """
        m, comm = self.model, np.maximum(self.comm_floor_us, comm_us)
        return Breakdown(
            attention=(m.layers * attention_us + m.moe_layers * shared_us) / 1e3,
            moe=m.moe_layers * moe_us / 1e3,
            comm=m.moe_layers * comm / 1e3,
            other=other_us / 1e3,
            overlap=m.moe_layers * np.minimum(shared_us, moe_us + comm) / 1e3,
        )

    def pool_moe_us(self, active: Activated, B: float) -> float:
        """Routed experts of one layer where they have a pool of their own, which sees all `B` rows; microseconds."""
        return self.moe_layer_us(active, B)

    def op_us(self, bytes_: float, flops: float, dtype: str, gpu: Hardware | None = None) -> float:
        """One operation: the larger of reading `bytes_` and computing `flops`, microseconds; default on attention's GPU."""
        gpu, eff = gpu or self.cluster.gpu, self.efficiency
        return 1e6 * max(bytes_ / (gpu.memory_bytes_per_s * eff.memory), flops / (gpu.flops(dtype) * eff.compute))

    def weights_us(self, params: float, tokens: float, dtype: str, gpu: Hardware | None = None) -> float:
        """A matrix product of `tokens` rows with `params` weights of `dtype`, microseconds."""
        return self.op_us(params * dtype_bytes(dtype), 2 * params * tokens, dtype, gpu)

    def attention_layer_us(self, b: float, s_ctx: float) -> float:
        """Mean attention layer of an instance with `b` requests of `s_ctx` cached tokens, microseconds.

        Windowed layers read less; the mean over all layers is returned.
        """
        m, part = self.model, self._attention
        if part is not None and part.kernel.kind == "mla_module":
            return self._core(b, s_ctx).us
        projections = self.weights_us(m.attention_params, b, m.dense_dtype)
        if part is not None:  # the kernel's own start is inside its time
            start = max(0.0, self.efficiency.attention_us - part.kernel.coefficients["fixed_us"])
            windowed = m.attention.window_layers / m.layers
            inside = self._core(b, min(s_ctx, m.attention.window)).us if windowed else 0.0
            whole_us = self._core(b, s_ctx).us if windowed < 1 else 0.0
            return start + projections + windowed * inside + (1 - windowed) * whole_us
        seen = m.attention.attended(s_ctx, m.layers) / m.layers
        kv = b * seen * (m.kv_bytes_per_token() - m.index_bytes_per_token)
        core = self.op_us(kv, b * seen * m.attention.flops_per_cached_token, "bf16")
        index_flops = 2 * m.attention.index_heads * m.attention.index_dim  # the indexer scores every cached token
        indexer = self.op_us(b * s_ctx * m.index_bytes_per_token, b * s_ctx * index_flops, "fp8")
        return self.efficiency.attention_us + projections + core + indexer

    def _core(self, b: float, context: float) -> Estimate:
        assert self._attention is not None
        return self._attention.us(attention_features(self.model, b, context))

    def moe_layer_us(self, active: Activated, B: float) -> float:
        """Routed experts of one layer on the busiest instance, gate included, microseconds."""
        m, gpu = self.model, self.expert_cluster.gpu
        gate = self.weights_us(m.router_params, B, "bf16", gpu)
        return gate + self._experts(active.a_max, active.tokens)

    def _experts_us(self, a_max: float, tokens: float) -> float:
        m, gpu = self.model, self.expert_cluster.gpu
        if self._moe is not None:
            return self._moe.us(moe_features(m, a_max, tokens)).us
        reads = a_max * m.expert_bytes
        experts = self.op_us(reads, 2 * m.expert_params * tokens, m.expert_dtype, gpu)
        return self.efficiency.moe_us + experts

    @property
    def expert_cost(self) -> RooflineCost:
        """What `janus.sched.balance(..., method="cost", cost=)` needs: reading one expert, and one token in it."""
        m, gpu = self.model, self.expert_cluster.gpu
        read = self.op_us(m.expert_bytes, 0, m.expert_dtype, gpu)
        return RooflineCost(read_us=read, token_us=self.op_us(0, 2 * m.expert_params, m.expert_dtype, gpu))

    def attention_side_us(self, b: int, s_ctx: float) -> tuple[float, float, float]:
        """Microseconds of (one attention layer, one layer's shared experts, everything outside per step)."""
        m, eff = self.model, self.efficiency
        shared = eff.dense_us + self.weights_us(m.shared_params, b, m.dense_dtype) if m.shared_width else 0.0
        dense = m.dense_layers * (eff.dense_us + self.weights_us(m.dense_params, b, m.dense_dtype))
        head = self.weights_us(m.vocab * m.hidden, b, "bf16")
        sampling = self.op_us(eff.sampling_passes * 4 * b * m.vocab, 0, "bf16")  # float32 logits
        return self.attention_layer_us(b, s_ctx), shared, eff.step_us + dense + head + sampling


def _check(model: object, cluster: object, expert_cluster: object) -> None:
    if not isinstance(model, ModelSpec):
        rule = "model must be a ModelSpec, e.g. ModelSpec.from_config('deepseek-v2')"
        raise JanusError("latency.kind", f"{rule}; got {model!r}")
    for name, value in (("cluster", cluster), ("expert_cluster", expert_cluster)):
        if not isinstance(value, Cluster) and (value is not None or name == "cluster"):
            raise JanusError("latency.kind", f"{name} must be a Cluster, e.g. Cluster('h100-sxm'); got {value!r}")
