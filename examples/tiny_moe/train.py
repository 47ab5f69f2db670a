"""Train the tiny Qwen3-MoE of this folder from nothing, on two CPU cores, and save it as a Hugging Face checkpoint."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import corpus
import numpy as np
import scoring
import torch
import torch.nn.functional as F
import typer
from rich.progress import Progress
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

HERE = Path(__file__).parent
TOKENS_PER_STEP = 2048
BALANCE_WEIGHT = 0.01
PROBE_BYTES = 16_384


def config() -> Qwen3MoeConfig:
    """64 experts, 4 per token, 4 layers, hidden size 128: 3.4 million parameters, 0.5 million active per token.

    The vocabulary is the 256 byte values. The special ids are the ASCII control bytes NUL (pad), STX (begin) and
    ETX (end), which occur in neither text; the model never learns to emit ETX, so completions run to their full length.
    """
    return Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=512,  # of dense layers, which this model has none of
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        num_experts=64,
        num_experts_per_tok=4,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        initializer_range=0.06,
        router_aux_loss_coef=BALANCE_WEIGHT,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )


def batches(parts: list[np.ndarray], steps: int, seed: int) -> Iterator[torch.Tensor]:
    """One int64 [rows, length + 1] batch per step, equal rows of every part, from random places.

    Three quarters of the steps see 256 positions, the rest 512: longer attention is learned late, when it is cheap.
    """
    rng = np.random.default_rng(seed)
    for step in range(steps):
        length = 256 if step < 0.75 * steps else 512
        rows = TOKENS_PER_STEP // length // len(parts)
        cut = [part[s : s + length + 1] for part in parts for s in rng.integers(0, len(part) - length, rows)]
        yield torch.from_numpy(np.stack(cut).astype(np.int64))


def losses(model: PreTrainedModel, ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy in nats per byte, and the load-balancing loss averaged over layers (1.0 when even)."""
    out = model.model(input_ids=ids_BT[:, :-1], use_cache=False, output_router_logits=True)
    logits = model.lm_head(out.last_hidden_state)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten())
    balance = torch.stack([balance_loss(layer, model.config.num_experts_per_tok) for layer in out.router_logits])
    return cross_entropy, balance.mean()


def balance_loss(logits_TE: torch.Tensor, top_k: int) -> torch.Tensor:
    """E * sum over experts of (share of the assignments) * (mean router probability): 1.0 when both are even.

    Taken per layer; pooled over layers, as transformers does, one layer's hot expert could hide behind another's cold.
    """
    num_experts = logits_TE.shape[1]
    probs = logits_TE.softmax(dim=1)
    chosen = probs.topk(top_k, dim=1).indices.flatten()
    share = torch.bincount(chosen, minlength=num_experts) / chosen.numel()
    return num_experts * (share * probs.mean(dim=0)).sum()


def optimizer(model: PreTrainedModel, lr: float) -> torch.optim.AdamW:
    """AdamW that decays matrices but not norms."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine down to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fit(model: PreTrainedModel, texts: dict[str, corpus.Corpus], steps: int, lr: float, seed: int) -> None:
    """Train `model` in place, printing the held-out bits per byte as it goes."""
    opt = optimizer(model, lr)
    lr_schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: schedule(step, steps))
    with Progress() as progress:
        task = progress.add_task("training", total=steps)
        for step, ids_BT in enumerate(batches([t.train for t in texts.values()], steps, seed), start=1):
            cross_entropy, balance = losses(model, ids_BT)
            (cross_entropy + BALANCE_WEIGHT * balance).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
            lr_schedule.step()
            progress.advance(task)
            if step % 500 == 0 or step == steps:
                bits = cross_entropy.item() / math.log(2)
                progress.console.print(
                    f"step {step:5d}  train {bits:.3f}  balance {balance.item():.3f}", probe(model, texts)
                )


def probe(model: PreTrainedModel, texts: dict[str, corpus.Corpus]) -> str:
    """Held-out bits per byte on the first PROBE_BYTES of each kind, as one line."""
    bits = {kind: scoring.model_bits(model, t.heldout[:PROBE_BYTES]).mean() for kind, t in texts.items()}
    return "  ".join(f"held-out {kind} {value:.3f}" for kind, value in bits.items())


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write `model` as a Hugging Face folder whose weights are stored in bfloat16, for half the size.

    The configuration says float32, so that loading it plainly computes in float32, as the training did.
    """
    model.to(torch.bfloat16).save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)


def main(
    text: Annotated[Path, typer.Option(help="The file of prose (tinyshakespeare.txt).")] = corpus.DEFAULT_TEXT,
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")] = HERE / "checkpoint",
    steps: Annotated[int, typer.Option(help="Steps of 2048 bytes.")] = 3000,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2.5e-3,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the data.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train the tiny model and save it."""
    texts = corpus.load_or_exit(text)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    # grouped_mm is transformers' fastest CPU path at this size: 15k bytes/s in two threads, eager 11k.
    model = AutoModelForCausalLM.from_config(config(), dtype=torch.float32, experts_implementation="grouped_mm")
    wall, cpu = time.perf_counter(), time.process_time()
    fit(model, texts, steps, lr, seed)
    save(model, out)
    print(f"{(time.perf_counter() - wall) / 60:.1f} min wall, {(time.process_time() - cpu) / 60:.1f} min CPU -> {out}")


if __name__ == "__main__":
    typer.run(main)
