"""Prove: what 8-bit experts lose, against float64 with the weights as they were, beside one scale for a whole matrix.

    python benchmarks/prove/experts_quantized.py [--sample]

Experts have the shape of Qwen3-30B-A3B (H 2048, F 768), few of them; weights are normal, or of Student's t distribution
with 3 degrees of freedom, whose largest of a matrix is some hundred times its middle. Outputs are computed in float32,
so that what differs is the format. "norm" is the error's norm over the output's, "largest" the largest error over the
largest output.

Bars. Let d be the rms error of a weight over the rms weight. An output passes gate, up and down, each of which adds an
independent error of about d: sqrt(3) d, so the bar is 2 d. int8, normal weights: the largest of 128 is 2.75 sigma, a step
2.75 / 127, its rms error that / sqrt(12): d = 0.63 %, bar 1.3 %. fp8: a mantissa of 4 bits in [1, 2) has the rms error
2**-4 / sqrt(3) beside the rms value 1.53: d = 2.4 %, bar 4.8 %, whatever the weights' distribution. int8 with heavy
tails has no such constant: few weights set the steps of many, so it must only stay below fp8. The largest error may be
twice the norm's share: both are near the 4-sigma point of their distributions.
One scale for a matrix must be worse where tails are heavy in int8, else the blocks would be for nothing; in fp8 it may
be as good, since each weight has its own exponent, and is printed for comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from figures import figure, report, say
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from janus.experts.layout import ExpertLayout
from janus.experts.quantized import FORMATS, Format
from janus.experts.slots import ExpertSlots, slice_expert

H, F, TOP_K = 2048, 768, 2
NORM_BARS = {("int8", "normal"): 1.3, ("fp8", "normal"): 4.8, ("int8", "heavy"): 4.8, ("fp8", "heavy"): 4.8}  # percent
TENSOR_OVER_BLOCK = (
    5.0  # int8, heavy tails: what one scale must lose more; by the largest of 1.5 million over that of 128
)


def experts_of(kind: str, count: int) -> Qwen3MoeExperts:
    """A module of random experts whose outputs are of order 1."""
    config = Qwen3MoeConfig(hidden_size=H, moe_intermediate_size=F, num_experts=count)
    config._experts_implementation = "eager"
    made = Qwen3MoeExperts(config)
    torch.manual_seed(11)
    for p in made.parameters():
        draw = torch.randn(p.shape) if kind == "normal" else torch.distributions.StudentT(3.0).sample(p.shape) / 3**0.5
        p.data = draw / p.shape[-1] ** 0.5
    return made.requires_grad_(False)


def per_tensor(weight: torch.Tensor, format: Format) -> torch.Tensor:
    """The baseline: one scale for the whole matrix, what it stands for."""
    scale = weight.abs().max() / format.largest
    steps = weight / scale
    return (steps.round() if format.dtype == torch.int8 else steps.to(format.dtype).float()) * scale


def outputs(run: Callable[[int, torch.Tensor], torch.Tensor], x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Sum of the chosen experts, in float64, token by token."""
    y = torch.zeros(len(x), H, dtype=torch.float64)
    for e in ids.unique().tolist():
        tokens = (ids == e).any(1)
        y[tokens] += run(e, x[tokens]).double() / TOP_K
    return y


def errors(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    """Percent: norm, largest."""
    difference = got.double() - want
    return 100 * float(difference.norm() / want.norm()), 100 * float(difference.abs().max() / want.abs().max())


def measure(kind: str, name: str, experts: Qwen3MoeExperts, tokens: int) -> list[dict[str, Any]]:
    """The figures of one format on one distribution of weights."""
    count, format, layout = experts.num_experts, FORMATS[name], ExpertLayout.of(experts)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(tokens, H, generator=generator)
    ids = torch.rand(tokens, count, generator=generator).argsort(1)[:, :TOP_K]
    parts = {e: slice_expert(experts, e) for e in range(count)}

    def exact(e: int, x_NH: torch.Tensor) -> torch.Tensor:
        return layout.run({n: w.double() for n, w in parts[e].items()}, x_NH.double())

    def one_scale(e: int, x_NH: torch.Tensor) -> torch.Tensor:
        return layout.run({n: per_tensor(w, format) for n, w in parts[e].items()}, x_NH)

    slots = ExpertSlots.from_module(experts, range(count), quantize=name)
    want = outputs(exact, x, ids)
    norm, largest = errors(slots(x, ids, torch.full(ids.shape, 1 / TOP_K)), want)
    base_norm, base_largest = errors(outputs(one_scale, x, ids), want)
    bar, weights = NORM_BARS[name, kind], sum(p.numel() for p in experts.parameters())
    note, kept = f"one scale per matrix: {base_norm:.2f}, {base_largest:.2f}", slots.nbytes / weights
    what = f"{name}, {kind} weights"
    found = [
        figure(f"norm of the error, {what}", round(norm, 3), f"<= {bar}", norm <= bar, "%", note),
        figure(f"largest error, {what}", round(largest, 3), f"<= {2 * bar}", largest <= 2 * bar, "%", note),
    ]
    if (name, kind) == ("int8", "heavy"):
        ratio, least = base_norm / norm, TENSOR_OVER_BLOCK
        found.append(figure(f"one scale / blocks, {what}", round(ratio, 1), f">= {least}", ratio >= least, "x"))
    if kind == "normal":
        exactly = format.bytes_per_weight
        found.append(figure(f"bytes per weight, {name}", kept, f"== {exactly}", kept == exactly, "B"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="2 experts and 8 tokens")
    count, tokens = (2, 8) if parser.parse_args().sample else (8, 64)
    figures = []
    for kind in ("normal", "heavy"):
        say(f"{kind} weights, {count} experts, {tokens} tokens")
        experts = experts_of(kind, count)
        for name in FORMATS:
            figures += measure(kind, name, experts, tokens)
    report(figures)


if __name__ == "__main__":
    main()
