"""Tiny random models of every MoE family of the installed transformers, and the scan that says which those are."""

from __future__ import annotations

import ast
import json
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("families.json")
CALLS_EXPERTS = re.compile(r"self\.\w*experts\b")
ARGUMENTS = (("hidden_states",), ("top_k_index", "router_indices"), ("top_k_weights", "routing_weights"))


@cache
def listed() -> dict[str, dict[str, Any]]:
    """Family -> how a tiny model of it is built."""
    read = json.loads(LIST.read_text())
    for entry in read["families"].values():
        left_out = entry.get("without", ())
        entry["kwargs"] = {k: v for k, v in read["base"].items() if k not in left_out} | entry["kwargs"]
    return read["families"]


def scan() -> dict[str, bool]:
    """Family -> whether it has the seam, for each modeling file of transformers that calls experts; imports no model."""
    import transformers

    found = {}
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        source = path.read_text()
        if CALLS_EXPERTS.search(source):
            found[path.parent.name] = found.get(path.parent.name, False) or _has_seam(source)
    return found


def _has_seam(source: str) -> bool:
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    forwards = (f for c in classes for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "forward")
    return any(
        all(name in known for name, known in zip(names, ARGUMENTS, strict=True))
        for names in ([a.arg for a in f.args.args[1:4]] for f in forwards)
        if len(names) == len(ARGUMENTS)
    )


def decorated(family: str) -> bool:
    """Whether the family's experts can be run by `experts_implementation`."""
    import transformers

    folder = Path(transformers.__file__).parent / "models" / family
    return any("@use_experts_implementation" in path.read_text() for path in folder.glob("modeling_*.py"))


def build(family: str, dtype: Any = None, seed: int = 0) -> Any:
    """A tiny random model in eval mode that computes its experts the plain way; biases and norms are random too."""
    import torch
    import transformers

    entry = listed()[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = _class(family, entry["config"])(**entry["kwargs"])
        if "wrapper" in entry:
            config = _class(family, entry["wrapper"])(text_config=config, **entry["around"])
        torch.manual_seed(seed)
        name = entry.get("model", "AutoModelForCausalLM")
        if name.startswith("Auto"):
            model = getattr(transformers, name).from_config(config, dtype=torch.float32)
        else:
            model = _class(family, name)(config)
    if decorated(family):
        model.set_experts_implementation("eager")
    draw(model, seed)
    return _cast(model.eval(), dtype) if dtype else model.eval()


def _cast(model: Any, dtype: Any) -> Any:
    """As loading does it: what a family keeps in float32 whatever the dtype stays so."""
    kept = model._keep_in_fp32_modules_strict or ()
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if p.is_floating_point() and not any(part in name for part in kept):
            p.data = p.data.to(dtype)
    return model


def draw(model: Any, seed: int) -> None:
    """Weights that make a difference: many families start biases and norms at zero or one, and experts near zero."""
    import torch

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "experts" in name or name.endswith("bias"):
                fan_in = p.shape[-1] if p.dim() > 1 and "bias" not in name else 4
                p.copy_(torch.randn(p.shape, generator=g) / fan_in**0.5)


def _class(family: str, name: str) -> Any:
    import importlib

    import transformers

    if hasattr(transformers, name):
        return getattr(transformers, name)
    for kind in ("configuration", "modeling"):
        module = importlib.import_module(f"transformers.models.{family}.{kind}_{family}")
        if hasattr(module, name):
            return getattr(module, name)
    raise LookupError(f"transformers has no {name}")
