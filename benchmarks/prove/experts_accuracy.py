"""Prove: every way to compute experts is accurate, deterministic, and as independent as it promises.

    python benchmarks/prove/experts_accuracy.py [--sample]

Against a plain reference in float64 over three families, odd sizes, one expert, and batches of 1 to 67 tokens: the largest
difference over the largest value of the reference. Bit for bit: the same call twice; any placement (promised where all
tokens of an expert go to one replica); a token alone and among others (promised by ways whose engine says so). Progress goes to
stderr; the last line of stdout is one JSON object of figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from experts_cases import skeleton
from figures import figure, progress, report
from shapes import MODELS, Model
from torch import nn

from janus import JanusError, JanusMoELayer, Placement
from janus.experts.backends import COMPUTES
from janus.experts.layout import ExpertLayout

BARS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
SIZES = (1, 3, 16, 67)
SMALL = (  # family by the name of a model, E, K, H, F
    ("qwen3-30b-a3b", 8, 2, 64, 48),
    ("qwen3-30b-a3b", 5, 3, 70, 33),  # nothing divides
    ("qwen3-30b-a3b", 1, 1, 17, 9),
    ("mixtral-8x7b", 4, 2, 257, 129),
    ("gpt-oss-20b", 6, 4, 72, 40),  # transposed, biases, gate and up interleaved and clamped
    ("gpt-oss-20b", 7, 7, 45, 27),
    ("deepseek-v3", 32, 8, 128, 64),
)
LARGE = (("qwen3-30b-a3b", 16, 8, 2048, 768), ("gpt-oss-20b", 8, 4, 2880, 2880), ("mixtral-8x7b", 2, 2, 4096, 14336))


@dataclass
class Found:
    """What was seen of one way: the worst error by dtype, and how often bits differed."""

    worst: dict[torch.dtype, tuple[float, str]] = field(default_factory=dict)
    calls: int = 0
    again: int = 0
    placed: int = 0
    placements: int = 0
    alone: int = 0
    rows: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def made(model: Model, dtype: torch.dtype, seed: int) -> nn.Module:
    """The family's experts with weights that keep values of order 1."""
    module, generator = skeleton(model, model.experts), torch.Generator().manual_seed(seed)
    for name, p in list(module.named_parameters()):
        drawn = torch.randn(p.shape, generator=generator) * (0.5 if name.endswith("bias") else p.shape[1] ** -0.5)
        module.register_parameter(name, nn.Parameter(drawn.to(dtype), requires_grad=False))
    return module


def reference(module: nn.Module, x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """[T, H] float64: expert after expert, every operation in float64, weights and inputs as they are stored."""
    layout, y_TH = ExpertLayout.of(module), torch.zeros(x_TH.shape, dtype=torch.float64)
    for e in ids_TK.unique().tolist():
        tokens, k = torch.where(ids_TK == e)
        weights = {name: p[e].double() for name, p in module.named_parameters()}
        y_TH.index_add_(0, tokens, layout.run(weights, x_TH[tokens].double()) * weights_TK[tokens, k, None].double())
    return y_TH


def cases(module: nn.Module, model: Model, sizes: tuple[int, ...]) -> list[tuple[torch.Tensor, ...]]:
    """Batches with their references, which are most of the work: made once for all ways."""
    dtype = next(module.parameters()).dtype
    return [(*batch, reference(module, *batch)) for batch in batches(model, dtype, sizes)]


def batches(model: Model, dtype: torch.dtype, sizes: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, ...]]:
    """x [B, H], distinct ids [B, K], routing weights [B, K] of each size."""
    for B in sizes:
        generator = torch.Generator().manual_seed(B)
        ids = torch.rand(B, model.experts, generator=generator).argsort(dim=1)[:, : model.top_k]
        weights = torch.rand(B, model.top_k, generator=generator) + 0.1
        x = torch.randn(B, model.hidden, generator=generator).to(dtype)
        yield x, ids, (weights / weights.sum(1, keepdim=True)).to(dtype)


def elsewhere(E: int) -> Placement:
    """Experts in another order on three instances, some of them twice; an empty slot where E does not divide."""
    order = [(e * 5 + 2) % E if E % 5 else E - 1 - e for e in range(E)]
    rows: list[list[int]] = [order[g::3] for g in range(3)]
    rows[0].append(next((e for e in order if e not in rows[0]), -1))
    wide = max(map(len, rows))
    return Placement([row + [-1] * (wide - len(row)) for row in rows], E)


def look(found: Found, module: nn.Module, name: str, model: Model, given: list[tuple[torch.Tensor, ...]]) -> None:
    """One way on one module: errors and bits of all its `cases` into `found`."""
    dtype = next(module.parameters()).dtype
    layer, other = JanusMoELayer(module, compute=name), JanusMoELayer(module, elsewhere(model.experts), compute=name)
    invariant = promises(layer, name)
    for x, ids, weights, want in given:
        with torch.inference_mode():
            y = layer(x, ids, weights)
            error = float((y.double() - want).abs().max() / want.abs().max())
            where = f"{model.name}, E={model.experts}, H={model.hidden}, F={model.inner}, B={len(x)}"
            found.worst[dtype] = max(found.worst.get(dtype, (0.0, "")), (error, where))
            found.calls += 1
            found.again += not torch.equal(y, layer(x, ids, weights))
            if invariant or name == "eager":
                found.placements += 1
                found.placed += not torch.equal(y, other(x, ids, weights))
            for t in sorted({0, len(x) // 2, len(x) - 1}) if invariant else ():
                found.rows += 1
                found.alone += not torch.equal(y[t], layer(x[t : t + 1], ids[t : t + 1], weights[t : t + 1])[0])


def promises(layer: JanusMoELayer, name: str) -> bool:
    """Whether a token's result is promised not to depend on the other tokens of its batch."""
    return bool(getattr(layer.slots.engine(name), "batch_invariant", False))


def judged(name: str, found: Found) -> list[dict[str, Any]]:
    """The figures of one way."""
    if not found.calls:
        return [figure(f"{name}: runs here", "no", "a reason where not", True, "", next(iter(found.refused.values())))]
    figures = [
        figure(f"{name}: largest error, {str(dtype)[6:]}", round(error, 9), f"<= {BARS[dtype]:g}", error <= BARS[dtype], "of max |y|", where)
        for dtype, (error, where) in found.worst.items()
    ]  # fmt: skip
    refused = "; ".join(f"{where} not run: {why}" for where, why in found.refused.items())
    figures.append(none(f"{name}: calls that differ when repeated", found.again, found.calls, refused))
    if found.placements:
        figures.append(none(f"{name}: batches that differ under another placement", found.placed, found.placements))
    if found.rows:
        figures.append(none(f"{name}: tokens that differ alone and in their batch", found.alone, found.rows))
    return figures


def none(name: str, differ: int, of: int, note: str = "") -> dict[str, Any]:
    """A figure that has to be 0."""
    return figure(name, differ, "0", differ == 0, f"of {of}", note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="small layers and few batches, seconds")
    sample = parser.parse_args().sample
    shapes, sizes = (SMALL, SIZES[::3]) if sample else (SMALL + LARGE, SIZES)
    found = {name: Found() for name in COMPUTES}
    with progress("shapes", len(shapes) * len(BARS)) as step:
        for seed, (family, E, K, H, F) in enumerate(shapes):
            model = Model(family, E, K, H, F, 1, MODELS[family].pools)
            for dtype in BARS:
                module = made(model, dtype, seed)
                given = cases(module, model, sizes)
                for name, seen in found.items():
                    try:
                        look(seen, module, name, model, given)
                    except JanusError as error:
                        if error.code != "experts.compute":
                            raise
                        seen.refused[f"{family} {dtype}"] = error.message
                step(f"{family}, E={E}, H={H}, {dtype}")
    report([each for name, seen in found.items() for each in judged(name, seen)])


if __name__ == "__main__":
    main()
