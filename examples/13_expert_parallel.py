"""A model with its experts spread over four processes: each has prompts of its own and one instance of the experts.

The processes play two nodes of two. Tokens travel once to every process that they need, by `janus.comm.all_to_all`.
"""

import os
import sys

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from janus import JanusMoELayer, Placement, Topology, convert
from janus.comm import rendezvous
from janus.runner.launch import launch

NODES = Topology(attention=((0, 1),), experts=((2, 3),))  # only which ranks share a node counts here
PLACEMENT = Placement([[0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 3, 6]], num_experts=8)  # four experts have a replica
CONFIG = MixtralConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
    num_local_experts=8, num_experts_per_tok=2, initializer_range=0.2, pad_token_id=0,
)  # fmt: skip


def build() -> MixtralForCausalLM:
    """The same weights on every rank, as a checkpoint would give them."""
    torch.manual_seed(0)
    return MixtralForCausalLM(CONFIG).eval()


@torch.inference_mode()
def main(rank: int) -> None:
    rendezvous(NODES)
    whole, model = build(), convert(build(), PLACEMENT, group=NODES)
    prompt = torch.arange(1, 4 + 2 * rank)[None]
    torch.testing.assert_close(model(prompt).logits, whole(prompt).logits, rtol=1e-4, atol=1e-4)

    length = {"max_new_tokens": 3 + rank, "do_sample": False, "eos_token_id": None}
    text = model.generate(prompt, synced_gpus=True, **length)  # who is done goes on for the others
    assert torch.equal(text, whole.generate(prompt, **length))

    layers = [layer for layer in model.modules() if isinstance(layer, JanusMoELayer)]
    if rank == 0:
        model(prompt)
    else:
        for layer in layers:  # no prompt: serve the others' tokens
            layer.idle()
    slots, a_max = layers[0].slots.num_slots, layers[0].parallel.last.a_max
    print(
        f"rank {rank}: {slots} slots of {PLACEMENT.slots.size}, {text.shape[1]} tokens, at most {a_max} slots at work"
    )


if __name__ == "__main__":
    if "RANK" in os.environ:
        main(int(os.environ["RANK"]))
    else:
        words = [sys.executable, __file__]
        ended = launch(words, PLACEMENT.num_instances, deadline_s=200, on_line=lambda rank, stream, line: print(line))
        sys.exit(any(e.exit_code for e in ended))
