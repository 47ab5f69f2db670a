"""Record which experts the checkpoint chooses on held-out text, as the routing trace `routing.npz`."""

from pathlib import Path
from typing import Annotated

import corpus
import numpy as np
import routing
import torch
import typer
from transformers import AutoModelForCausalLM, PreTrainedModel

from janus.types import RoutingTrace

HERE = Path(__file__).parent
CONTEXT = 128
LENGTH = 128


def decode_like(model: PreTrainedModel, data: np.ndarray, tokens: int) -> np.ndarray:
    """Choices int16 [tokens, L, K] in stretches of LENGTH bytes, each with CONTEXT bytes before it.

    One forward over a stretch routes as decoding it byte by byte would (attention is causal, routing per token), and
    leaving out the context keeps the first bytes of a text, which are routed from almost nothing, out of the trace.
    """
    pieces = routing.stretches(data, count=tokens // LENGTH, length=CONTEXT + LENGTH)
    chosen = routing.chosen_experts(model, pieces)[:, CONTEXT:]
    return chosen.reshape(-1, *chosen.shape[2:])


def main(
    text: Annotated[Path, typer.Option(help="The file of prose (tinyshakespeare.txt).")] = corpus.DEFAULT_TEXT,
    checkpoint: Annotated[Path, typer.Option(help="The model to record.")] = HERE / "checkpoint",
    out: Annotated[Path, typer.Option(help="The trace to write.")] = HERE / "routing.npz",
    tokens: Annotated[int, typer.Option(help="Tokens in all: the first half is prose, the second code.")] = 4096,
) -> None:
    """Record the trace: one row per token, all prose rows before all code rows."""
    texts = corpus.load_or_exit(text)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    kinds = [decode_like(model, texts[kind].heldout, tokens // len(corpus.KINDS)) for kind in corpus.KINDS]
    source = (
        f"recorded: examples/tiny_moe, held-out text, {len(kinds[0])} tokens of prose, then {len(kinds[1])} of code"
    )
    trace = RoutingTrace(np.concatenate(kinds), num_experts=model.config.num_experts, source=source)
    trace.save(out)
    print(f"{trace.num_tokens} tokens, {trace.num_layers} layers, top-{trace.top_k} of {trace.num_experts} -> {out}")


if __name__ == "__main__":
    typer.run(main)
