"""Prove: models add up, and every candidate of a plan holds against the plain reference.

    python benchmarks/prove/scale_plan.py [--sample]

Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from figures import figure, report, say  # noqa: E402  (the paths above come first)

from janus.scale import Cluster, ModelSpec, ScalePlan, plan  # noqa: E402
from janus.scale.search.reference import judge  # noqa: E402
from janus.types import RoutingTrace  # noqa: E402

# Published totals, billions; 0.5 % covers the digits they are printed with.
PUBLISHED = {
    "deepseek-v2": 236, "deepseek-v3": 671, "mixtral-8x7b": 46.7, "qwen3-235b-a22b": 235, "qwen3-30b-a3b": 30.5,
    "olmoe-1b-7b": 6.9, "gpt-oss-120b": 117, "kimi-k2": 1030,
}  # fmt: skip


def deepseek_routing() -> RoutingTrace:
    recorded = RoutingTrace.load(files("janus") / "data" / "gptoss20b_routing.npz")
    return RoutingTrace.synthetic(like=recorded, num_experts=160, top_k=6)


def totals() -> dict[str, Any]:
    off = {n: abs(ModelSpec.from_config(n).total_params / 1e9 / b - 1) for n, b in PUBLISHED.items()}
    worst = max(off, key=lambda n: off[n])
    return figure(
        "parameter totals against the published ones, worst", round(off[worst], 5), "<= 0.005", off[worst] <= 5e-3,
        "", f"{len(off)} models; worst: {worst}",
    )  # fmt: skip


def agreement(found: ScalePlan, every: int) -> dict[str, Any]:
    checked = wrong = 0
    for c in found.candidates[::every]:
        want = judge(found.problem, c.n_a, c.n_e)
        same = c.rejected == want.rejected and (
            c.rejected or (c.batch, round(c.tpot_ms, 6)) == (want.batch, round(want.tpot_ms, 6))
        )
        checked, wrong = checked + 1, wrong + (not same)
        if checked % 32 == 0:
            say(f"  {checked} candidates re-judged")
    return figure(
        "candidates that the plain-loop reference judges otherwise",
        wrong,
        "== 0",
        wrong == 0,
        "",
        f"of {checked}; {found.verdict}; {found.routing}",
    )


def planned(trace: RoutingTrace, limit: int) -> ScalePlan:
    return plan(
        "deepseek-v2", Cluster("h100-sxm"), demand=2000, slo=60, trace=trace, context=512,
        max_attention=limit, max_experts=limit,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true")
    sample = parser.parse_args().sample
    found = planned(deepseek_routing(), 12 if sample else 64)
    figures = [totals(), agreement(found, 24 if sample else 32)]
    report(figures)


if __name__ == "__main__":
    main()
