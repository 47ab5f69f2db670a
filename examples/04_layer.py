"""Put JanusMoELayer in place of a model's experts: same logits, replicas chosen for every batch.

The model is a small Qwen3-MoE with random weights; any Hugging Face model with the common experts layout does.
"""

import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

import janus

torch.manual_seed(0)
config = Qwen3MoeConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=8,
    num_experts_per_tok=2,
)
model = AutoModelForCausalLM.from_config(config).eval()
ids = torch.randint(0, 256, (2, 12))

with torch.no_grad():
    before = model(ids).logits
    # instance 0 holds experts 0-5, instance 1 holds 4-7 and copies of 0 and 1: four experts have two replicas
    placement = janus.Placement([[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 0, 1]], num_experts=8)
    janus.convert(model, placement)
    after = model(ids).logits

layers = [module for module in model.modules() if isinstance(module, janus.JanusMoELayer)]
print(f"{len(layers)} MoE layers replaced")
print(f"largest difference of the logits: {(after - before).abs().max():.1e}")
assert torch.allclose(before, after, atol=1e-4)  # float32; experts are summed in another order
