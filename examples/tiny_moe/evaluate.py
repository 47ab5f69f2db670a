"""Judge the checkpoint on held-out text: bits per byte beside counting models, and the experts of prose and code."""

from pathlib import Path
from typing import Annotated

import corpus
import numpy as np
import routing
import scoring
import torch
import typer
from transformers import AutoModelForCausalLM, PreTrainedModel

HERE = Path(__file__).parent
OPENINGS = {"prose": "KING RICHARD II:\n", "code": "def read_header(self, file):\n"}


def bits_table(model: PreTrainedModel, texts: dict[str, corpus.Corpus]) -> list[tuple[str, np.ndarray]]:
    """Rows of (predictor, mean bits per byte of prose, of code, of both together)."""
    both = [t.train for t in texts.values()]
    predictors = {
        "tiny MoE": lambda t: scoring.model_bits(model, t.heldout),
        "bigram, told the kind": lambda t: scoring.bigram_bits([t.train], t.heldout),
        "bigram": lambda t: scoring.bigram_bits(both, t.heldout),
        "unigram": lambda t: scoring.unigram_bits(both, t.heldout),
        "uniform": lambda t: np.full(len(t.heldout) - 1, 8.0),
    }
    return [(name, _means([bits(t) for t in texts.values()])) for name, bits in predictors.items()]


def _means(kinds: list[np.ndarray]) -> np.ndarray:
    return np.array([*(bits.mean() for bits in kinds), np.concatenate(kinds).mean()])


def usage_table(model: PreTrainedModel, texts: dict[str, corpus.Corpus]) -> list[np.ndarray]:
    """One row per layer: max/mean load on prose, on code, on both; distance between kinds, and within one kind.

    The distance within (odd against even stretches of the same kind) is what chance and subject alone make of it.
    """
    num_experts = model.config.num_experts
    pieces = [routing.stretches(t.heldout, count=64, length=512) for t in texts.values()]
    kinds = [routing.chosen_experts(model, p) for p in pieces]  # [64, 512, L, K] each
    share = [_usage(kind, num_experts) for kind in kinds]
    hottest = [s.max(axis=1) * num_experts for s in (*share, sum(share) / len(share))]
    halves = [(_usage(kind[0::2], num_experts), _usage(kind[1::2], num_experts)) for kind in kinds]
    within = np.mean([routing.total_variation(*pair) for pair in halves], axis=0)
    return list(np.stack([*hottest, routing.total_variation(*share), within], axis=1))


def _usage(chosen_BTLK: np.ndarray, num_experts: int) -> np.ndarray:
    return routing.usage(chosen_BTLK.reshape(-1, *chosen_BTLK.shape[2:]), num_experts)


def sample(model: PreTrainedModel, opening: str, new_tokens: int) -> str:
    """`opening` continued at temperature 0.7."""
    ids = torch.tensor([list(opening.encode())])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=True, temperature=0.7, top_k=0
    )
    return bytes(out[0].tolist()).decode(errors="replace")


def main(
    text: Annotated[Path, typer.Option(help="The file of prose (tinyshakespeare.txt).")] = corpus.DEFAULT_TEXT,
    checkpoint: Annotated[Path, typer.Option(help="The model to judge.")] = HERE / "checkpoint",
    new_tokens: Annotated[int, typer.Option(help="Length of the samples, in bytes.")] = 300,
) -> None:
    """Print the two tables, in Markdown, and one sample of each kind."""
    torch.manual_seed(0)
    texts = corpus.load_or_exit(text)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, experts_implementation="grouped_mm"
    ).eval()
    print("| bits per byte | prose | code | both |\n|---|---|---|---|")
    for name, bits in bits_table(model, texts):
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in bits) + " |")
    print("\n| layer | max/mean load, prose | code | both | distance prose to code | within one kind |")
    print("|---|---|---|---|---|---|")
    for layer, row in enumerate(usage_table(model, texts)):
        print(f"| {layer} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    for kind, opening in OPENINGS.items():
        print(f"\n--- {kind}\n{sample(model, opening, new_tokens)}")


if __name__ == "__main__":
    typer.run(main)
