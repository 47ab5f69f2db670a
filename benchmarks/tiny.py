"""Tiny random models of the five families the whole path is proven on; shared by tests and proofs.

Weights are drawn wide (initializer_range 0.2): with the usual 0.02 a random model's logits lie so close together that
rounding alone would decide tokens, and equality would say little.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

BASE = dict(
    vocab_size=256, hidden_size=64, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    num_experts_per_tok=3, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    tie_word_embeddings=False, initializer_range=0.2, dtype="float32",
)  # fmt: skip
MLA = dict(
    num_key_value_heads=4, head_dim=8, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
    moe_intermediate_size=32, n_routed_experts=16, n_shared_experts=1, n_group=4, topk_group=2, first_k_dense_replace=1,
)  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3MoeConfig", dict(moe_intermediate_size=32, num_experts=16, head_dim=16, mlp_only_layers=[1])),
    "mixtral": ("MixtralConfig", dict(num_local_experts=16, head_dim=16)),
    "olmoe": ("OlmoeConfig", dict(num_experts=16)),
    "deepseek_v2": ("DeepseekV2Config", MLA | dict(topk_method="group_limited_greedy")),
    "deepseek_v3": ("DeepseekV3Config", MLA),
}


def build(family: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A random model of `family` in float32, in eval mode."""
    import torch
    import transformers

    name, extra = FAMILIES[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, name)(**(BASE | extra | overrides))
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save(family: str, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write a random model of `family` as a Hugging Face folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    build(family, seed=seed, **overrides).save_pretrained(folder)
    return folder


def prompts(count: int, *, vocab_size: int = 256, longest: int = 200, seed: int = 0) -> list[list[int]]:
    """`count` random prompts whose lengths run from 1 to `longest`, both included when count >= 2."""
    import numpy as np

    rng = np.random.default_rng(seed)
    lengths = np.unique(np.linspace(1, longest, max(count, 1)).astype(int))
    lengths = rng.permutation(np.resize(lengths, count))
    return [rng.integers(3, vocab_size, size=n).tolist() for n in lengths]
