"""Prove: every MoE family of the installed transformers is computed right by `janus.convert`, or refused by name.

    python benchmarks/prove/experts_families.py [--sample] [--write]

The families come from a scan of transformers' sources, so one that is new shows up as unknown instead of being missed.
Each is built tiny with random weights, in float32 and bfloat16; what reaches its experts in a forward is recorded, and
`JanusMoELayer` on it is compared with the family's own forward in float64 on the same weights, for each way to compute.
Then the whole model is converted and its logits compared. `--write` brings docs/experts_families.md up to date.
Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import families
import torch
from figures import figure, progress, report, say
from torch.overrides import TorchFunctionMode

from janus import JanusError, JanusMoELayer, convert
from janus.experts import register
from janus.experts.layout import ExpertLayout
from janus.experts.sites import find_experts

PAGE = Path(__file__).parents[2] / "docs" / "experts_families.md"
BARS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
COMPUTES = ("auto", "eager")
LOGITS_BAR = 1e-4  # float32, relative to the largest logit; nothing is drawn anew, so a routing flip would show
WANTED = 60  # of those with the seam
SAMPLE = (  # one of every kind of layout, and three that are refused
    "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "aria", "nemotron_h", "muse_spark", "gemma4", "inkling2",
    "step3p7", "longcat_flash", "llama4", "dbrx",
)  # fmt: skip
Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Outcome:
    """What became of one family."""

    family: str
    seam: bool
    where: str = ""
    special: str = ""
    errors: dict[torch.dtype, float] = field(default_factory=dict)
    logits: float = 0.0
    registered: float | None = None  # None: the family is not decorated for the registry
    refusal: str = ""
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Computed, and all differences under their bars."""
        under = all(self.errors.get(dtype, 1) <= bar for dtype, bar in BARS.items())
        logits = max(self.logits, self.registered or 0.0)
        return not self.refusal and not self.failure and under and logits <= LOGITS_BAR


def examine(family: str, seam: bool) -> Outcome:
    """Build, compare, convert, compare again."""
    outcome = Outcome(family, seam)
    if family not in families.listed():
        outcome.failure = "unknown: not in benchmarks/families.json"
        return outcome
    try:
        _examine(family, outcome)
    except JanusError as error:
        outcome.refusal = f"`{error.code}`: {error.message}"
    except Exception as error:  # one family that fails leaves the others to be looked at
        outcome.failure = f"{type(error).__name__}: {error}"
    return outcome


def _examine(family: str, outcome: Outcome) -> None:
    model = families.build(family)
    sites = find_experts(model)
    first = sites[0].experts
    outcome.where = f"{type(first).__name__}, `{sites[0].name}.{sites[0].attr}`"
    outcome.special = special(model)
    outcome.errors = {dtype: _largest_error(families.build(family, dtype)) for dtype in BARS}
    before = _logits(model)
    if families.decorated(family):
        model.set_experts_implementation("janus")
        outcome.registered = _relative(_logits(model), before)
        model.set_experts_implementation("eager")
    outcome.logits = _relative(_logits(convert(model)), before)


def special(model: Any) -> str:
    """In what the experts of a model differ from the common layout."""
    found = dict[str, None]()
    hidden_size = model.config.get_text_config().hidden_size
    for site in find_experts(model):
        layout, experts = ExpertLayout.of(site.experts), site.experts
        gate: Any = getattr(type(experts), "_apply_gate", None)
        remarks = {
            "matrices [in, out]": layout.is_transposed,
            "biases": layout.has_bias,
            "no gate": not layout.has_gate,
            "gate and up interleaved": not getattr(experts, "is_concatenated", True),
            "activation of its own": layout.has_gate and gate.__name__ != "_default_apply_gate",
            "norm behind each expert": layout.norm is not None,
            "narrower or wider than the model": layout.hidden_size != hidden_size,
            "not decorated": not hasattr(experts, "is_concatenated"),
            "called by the decoder layer": "decoderlayer" in type(site.places[0][0]).__name__.lower(),
        }
        found |= dict.fromkeys(remark for remark, holds in remarks.items() if holds)
    places = {".".join(p for p in site.name.split(".") if not p.isdigit()) for site in find_experts(model)}
    return "; ".join([*found, *([f"{len(places)} banks of experts"] if len(places) > 1 else [])])


def _largest_error(model: Any) -> float:
    """Of all experts modules and ways to compute, on what a forward of the model sends there."""
    sites = find_experts(model)
    calls = _recorded(model, [site.experts for site in sites])
    worst = 0.0
    for site, call in zip(sites, calls, strict=True):
        want = _reference(site.experts, call)
        for compute in COMPUTES:
            got = JanusMoELayer(site.experts, compute=compute)(*call)
            worst = max(worst, _relative(got, want))
    return worst


@torch.no_grad()
def _recorded(model: Any, experts: list[Any]) -> list[Call]:
    """The last call of each experts module; a drawn one for those that a text does not reach."""
    seen: dict[Any, Call] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: seen.__setitem__(module, (*args, *kwargs.values())[:3]), with_kwargs=True
        )
        for module in experts
    ]
    _logits(model)
    for hook in hooks:
        hook.remove()
    return [seen.get(module) or _drawn(module) for module in experts]


def _drawn(experts: Any) -> Call:
    p = experts.down_proj
    x = torch.randn(9, ExpertLayout.of(experts).hidden_size, dtype=p.dtype)
    return x, torch.rand(9, len(p)).argsort(1)[:, :2], torch.rand(9, 2, dtype=p.dtype)


@torch.no_grad()
def _reference(experts: Any, call: Call) -> torch.Tensor:
    """The family's own forward in float64, on the same weights."""
    hidden, ids, weights = call
    with _Float64():
        return copy.deepcopy(experts).double()(hidden.double(), ids, weights.double())


class _Float64(TorchFunctionMode):
    """Inside, what a family does in float32 on purpose is done in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wider(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            return args[0].double()
        return func(*map(wider, args), **{name: wider(value) for name, value in (kwargs or {}).items()})


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    torch.manual_seed(7)  # some draw
    out = model(torch.arange(3, 27).reshape(2, 12))
    return out.logits if hasattr(out, "logits") else out[0]


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    difference = float((got.double() - want.double()).abs().max()) / max(float(want.double().abs().max()), 1e-30)
    return difference if difference == difference else float("inf")


def figures_of(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    seams = [o for o in outcomes if o.seam]
    passed, least = sum(o.passed for o in seams), min(WANTED, len(seams) - 3)
    names = ", ".join(o.family for o in seams if not o.passed)
    out = [
        figure(
            "families with the seam, computed right", passed, f">= {least}", passed >= least, f"of {len(seams)}", names
        )
    ]
    lost = [o.family for o in outcomes if not o.passed and not o.refusal]
    out.append(figure("families neither right nor refused by name", len(lost), "== 0", not lost, "", ", ".join(lost)))
    for dtype, bar in BARS.items():
        worst = max((o.errors[dtype] for o in outcomes if o.errors), default=1.0)
        name = f"largest relative error, {str(dtype)[6:]}, {' and '.join(COMPUTES)}"
        out.append(figure(name, worst, f"<= {bar:g}", worst <= bar, "", "against float64, of the largest value"))
    logits = max((o.logits for o in outcomes), default=0.0)
    out.append(figure("largest relative change of logits, float32", logits, f"<= {LOGITS_BAR:g}", logits <= LOGITS_BAR))
    registered = [o.registered for o in outcomes if o.registered is not None]
    note = f"{len(registered)} families"
    worst = max(registered, default=0.0)
    name = "the same with experts_implementation='janus'"
    out.append(figure(name, worst, f"<= {LOGITS_BAR:g}", worst <= LOGITS_BAR, "", note))
    return out


def page(outcomes: list[Outcome]) -> str:
    """docs/experts_families.md."""
    import transformers

    rows = [f"| {o.family} | {o.where or '-'} | {o.special or '-'} | {_result(o)} |" for o in outcomes]
    passed = sum(o.passed for o in outcomes)
    return f"""# Which families

Every Mixture-of-Experts family of transformers {transformers.__version__}, as a scan of its sources finds them: {len(outcomes)}, of which
`janus.convert` computes {passed} and refuses the others by name, before it changes anything. Nothing in Janus knows a family's
name: an experts module is found by the arguments of its forward, described by its parameters and attributes, and one
expert is compared with the family's own forward when it is replaced. So a new family of a known layout is supported
from the day it appears.

What is not in the experts module stays the model's own and is not listed: routers of any kind (groups, correction
biases, scaling, hashes), shared experts with or without a gate, dense layers, and what stands before and behind.

The errors are the largest of all layers and of `compute="auto"` and `"eager"`, in float32 and in bfloat16, against the
family's own forward in float64 on the same weights, relative to the largest value. Weights and biases are random.
`python benchmarks/prove/experts_families.py --write` makes this page anew.

| family | experts | what is special | largest error, or why it is refused |
|---|---|---|---|
{chr(10).join(rows)}
"""


def _result(o: Outcome) -> str:
    if o.passed:
        return " / ".join(f"{o.errors[dtype]:.0e}" for dtype in BARS)
    return f"refused, {o.refusal}" if o.refusal else f"WRONG, {o.failure or o}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help=f"{len(SAMPLE)} families, seconds")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}")
    args = parser.parse_args()
    if args.sample and args.write:
        parser.error("--write needs all families")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # transformers is not imported yet
    warnings.simplefilter("ignore")  # remarks on configs this small
    register()
    found = {name: seam for name, seam in families.scan().items() if not args.sample or name in SAMPLE}
    outcomes = []
    with progress("families", len(found)) as step:
        for name, seam in found.items():
            outcomes.append(examine(name, seam))
            step(name)
            if not outcomes[-1].passed:
                say(f"{name}: {_result(outcomes[-1])}")
    if args.write:
        PAGE.write_text(page(outcomes))
    report(figures_of(outcomes))


if __name__ == "__main__":
    main()
