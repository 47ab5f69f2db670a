"""What the parts about experts on a GPU share: shapes, slots with random weights, batches, bytes, transformers' ways."""

from __future__ import annotations

import csv
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "experts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import entries
import torch
from experts_sizes import QUANTIZED, Held
from shapes import MODELS, Model

from janus.experts.slots import ExpertSlots

H200 = Path(__file__).resolve().parents[1] / "results" / "h200_fused_moe.csv"
ROTATED = 512 << 20  # bytes of layers that a graph walks through: several times any second-level cache
GPT_OSS = dataclasses.replace(entries.GPT_OSS, limit=7.0)  # the model's own


class Case(Held):
    """Slots of one instance of a model's pool, or all experts where `experts` is E; the others are elsewhere."""

    @property
    def name(self) -> str:
        """As figures call it."""
        return f"{self.model.name} {self.experts} of {self.model.experts}, {self.storage}"

    @property
    def quantize(self) -> str | None:
        """As the slots take it."""
        return self.storage if self.storage in QUANTIZED else None


CASES = (
    Case(MODELS["qwen3-30b-a3b"], "bfloat16", 128),
    Case(MODELS["mixtral-8x7b"], "bfloat16", 8),
    Case(MODELS["qwen3-235b-a22b"], "bfloat16", 16),
    Case(MODELS["deepseek-v2"], "bfloat16", 16),
    Case(MODELS["gpt-oss-20b"], "bfloat16", 32),
    Case(MODELS["deepseek-v3"], "bfloat16", 16),
    Case(MODELS["deepseek-v3"], "fp8", 16),
    Case(MODELS["qwen3-30b-a3b"], "int8", 128),
)
TINY = (Case(Model("tiny", 8, 2, 64, 32, 2, ()), "bfloat16", 4),)


def layers(case: Case, device: str) -> list[ExpertSlots]:
    """As many layers as `ROTATED` asks for, at least two, with random weights."""
    count = max(2, math.ceil(ROTATED / (case.slot_bytes * case.experts))) if device != "cpu" else 2
    return [slots_of(case, device, seed) for seed in range(count)]


def slots_of(case: Case, device: str, seed: int) -> ExpertSlots:
    """One layer, filled with random weights; on the meta device there is nothing to fill."""
    m, oss = case.model, case.model.name.startswith("gpt-oss")
    layout = entries.layout(m.hidden, m.inner, GPT_OSS if oss else entries.SILU, bias=oss, transposed=oss)
    made = ExpertSlots(
        layout, range(case.experts), dtype=torch.bfloat16, device=device, quantize=case.quantize, compute="triton"
    )
    if device == "meta":
        return made
    generator = torch.Generator(device).manual_seed(seed)
    for s in range(case.experts):
        drawn = {
            name: torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) * m.hidden**-0.5
            for name, shape in layout.shapes.items()
        }
        made.fill(s, drawn)
    return made


def batch(case: Case, B: int, device: str, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """B tokens with K distinct experts of E each, evenly drawn; the choices served elsewhere are -1.

    Tokens none of whose choices are here are not sent to an instance: they are drawn again.
    """
    g, m = torch.Generator().manual_seed(seed), case.model
    ids = torch.full((B, m.top_k), -1)
    missing = torch.arange(B)
    while len(missing):
        ids[missing] = torch.rand(len(missing), m.experts, generator=g).argsort(1)[:, : m.top_k]
        missing = (ids >= case.experts).all(1).nonzero().flatten()
    ids[ids >= case.experts] = -1
    x = torch.randn(B, m.hidden, generator=g).to(torch.bfloat16)
    return x.to(device), ids.to(device), torch.rand(B, m.top_k, generator=g).to(device)


def activated_bytes(case: Case, ids: torch.Tensor) -> int:
    """Weights that must be read: of every slot that some token chose, once."""
    return len(set(ids[ids >= 0].tolist())) * case.slot_bytes


def theirs(slots: ExpertSlots, how: str) -> Callable[..., torch.Tensor]:
    """transformers' ``"batched_mm"`` or ``"grouped_mm"`` on the same weights; ImportError where it is not installed."""
    from transformers.integrations import moe

    module: Any = torch.nn.Module()
    module.has_gate, module.has_bias = True, slots.layout.has_bias
    module.is_transposed, module.has_post_expert_norm = slots.layout.is_transposed, False
    module._apply_gate, module.num_experts = slots.layout.activate, slots.num_slots
    module._is_expert_parallel = True  # what is served elsewhere has the number one past the last
    module._parameters = dict(slots.named_parameters())
    forward = getattr(moe, f"{how}_experts_forward")

    def call(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        absent = ids < 0
        return forward(module, x, ids.masked_fill(absent, slots.num_slots), weights.masked_fill(absent, 0).to(x.dtype))

    return call


def h200_row(case: Case, B: int) -> str:
    """What another kernel took on an H200 at these sizes, for comparison; empty where no row fits."""
    m, kind = case.model, {"bfloat16": "bfloat16", "fp8": "fp8_block"}.get(case.storage, "")
    for row in csv.DictReader(H200.read_text().splitlines()):
        sizes = (int(row["hidden_size"]), int(row["inter_size"]), int(row["topk"]), int(row["num_experts"]))
        slots = int(row["num_experts"]) // int(row["moe_ep_size"])
        if (*sizes, slots, int(row["num_tokens"]), row["moe_dtype"]) == (
            m.hidden, m.inner, m.top_k, m.experts, case.experts, B, kind,
        ):  # fmt: skip
            return f"SGLang 0.5.14 on an H200: {1e3 * float(row['latency']):.1f} us ({row['distribution']})"
    return ""
