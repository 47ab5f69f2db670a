"""Tiny models rewritten as publishers of block-scaled FP8 write theirs; shared by tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
KEPT = ("norm", "embed", "lm_head", "gate.weight", "bias", "sinks")  # what published folders leave in bfloat16
CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def loop(stored: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What stored values and their scales stand for, block by block; the last two dimensions are the matrix."""
    out = stored.float()
    for i in range(math.ceil(stored.shape[-2] / 128)):
        for j in range(math.ceil(stored.shape[-1] / 128)):
            at = (..., slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            out[at] *= scales[..., i : i + 1, j : j + 1].float()
    return out


def to_fp8(tensors: Tensors, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensors, Tensors]:
    """The tensors of a folder as publishers store them, and all of them dequantized; scales are no function of weights."""
    stored, plain = {}, {}
    g = torch.Generator().manual_seed(5)
    for name, t in tensors.items():
        if any(part in name for part in KEPT):
            stored[name] = plain[name] = t.to(torch.bfloat16)
            continue
        blocks = (*t.shape[:-2], math.ceil(t.shape[-2] / 128), math.ceil(t.shape[-1] / 128))
        scales = (torch.rand(blocks, generator=g) * 0.01 + 1e-3).to(scale_dtype)
        spread = scales.float().repeat_interleave(128, -2).repeat_interleave(128, -1)
        stored[name] = (t / spread[..., : t.shape[-2], : t.shape[-1]]).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[name + "_scale_inv"], plain[name] = scales, loop(stored[name], scales)
    return stored, plain


def write(
    folder: Path, model: Any, scale_dtype: torch.dtype = torch.float32, shards: int = 1
) -> tuple[Tensors, Tensors]:
    """A model's folder rewritten in FP8; returns its tensors, stored and dequantized."""
    model.save_pretrained(folder)
    stored, plain = to_fp8(load_file(folder / "model.safetensors"), scale_dtype)
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
    else:
        (folder / "model.safetensors").unlink()
        where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(stored))}
        for file in set(where.values()):
            save_file({name: t for name, t in stored.items() if where[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "quantization_config": CONFIG}))
    return stored, plain
