"""Peak anonymous memory of every rank against what its role must hold.

A model with 1.2 GB of random experts is served from a folder at 1A2E; an expert rank may take its slots + 450 MB, an
attention rank its other weights + KV + 450 MB (the interpreter, torch and transformers are most of that).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from serve_job import run_job

MB = 1e6
ALLOWANCE_MB = 450
SIZES = dict(
    vocab_size=8192, hidden_size=1024, moe_intermediate_size=768, num_experts=64, num_hidden_layers=2, num_attention_heads=16,
    num_key_value_heads=4, head_dim=64, mlp_only_layers=[], num_experts_per_tok=4, max_position_embeddings=512,
)  # fmt: skip
PROMPTS, NEW_TOKENS = tiny.prompts(4, longest=128), 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="a quarter of the experts, one gate")
    sample = parser.parse_args().sample
    sizes = SIZES | ({"num_experts": 16} if sample else {})
    with tempfile.TemporaryDirectory(prefix="janus-prove-") as folder:
        print("writing the checkpoint", file=sys.stderr)
        model = tiny.build("qwen3_moe", **sizes)
        model.save_pretrained(folder)
        bounds = role_bytes(model)
        del model
        gates = ("experts",) if sample else ("experts", "attention")
        figures = [figure for gate in gates for figure in prove(folder, gate, bounds)]
    print(json.dumps({"figures": figures}))


def role_bytes(model: Any) -> dict[str, float]:
    """Bytes an expert rank of two, and the attention rank, cannot do without."""
    experts = sum(p.nbytes for name, p in model.named_parameters() if ".experts." in name)
    others = sum(p.nbytes for name, p in model.named_parameters() if ".experts." not in name)
    config = model.config
    longest = max(map(len, PROMPTS)) + NEW_TOKENS
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4 * longest * len(PROMPTS)
    return {"experts": experts, "expert": experts / 2, "attention": others + kv}


def prove(folder: str, gate: str, bounds: dict[str, float]) -> list[dict[str, Any]]:
    """One launch; one figure per rank. A launch of its own per gate: a peak is of the whole life of a process."""
    print(f"serving, gate={gate}", file=sys.stderr)
    case = {"folder": folder, "prompts": PROMPTS, "max_new_tokens": NEW_TOKENS, "options": {"gate": gate}}
    (result,) = run_job({"topology": "1A2E", "gpus_per_node": 2, "cases": [case]})
    figures = []
    for peak, stats in zip(result["peak_anon"], result["stats"], strict=True):
        own = bounds[stats["role"]] / MB
        figures.append(
            {
                "name": f"peak RssAnon, rank {stats['rank']} ({stats['role']}), gate={gate}",
                "value": round(peak / MB),
                "bar": f"<= {own:.0f} + {ALLOWANCE_MB}",
                "ok": peak / MB <= own + ALLOWANCE_MB,
                "unit": "MB",
                "note": f"{bounds['experts'] / MB:.0f} MB of experts in all",
            }
        )
    return figures


if __name__ == "__main__":
    main()
