"""Two ways to put Janus under a model of transformers: convert it, or name Janus as its way to run experts.

The model is a small Mixtral with random weights; docs/experts_families.md says which families do.
"""

import torch
from transformers import AutoModelForCausalLM, MixtralConfig

import janus

torch.manual_seed(0)
config = MixtralConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=8,
)
model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
ids = torch.randint(0, 256, (2, 12))

with torch.inference_mode():
    before = model(ids).logits

    # 1. by name: the model stays as it is, Janus computes with its parameters; from_pretrained takes the name too
    janus.experts.register()
    model.set_experts_implementation("janus")
    by_name = model(ids).logits

    # 2. replaced: this can have replicas, and reaches families that transformers' own switch does not
    janus.convert(model)
    converted = model(ids).logits

for way, logits in {"experts_implementation='janus'": by_name, "janus.convert": converted}.items():
    print(f"{way}: largest difference of the logits {(logits - before).abs().max():.1e}")
    assert torch.allclose(logits, before, atol=1e-4)  # float32; sums may be in another order
layers = [module for module in model.modules() if isinstance(module, janus.JanusMoELayer)]
print(f"{len(layers)} layers converted, experts run by {layers[0].compute!r}")
