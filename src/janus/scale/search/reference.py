"""The planner once more in plain loops: no caches, no binary search, no shared helpers; for tests, and to read.

The exchange's time comes from the cost model's own list of hops, not from the closed forms the planner uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from janus.scale.model import DTYPE_BYTES, ModelSpec
from janus.scale.search.solve import Problem


@dataclass(frozen=True)
class Judged:
    """What the reference found for one pair: the batch (0: none), TPOT in ms, and the first broken constraint."""

    batch: int
    tpot_ms: float
    rejected: str


def step_ms(problem: Problem, n_a: int, n_e: int, B: int, percentile: float = 50.0) -> float:
    """Milliseconds of one decode step by the roofline at a percentile, prefill share left out, layer by layer."""
    m, gpu, eff = problem.latency.model, problem.latency.cluster.gpu, problem.latency.efficiency
    bandwidth = gpu.memory_bytes_per_s * eff.memory
    bf16, fp8 = gpu.bf16_flops * eff.compute, gpu.fp8_flops * eff.compute
    dense_rate = fp8 if m.dense_dtype == "fp8" else bf16
    expert_gpu = problem.latency.expert_cluster.gpu
    expert_bandwidth = expert_gpu.memory_bytes_per_s * eff.memory
    expert_bf16 = expert_gpu.bf16_flops * eff.compute
    expert_rate = expert_gpu.fp8_flops * eff.compute if m.expert_dtype == "fp8" else expert_bf16
    b = math.ceil(B / n_a)
    context = problem.context * (1 + _above(percentile, n_a) * problem.context_cv / math.sqrt(b))
    a_max, tokens = interpolated(problem, n_e, B)
    if percentile > 50:
        spread = problem.table.step_spread(n_e, B, problem.slots, layers=m.moe_layers)
        a_max = min(problem.slots, a_max + _above(percentile, 1) * spread)
    expert = (3 * m.hidden * m.expert_width + m.expert_bias) * DTYPE_BYTES[m.expert_dtype]
    gate = m.experts * (m.hidden + m.router_bias)
    exchange = problem.latency.cost.listed_s(n_a, n_e, B, 2 * m.hidden)  # the same in every layer
    total = eff.step_us * 1e-6
    total += max(m.vocab * m.hidden * 2 / bandwidth, 2 * m.vocab * m.hidden * b / bf16)
    total += eff.sampling_passes * 4 * b * m.vocab / bandwidth
    for layer in range(m.layers):
        total += eff.attention_us * 1e-6 + _product(m.attention_params, b, m.dense_dtype, bandwidth, dense_rate)
        total += _core(m, context, b, layer, bandwidth, bf16)
        if m.attention.index_heads:  # keys of 1 byte per value and a float32 scale per 128, for every cached token
            keys = b * context * m.attention.index_dim
            total += max(keys * (1 + 4 / 128) / bandwidth, 2 * keys * m.attention.index_heads / fp8)
    for _ in range(m.layers - m.moe_layers):
        total += eff.dense_us * 1e-6 + _product(3 * m.hidden * m.dense_width, b, m.dense_dtype, bandwidth, dense_rate)
    for _ in range(m.moe_layers):
        moe = eff.moe_us * 1e-6 + _product(gate, B, "bf16", expert_bandwidth, expert_bf16)
        moe += max(a_max * expert / expert_bandwidth, 2 * m.expert_params * tokens / expert_rate)
        away = moe + exchange
        shared = 0.0
        if m.shared_width:
            shared = eff.dense_us * 1e-6
            shared += _product(3 * m.hidden * m.shared_width, b, m.dense_dtype, bandwidth, dense_rate)
        total += max(away, shared)  # they run at the same time
    return total * 1e3


def interpolated(problem: Problem, n_e: int, B: int) -> tuple[float, float]:
    """(a_max, tokens) by the rules of `ActivationTable.at`."""
    rows = {g: row for (g, slots), row in problem.table.rows.items() if slots == problem.slots}
    sizes = problem.table.batch_sizes

    def along(g: int, values: tuple[float, ...], beyond: float) -> float:
        if sizes[-1] < B:
            return beyond
        for i, size in enumerate(sizes):
            if size >= B:
                if i == 0:
                    return values[0]
                share = (math.log(B) - math.log(sizes[i - 1])) / (math.log(size) - math.log(sizes[i - 1]))
                return values[i - 1] * (1 - share) + values[i] * share
        raise AssertionError

    def point(g: int) -> tuple[float, float]:
        row = rows[g]
        tokens = along(g, row.tokens, row.tokens[-1] * B / sizes[-1])
        return along(g, row.mean, float(problem.slots)), tokens

    if n_e in rows:
        return point(n_e)
    low, high = max(g for g in rows if g < n_e), min(g for g in rows if g > n_e)
    share = (1 / n_e - 1 / low) / (1 / high - 1 / low)
    (a, s), (b, t) = point(low), point(high)
    return a * (1 - share) + b * share, s * (1 - share) + t * share


def judge(p: Problem, n_a: int, n_e: int) -> Judged:
    """One pair of pools against every constraint, the fixed point found by counting up from B = 1."""
    latency, m, cluster = p.latency, p.latency.model, p.latency.cluster
    if n_e * p.slots < m.experts:
        return Judged(0, math.nan, "expert_slots")
    free = cluster.gpu.memory_bytes * cluster.memory_use - m.attention_side_bytes
    each = sum(_cached(m, p.context, layer) for layer in range(m.layers)) * m.kv_bytes_per_token()
    each += 4 * m.vocab + 16 * m.hidden
    room = n_a * max(0, math.floor(free / each))
    if room < (p.batch or 1):
        return Judged(0, math.nan, "attention_memory")
    share = p.prefill.share(p.latency, n_a, n_e) if p.prefill else 0.0
    if share >= 1:
        return Judged(0, math.nan, "prefill")
    limits = [(latency.expert_cluster.gpus, n_e), (cluster.gpus, n_a)]
    if cluster == latency.expert_cluster:
        limits = [(cluster.gpus, n_a + n_e)]
    last = "cluster_gpus" if any(have is not None and wanted > have for have, wanted in limits) else ""
    if p.batch is not None:
        tail = step_ms(p, n_a, n_e, p.batch, p.percentile)
        return Judged(p.batch, step_ms(p, n_a, n_e, p.batch), last if tail <= p.slo_ms else "slo")
    assert p.demand is not None
    for B in range(1, min(room, p.max_batch) + 1):
        tpot = step_ms(p, n_a, n_e, B) / (1 - share)
        if tpot > p.slo_ms:  # and so its percentile, and both at any larger batch
            return Judged(0, tpot, "slo")
        if p.demand * tpot / 1e3 <= B:
            tail = step_ms(p, n_a, n_e, B, p.percentile) / (1 - share)
            return Judged(B, tpot, last if tail <= p.slo_ms else "slo")
    slow = step_ms(p, n_a, n_e, min(room, p.max_batch), p.percentile) / (1 - share) > p.slo_ms
    return Judged(0, math.nan, "slo" if slow else "attention_memory" if room <= p.max_batch else "max_batch")


def turns(p: Problem, n_a: int, n_e: int, B: int) -> bool:
    """Does Little's law turn at B: f(B) >= 0, and f(B - 1) < 0 unless B is 1? Times that fall a little turn it often."""
    share = p.prefill.share(p.latency, n_a, n_e) if p.prefill else 0.0

    def surplus(batch: int) -> float:
        assert p.demand is not None
        return batch - p.demand * step_ms(p, n_a, n_e, batch) / (1 - share) / 1e3

    return surplus(B) >= -1e-9 and (B == 1 or surplus(B - 1) < 1e-9)


def _above(percentile: float, instances: int) -> float:
    """z with Phi(z)^instances = percentile, at least 0, by halving an interval."""
    low, high = 0.0, 10.0
    for _ in range(100):
        z = (low + high) / 2
        low, high = (z, high) if (0.5 + 0.5 * math.erf(z / math.sqrt(2))) ** instances < percentile / 100 else (low, z)
    return low


def _product(params: int, rows: int, dtype: str, bandwidth: float, rate: float) -> float:
    """Seconds of `rows` times a matrix of `params` weights."""
    return max(params * DTYPE_BYTES[dtype] / bandwidth, 2 * params * rows / rate)


def _cached(m: ModelSpec, context: float, layer: int) -> float:
    """Tokens that layer `layer` keeps; which layers are windowed does not matter for a sum."""
    return min(context, m.attention.window) if layer < m.attention.window_layers else context


def _core(m: ModelSpec, context: float, b: int, layer: int, bandwidth: float, rate: float) -> float:
    """Seconds of scores and values of one layer."""
    seen = min(context, m.attention.index_topk) if m.attention.index_heads else context
    seen = _cached(m, seen, layer)
    heads, a = m.attention.heads, m.attention
    reads = b * seen * a.kv_elements * DTYPE_BYTES[m.kv_dtype]
    width = (a.kv_rank + a.rope_dim) + a.kv_rank if a.kind == "mla" else 2 * a.head_dim
    return max(reads / bandwidth, 2 * heads * width * b * seen / rate)
