"""Serve a model on two attention and two expert processes, and check its words against the undivided model.

The model is the small trained one in `tiny_moe`; it reads and writes bytes.
"""

import os
import sys
from pathlib import Path

from janus import DisaggregatedRunner, Topology
from janus.runner.launch import launch

FOLDER = Path(__file__).parent / "tiny_moe" / "checkpoint"
TOPOLOGY = Topology.parse("2A2E", gpus_per_node=2)
PROMPTS = ["To be, or not ", "def read(path):\n", "My lord, I "]
NEW = 24


def rank() -> None:
    """The same lines on every rank."""
    with DisaggregatedRunner(FOLDER, topology=TOPOLOGY) as runner:
        if runner.role == "expert":
            runner.serve()
        else:
            completions = runner.generate([list(p.encode()) for p in PROMPTS], max_new_tokens=NEW)
            if runner.rank == 0:
                compare(completions)


def compare(completions: list[list[int]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(FOLDER)
    for prompt, ids in zip(PROMPTS, completions, strict=True):
        given = torch.tensor([list(prompt.encode())])
        expected = whole.generate(given, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(given))
        same = expected[0, given.shape[1] :].tolist() == ids
        print(f"{prompt!r} + {bytes(ids).decode(errors='replace')!r}  same as undivided: {same}")
        assert same


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank()
    else:
        ended = launch(
            [sys.executable, __file__],
            TOPOLOGY.world_size,
            deadline_s=110,
            on_line=lambda r, stream, line: print(line) if stream == "stdout" else None,
        )
        for e in ended:
            if e.exit_code:
                print(f"rank {e.rank} ended with {e.exit_code}:", *e.tail, sep="\n  ", file=sys.stderr)
        sys.exit(any(e.exit_code for e in ended))
