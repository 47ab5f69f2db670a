"""How long one decode step takes: a roofline per layer, in milliseconds per step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple, Protocol

from janus.errors import JanusError
from janus.scale.exchange import ExchangeCost
from janus.scale.hardware import Cluster, positive, whole
from janus.scale.model import ModelSpec, dtype_bytes
from janus.sched import RooflineCost


class Activated(NamedTuple):
    """What a batch asks of the expert pool, expected values per layer."""

    a_max: float
    """Distinct experts on the busiest instance."""
    tokens: float
    """Routed tokens on the instance with the most (not always the same instance)."""


class Activation(Protocol):
    """Where the latency model asks how many experts a batch activates; `ActivationTable` is one."""

    def at(self, n_e: int, B: float) -> Activated:
        """Expected activation of a batch of `B` tokens on `n_e` expert instances."""
        ...


@dataclass(frozen=True)
class Efficiency:
    """Assumptions that turn datasheet peaks into times; every one is a plain number to replace by a measurement.

    Args:
        memory: share of the peak memory bandwidth a weight or cache read reaches. 0.83: slope of a measured fp8 MoE
            decode on H200 (11.04 us per 44.0 MB expert).
        compute: share of the peak FLOP/s of a large matrix product. 0.4: least mean error over the measured MLA module
            of DeepSeek-V3 on H200 with one kernel (fa3, 92 points); checked on another (flashinfer, 91 points).
        attention_us: fixed time of one attention layer (its dozen kernels), microseconds. 45: measured MLA module on
            H200 at b = 1 (92 us) minus its weight read.
        moe_us: fixed time of one expert layer (gate, balance, quantise, permute), microseconds. 31: intercept of the
            same MoE table.
        dense_us: fixed time of a dense or shared feed-forward part, microseconds.
        step_us: fixed time of one step outside the layers (launch, sampling, bookkeeping), microseconds.
    """

    memory: float = 0.83
    compute: float = 0.4
    attention_us: float = 45.0
    moe_us: float = 31.0
    dense_us: float = 10.0
    step_us: float = 1000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            positive(getattr(self, field.name), f"Efficiency.{field.name}", "latency.range")
        if max(self.memory, self.compute) > 1:
            raise JanusError("latency.range", f"memory and compute are shares of a peak, at most 1; got {self}")


@dataclass(frozen=True)
class Breakdown:
    """One step in milliseconds, summed over layers; `tpot` is their sum less what runs at the same time.

    Args:
        attention: attention of all layers, and the shared experts, which run on the attention side.
        moe: routed experts of all MoE layers.
        comm: dispatch and combine of all MoE layers.
        other: dense layers, output head, sampling, host.
        overlap: shared experts' time hidden behind the exchange and the routed experts.

    Example:
        >>> Breakdown(attention=4, moe=5, comm=2, other=1, overlap=1).tpot
        11
    """

    attention: float
    moe: float
    comm: float
    other: float
    overlap: float

    @property
    def tpot(self) -> float:
        """Milliseconds per step, and so per output token of every request in the batch."""
        return self.attention + self.moe + self.comm + self.other - self.overlap


class LatencyModel:
    """Times of the parts of a step from architecture numbers and peaks.

    Per operation, time = max(bytes / (bandwidth * memory), FLOPs / (rate * compute)), operations of one instance
    one after the other, instances of a pool side by side; the busiest one counts. See docs/scale.md.

    Args:
        model: the model.
        cluster: the GPUs.
        efficiency: see `Efficiency`.
        cost: of the exchange; default `ExchangeCost` of the cluster.

    Raises:
        JanusError: ``latency.kind``.
    """

    def __init__(self, model: ModelSpec, cluster: Cluster, efficiency: Efficiency, cost: ExchangeCost) -> None:
        for value, kind in ((model, ModelSpec), (cluster, Cluster), (efficiency, Efficiency), (cost, ExchangeCost)):
            if not isinstance(value, kind):
                raise JanusError("latency.kind", f"a LatencyModel is made of a {kind.__name__} here, got {value!r}")
        self.model, self.cluster, self.efficiency, self.cost = model, cluster, efficiency, cost
        self._side = lru_cache(maxsize=65536)(self.attention_side_us)

    @classmethod
    def roofline(
        cls,
        model: ModelSpec,
        cluster: Cluster,
        *,
        expert_cluster: Cluster | None = None,
        efficiency: Efficiency | None = None,
        cost: ExchangeCost | None = None,
    ) -> LatencyModel:
        """A model from datasheet numbers alone."""
        if not isinstance(cluster, Cluster):
            raise JanusError("latency.kind", f"cluster must be a Cluster, e.g. Cluster('h100-sxm'); got {cluster!r}")
        return cls(model, cluster, efficiency or Efficiency(), cost or ExchangeCost.of(cluster))

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
        m = self.model
        attention, shared, other = self._side(b, s_ctx)
        moe = self.moe_layer_us(active, B)
        hidden = min(shared, moe + comm_us)
        return Breakdown(
            attention=(m.layers * attention + m.moe_layers * shared) / 1e3,
            moe=m.moe_layers * moe / 1e3,
            comm=m.moe_layers * comm_us / 1e3,
            other=other / 1e3,
            overlap=m.moe_layers * hidden / 1e3,
        )

    @property
    def expert_cluster(self) -> Cluster:
        """The GPUs of the expert pool."""
        return self.cluster

    def op_us(self, bytes_: float, flops: float, dtype: str) -> float:
        """One operation: the larger of reading `bytes_` and computing `flops`, microseconds."""
        gpu, eff = self.cluster.gpu, self.efficiency
        return 1e6 * max(bytes_ / (gpu.memory_bytes_per_s * eff.memory), flops / (gpu.flops(dtype) * eff.compute))

    def weights_us(self, params: float, tokens: float, dtype: str) -> float:
        """A matrix product of `tokens` rows with `params` weights of `dtype`, microseconds."""
        return self.op_us(params * dtype_bytes(dtype), 2 * params * tokens, dtype)

    def attention_layer_us(self, b: float, s_ctx: float) -> float:
        """Mean attention layer of an instance with `b` requests of `s_ctx` cached tokens, microseconds.

        Windowed layers read less; the mean over all layers is returned.
        """
        m = self.model
        projections = self.weights_us(m.attention_params, b, m.dense_dtype)
        seen = m.attention.attended(s_ctx, m.layers) / m.layers
        kv = b * seen * (m.kv_bytes_per_token() - m.index_bytes_per_token)
        core = self.op_us(kv, b * seen * m.attention.flops_per_cached_token, "bf16")
        index_flops = 2 * m.attention.index_heads * m.attention.index_dim  # the indexer scores every cached token
        indexer = self.op_us(b * s_ctx * m.index_bytes_per_token, b * s_ctx * index_flops, "fp8")
        return self.efficiency.attention_us + projections + core + indexer

    def moe_layer_us(self, active: Activated, B: float) -> float:
        """Routed experts of one layer on the busiest instance, gate included, microseconds."""
        m = self.model
        reads = active.a_max * m.expert_bytes
        experts = self.op_us(reads, 2 * m.expert_params * active.tokens, m.expert_dtype)
        gate = self.weights_us(m.router_params, B, "bf16")
        return self.efficiency.moe_us + gate + experts

    @property
    def expert_cost(self) -> RooflineCost:
        """What `janus.sched.balance(..., method="cost", cost=)` needs: reading one expert, and one token in it."""
        m = self.model
        read = self.op_us(m.expert_bytes, 0, m.expert_dtype)
        return RooflineCost(read_us=read, token_us=self.op_us(0, 2 * m.expert_params, m.expert_dtype))

    def attention_side_us(self, b: int, s_ctx: float) -> tuple[float, float, float]:
        """Microseconds of (one attention layer, one layer's shared experts, everything outside per step)."""
        m, eff = self.model, self.efficiency
        shared = eff.dense_us + self.weights_us(m.shared_params, b, m.dense_dtype) if m.shared_width else 0.0
        dense = m.dense_layers * (eff.dense_us + self.weights_us(m.dense_params, b, m.dense_dtype))
        head = self.weights_us(m.vocab * m.hidden, b, "bf16")
        return self.attention_layer_us(b, s_ctx), shared, eff.step_us + dense + head
