"""Experts modules of the kinds of layout there are, with random weights and biases that are not zero."""

import warnings

import torch
import transformers
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

LAYOUTS = (
    "qwen3_moe",
    "gpt_oss",
    "aria",
    "nemotron_h",
)  # plain; biased, interleaved and transposed; transposed; no gate


def _config(cls, H, F, **fields):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = cls(hidden_size=H, intermediate_size=F, **fields)
    config._experts_implementation = "eager"
    return config


def made(name, H, F, E):
    """A module of that layout, in float32; a new one at each call."""
    build = {
        "qwen3_moe": lambda: Qwen3MoeExperts(
            _config(transformers.Qwen3MoeConfig, H, F, num_experts=E, moe_intermediate_size=F)
        ),
        "gpt_oss": lambda: GptOssExperts(_config(transformers.GptOssConfig, H, F, num_local_experts=E)),
        "aria": lambda: AriaExperts(
            _config(transformers.AriaTextConfig, H, F, moe_num_experts=E, num_attention_heads=1)
        ),
        "nemotron_h": lambda: NemotronHExperts(
            _config(
                transformers.NemotronHConfig, H, F, n_routed_experts=E, moe_intermediate_size=F, mlp_hidden_act="relu2"
            )
        ),
    }[name]
    torch.manual_seed(0)
    module = build()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)  # biases too: a bias of zero would hide that it is left out
    return module.eval()
