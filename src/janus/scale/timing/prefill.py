"""What prompts cost when the decode pools also process them."""

from __future__ import annotations

from dataclasses import dataclass

from janus.scale.timing.latency import LatencyModel


@dataclass(frozen=True)
class Prefill:
    """Prompts arriving beside the decode load.

    Args:
        tokens_per_s: prompt tokens per second over all requests.
        length: mean prompt length, tokens.
    """

    tokens_per_s: float
    length: float

    def share(self, latency: LatencyModel, n_a: int, n_e: int) -> float:
        """Share of the time the pools spend on prompts; a decode step stretches by 1 / (1 - share).

        Prompts are compute-bound: FLOPs over rate. The pools work one after the other on a chunk, so their times add.
        A causal prompt attends to half its length on average; MLA with its latent expanded, as prefill kernels run it.
        """
        m, gpu = latency.model, latency.cluster.gpu
        side = m.layers * m.attention_params + m.dense_layers * m.dense_params + m.moe_layers * m.shared_params
        widths = m.attention.head_dim + m.attention.rope_dim + m.attention.v_head_dim  # scores, then values
        scores = m.attention.attended(self.length / 2, m.layers) * 2 * m.attention.heads * widths
        experts = m.moe_layers * m.top_k * m.expert_params
        rate = latency.efficiency.compute
        attention_s = (2 * side / gpu.flops(m.dense_dtype) + scores / gpu.bf16_flops) / (rate * n_a)
        expert_s = 2 * experts / latency.expert_cluster.gpu.flops(m.expert_dtype) / (rate * n_e)
        return self.tokens_per_s * (attention_s + expert_s)
