"""Tokens of the two pools against `model.generate` of the undivided model: families x topologies x gates.

A difference is excused only where the undivided model itself was within 1e-5 of deciding otherwise at that token: its two
best logits, or the last chosen and the first unchosen expert of some router. Their number is printed.
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

TOPOLOGIES = ("1A1E", "1A3E", "3A2E", "2A4E")
GATES = ("experts", "attention")
EXCUSED_GAP = 1e-5
TINY_MOE = Path(__file__).parents[2] / "examples" / "tiny_moe"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="two families, one topology, few prompts")
    sample = parser.parse_args().sample
    with tempfile.TemporaryDirectory(prefix="janus-prove-") as folder:
        cases = make_cases(Path(folder), sample)
        figures = [figure for topology in (("2A4E",) if sample else TOPOLOGIES) for figure in prove(topology, cases)]
    total, excused = (sum(f["counts"][i] for f in figures) for i in (0, 2))
    for figure in figures:
        del figure["counts"]
    note = f"{excused} differences excused by a gap of the undivided model below {EXCUSED_GAP:g}"
    figures.append(
        {
            "name": "tokens compared in all",
            "value": total,
            "bar": "> 0",
            "ok": total > 0,
            "unit": "tokens",
            "note": note,
        }
    )
    print(json.dumps({"figures": figures}))


def make_cases(folder: Path, sample: bool) -> list[dict[str, Any]]:
    """One case per model: folder, prompts, and what the undivided model says."""
    families = ["qwen3_moe", "deepseek_v3"] if sample else list(tiny.FAMILIES)
    cases = []
    for family in families:
        prompts = tiny.prompts(5 if sample else 9)
        cases.append(
            {
                "name": family,
                "folder": str(tiny.save(family, folder / family)),
                "prompts": prompts,
                "max_new_tokens": 8 if sample else 16,
            }
        )
    if (TINY_MOE / "checkpoint").is_dir():
        prompts = trained_prompts(4 if sample else 12)
        cases.append(
            {
                "name": "tiny_moe (trained)",
                "folder": str(TINY_MOE / "checkpoint"),
                "prompts": prompts,
                "max_new_tokens": 8 if sample else 32,
            }
        )
    for case in cases:
        print(f"reference: {case['name']}", file=sys.stderr)
        case["reference"] = [reference(case["folder"], prompt, case["max_new_tokens"]) for prompt in case["prompts"]]
    return cases


def trained_prompts(count: int) -> list[list[int]]:
    """Held-out text of both kinds, cut to lengths from 1 to 200."""
    texts = [p["ids"] for p in json.loads((TINY_MOE / "prompts.json").read_text())]
    lengths = [1 + i * 199 // max(1, count - 1) for i in range(count)]
    return [(texts[i % len(texts)] * 200)[:n] for i, n in enumerate(lengths)]


_models: dict[str, Any] = {}


def reference(folder: str, prompt: list[int], limit: int) -> dict[str, Any]:
    """Greedy tokens of the undivided model by its own generate, with the smallest gap behind each token."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if folder not in _models:
        _models.clear()
        _models[folder] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = _models[folder]
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=limit,
            do_sample=False,
        )
        gaps = decision_gaps(model, out)[len(prompt) - 1 : -1]
    return {"tokens": out[0, len(prompt) :].tolist(), "gaps": gaps}


def decision_gaps(model: Any, ids: Any) -> list[float]:
    """Per position: the least of its top-two logit gap and its routers' gaps between chosen and unchosen."""
    import torch

    router_gaps: list[Any] = []

    def watch(module: Any, _args: Any, output: Any) -> None:
        logits, _, chosen = output
        scores = logits.float() + getattr(module, "e_score_correction_bias", 0.0)
        kept = scores.gather(1, chosen).min(dim=1).values
        rest = scores.scatter(1, chosen, float("-inf")).max(dim=1).values
        router_gaps.append((kept - rest).abs())

    routers = [m for name, m in model.named_modules() if name.endswith("mlp.gate")]
    hooks = [m.register_forward_hook(watch) for m in routers]
    logits = model(ids).logits[0]
    for hook in hooks:
        hook.remove()
    best = logits.topk(2, dim=-1).values
    return torch.stack([best[:, 0] - best[:, 1], *router_gaps]).min(dim=0).values.tolist()


def prove(topology: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All cases and gates on one topology, in one launch; one figure per gate and model.

    Where there are several attention ranks, each is served once more with a single prompt: the others are then idle.
    """
    print(f"serving {topology}: {len(cases)} models x {len(GATES)} gates", file=sys.stderr)
    if not topology.startswith("1A"):
        cases = [*cases, *map(single_prompt, cases)]
    runs = [(case, gate) for gate in GATES for case in cases]
    jobs = [{k: c[k] for k in ("folder", "prompts", "max_new_tokens")} | {"options": {"gate": g}} for c, g in runs]
    results = run_job({"topology": topology, "gpus_per_node": 2, "cases": jobs}, deadline_s=1500.0)
    return [figure(f"{topology}: {c['name']}, gate={g}", c, r) for (c, g), r in zip(runs, results, strict=True)]


def single_prompt(case: dict[str, Any]) -> dict[str, Any]:
    """The same model with the prompt that has the longest completion."""
    longest = max(range(len(case["prompts"])), key=lambda i: len(case["reference"][i]["tokens"]))
    one = {key: [case[key][longest]] for key in ("prompts", "reference")}
    return case | one | {"name": f"{case['name']}, one prompt, other attention ranks idle"}


def figure(name: str, case: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Compare one served case with the reference, token by token up to the first difference of each prompt."""
    if "error" in result:
        return {
            "name": name,
            "value": result["message"],
            "bar": "identical tokens",
            "ok": False,
            "unit": "",
            "note": "",
            "counts": (0, 1, 0),
        }
    compared = wrong = excused = 0
    for got, want in zip(result["completions"], case["reference"], strict=True):
        first = next((i for i, (a, b) in enumerate(zip(got, want["tokens"], strict=False)) if a != b), None)
        compared += len(want["tokens"]) if first is None else first + 1
        if first is None:
            wrong += len(got) != len(want["tokens"])
        elif want["gaps"][first] < EXCUSED_GAP:
            excused += 1
        else:
            wrong += 1
            print(f"{name}: token {first} differs, gap {want['gaps'][first]:.2e}", file=sys.stderr)
    value = f"{compared - wrong - excused}/{compared}"
    return {
        "name": name, "value": value, "bar": "identical tokens", "ok": not wrong and compared > 0, "unit": "tokens",
        "note": f"{excused} excused", "counts": (compared, wrong, excused),
    }  # fmt: skip


if __name__ == "__main__":
    main()
