"""What one step of a colocated engine asks of one GPU, counted at datasheet peaks: bytes, FLOPs, links, kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from janus.scale.engine.config import EngineConfig
from janus.scale.model import ModelSpec, dtype_bytes
from janus.types import RoutingTrace, sample
from janus.types.drawing import inclusion, resample_popularity

FloatArray = npt.NDArray[np.float64]
SHUFFLES = 32  # of the experts over the ranks; the mean of the busiest moves by 1 % between seeds


@dataclass(frozen=True)
class Work:
    """Of one GPU in one step; times are at datasheet peaks, before any efficiency.

    Args:
        attention_read: weights outside the routed experts, and the cache, ms.
        attention_compute: their FLOPs, ms.
        moe_read: routed experts, ms.
        moe_compute: their FLOPs on the fullest rank, ms.
        link: all-reduces and gathers, ms.
        layers: layers launched.
        messages: collectives.
    """

    attention_read: float = 0.0
    attention_compute: float = 0.0
    moe_read: float = 0.0
    moe_compute: float = 0.0
    link: float = 0.0
    layers: float = 0.0
    messages: float = 0.0

    def times(self, factor: float) -> Work:
        """Every part `factor` times."""
        return Work(*(factor * getattr(self, field.name) for field in fields(self)))


class Touched(NamedTuple):
    """What `tokens` tokens ask of one layer's experts, of the ranks they are spread over."""

    distinct: float
    """Distinct experts on the rank that has the most."""
    tokens: float
    """Routed tokens on the rank that has the most."""


@lru_cache(maxsize=64)
def borrowed_popularity(experts: int, top_k: int) -> tuple[float, ...]:
    """Probabilities that a token chooses each expert, most popular first: gpt-oss-20b's by quantile, summing to `top_k`.

    The mean over layers of the sorted counts of the recording that comes with Janus.

    Example:
        >>> p = borrowed_popularity(64, 8)
        >>> len(p), round(sum(p), 6), p[0] > 2 * p[32]
        (64, 8.0, True)
    """
    trace = RoutingTrace.load(sample("gptoss20b-routing"))
    counts_LE = np.stack(
        [np.bincount(layer_TK.ravel(), minlength=trace.num_experts) for layer_TK in trace.ids.swapaxes(0, 1)]
    )
    ranked_E = np.sort(counts_LE, axis=1)[:, ::-1].mean(axis=0)
    return tuple(inclusion(resample_popularity(ranked_E, experts), top_k).tolist())


@lru_cache(maxsize=4096)
def touched(popularity: tuple[float, ...], tokens: float, ep: int) -> Touched:
    """Experts a batch of `tokens` independent tokens activates on the busiest of `ep` ranks.

    An expert chosen with probability p is activated with 1 - (1 - p)^tokens. Over several ranks: the mean over shuffles
    of the experts of the rank with the most.

    Example:
        >>> touched((0.5, 0.5), tokens=2, ep=1)
        Touched(distinct=1.5, tokens=2.0)
    """
    p_E = np.array(popularity)
    active_E = 1 - (1 - p_E) ** tokens
    if ep == 1:
        return Touched(float(active_E.sum()), float(p_E.sum() * tokens))
    padded = ep * math.ceil(len(p_E) / ep)  # a rank may hold one expert fewer
    both_2E = np.zeros((2, padded))
    both_2E[:, : len(p_E)] = active_E, p_E * tokens
    rng = np.random.default_rng(0)
    most = [both_2E[:, rng.permutation(padded)].reshape(2, ep, -1).sum(axis=2).max(axis=1) for _ in range(SHUFFLES)]
    distinct, routed = np.mean(most, axis=0)
    return Touched(float(distinct), float(routed))


def decode_work(config: EngineConfig, running: float, active: Touched) -> Work:
    """One decode step of `running` requests: every stage once, each with its share of the requests.

    Args:
        config: the engine.
        running: requests that run at once.
        active: of one stage's tokens.
    """
    m, gpu = config.model, config.cluster.gpu
    rows = running / config.pp / config.dp  # of one attention rank
    seen = m.attention.attended(config.context, m.layers)
    index = m.index_bytes_per_token
    cut = m.kv_bytes_per_token() / config.cache_bytes_per_token
    cache = rows * ((m.kv_bytes_per_token() - index) / cut * seen + index * config.context * m.layers)
    flops_s = _dense_s(config, rows) + rows * seen * m.attention.flops_per_cached_token / config.tp / gpu.bf16_flops
    flops_s += rows * 2 * m.vocab * m.hidden / config.tp / gpu.bf16_flops
    head = m.vocab * m.hidden * dtype_bytes("bf16")
    weights = _dense_params(m) * dtype_bytes(m.dense_dtype) + head
    return Work(
        attention_read=1e3 * (weights / config.tp + cache) / gpu.memory_bytes_per_s,
        attention_compute=1e3 * flops_s,
        moe_read=1e3 * m.moe_layers * active.distinct / config.moe_tp * m.expert_bytes / gpu.memory_bytes_per_s,
        moe_compute=1e3 * _expert_s(config, active.tokens),
        link=1e3 * _link_s(config, running / config.pp),
        layers=m.layers,
        messages=_messages(config),
    )


def prefill_work(config: EngineConfig, before: Touched, after: Touched) -> Work:
    """What one prompt adds to the decode step it rides in: experts nobody else asked for, FLOPs, links, launches.

    Weights that the step reads anyway are not read again. A step with a prompt leaves the recorded graph, so its layers
    are launched one by one: their fixed time counts once more.

    Args:
        config: the engine.
        before: experts of the step without the prompt.
        after: with it.
    """
    m, gpu = config.model, config.cluster.gpu
    scores = m.attention.attended(config.isl / 2, m.layers) * _prompt_flops(m) / config.stage_gpus / gpu.bf16_flops
    return Work(
        attention_compute=1e3 * (_dense_s(config, config.isl / config.dp) + config.isl * scores),
        moe_read=1e3
        * m.moe_layers
        * (after.distinct - before.distinct)
        / config.moe_tp
        * m.expert_bytes
        / gpu.memory_bytes_per_s,
        moe_compute=1e3 * _expert_s(config, after.tokens - before.tokens),
        link=1e3 * _link_s(config, config.isl),
        layers=m.layers,
    )


def _dense_params(m: ModelSpec) -> int:
    return m.layers * m.attention_params + m.moe_layers * m.shared_params + m.dense_layers * m.dense_params


def _dense_s(config: EngineConfig, rows: float) -> float:
    """Seconds of `rows` rows through everything but experts and head, on one attention rank."""
    m = config.model
    return rows * 2 * _dense_params(m) / config.tp / config.cluster.gpu.flops(m.dense_dtype)


def _expert_s(config: EngineConfig, routed: float) -> float:
    """Seconds of `routed` routed tokens on one expert rank."""
    m = config.model
    return m.moe_layers * routed * 2 * m.expert_params / config.moe_tp / config.cluster.gpu.flops(m.expert_dtype)


def _prompt_flops(m: ModelSpec) -> int:
    """FLOPs of scores and values per pair of prompt tokens; MLA is expanded there, not absorbed."""
    a = m.attention
    return 2 * a.heads * (a.head_dim + a.rope_dim + a.v_head_dim)


def _messages(config: EngineConfig) -> float:
    """Collectives of one step: after attention over tp, after the experts over the stage, between stages."""
    m = config.model
    norms = m.attention.qk_norm == "full"  # the norm over all heads needs the other ranks' squares
    return m.layers * ((1 + norms) * (config.tp > 1) + (config.stage_gpus > 1)) + config.pp - 1


def _link_s(config: EngineConfig, tokens: float) -> float:
    """Seconds on the links of one GPU: a ring moves 2 (n - 1) / n of the rows; between nodes, a node's share of a card."""
    m, gpu = config.model, config.cluster.gpu
    row = 2 * m.hidden
    total = 0.0
    for width, rows in ((config.tp, tokens / config.dp), (config.stage_gpus, tokens)):
        inside = min(width, config.cluster.node_size)
        nodes = math.ceil(width / inside)
        total += 2 * (inside - 1) / inside * rows * row / gpu.link_bytes_per_s
        total += 2 * (nodes - 1) / nodes * rows * row / inside / config.cluster.inter_node_bytes_per_s
    return m.layers * total
