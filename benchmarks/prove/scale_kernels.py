"""Prove: fitted kernels on rows that the fit did not see, beside the form alone and two baselines.

    python benchmarks/prove/scale_kernels.py [--sample]

Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from figures import figure, progress, report  # noqa: E402  (the paths above come first)
from recordings import SHARED  # noqa: E402

from janus.scale.kernels.fitting import held_out  # noqa: E402
from janus.scale.kernels.groups import Group, groups  # noqa: E402
from janus.scale.kernels.tables import Tables  # noqa: E402

FOLDER = SHARED / "data" / "kernel_perf"
# Kind -> (what it is, bar in percent; None: shown, no bar was set for it).
KINDS = {
    "moe_decode": ("MoE decode, DeepSeek-V3 FP8 (DeepEP kernels)", 8.0),
    "mla_decode": ("MLA decode kernel", 8.0),
    "mla_module": ("MLA module of DeepSeek-V3", 8.0),
    "dispatch": ("DeepEP dispatch, 1 to 8 nodes", 12.0),
    "combine": ("DeepEP combine, 1 to 8 nodes", 12.0),
    "collective": ("NCCL collectives, 2 to 8 GPUs", 12.0),
    "fused_moe": ("fused MoE, power-law routing", None),
}


def measured(kind: str, found: list[Group], seeds: range) -> dict[str, Any]:
    errors = [held_out(group, seed) for seed in seeds for group in found if group.kind == kind]
    mape = {name: 100 * float(np.concatenate([e[name] for e in errors]).mean()) for name in errors[0]}
    per_seed = np.array_split(np.array([100 * e["kernel"].mean() for e in errors]), len(seeds))
    what, bar = KINDS[kind]
    note = f"form alone {mape['form']:.1f}, nearest measured point {mape['nearest']:.1f}, log-linear"
    note += f" {mape['loglinear']:.1f}; {sum(len(e['kernel']) for e in errors)} unseen rows, {len(seeds)} splits,"
    note += f" mean of a split at worst {max(float(s.mean()) for s in per_seed):.1f}; tables of H200"
    name = f"{what}: mean absolute error on a random fifth not used for the fit"
    if bar is None:
        return figure(name, round(mape["kernel"], 1), "none set", True, "%", note)
    return figure(name, round(mape["kernel"], 1), f"<= {bar:g}", mape["kernel"] <= bar, "%", note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true")
    seeds = range(1 if parser.parse_args().sample else 5)
    if not FOLDER.is_dir():
        note = "recorded data absent: no folder shared/data/kernel_perf beside the checkout and JANUS_SHARED unset"
        report([figure("kernel tables measured on H200", "absent", "none without data", True, "", note)])
        return
    found = groups(Tables.read(FOLDER))
    figures = []
    with progress("kernels", len(KINDS)) as step:
        for kind in KINDS:
            figures.append(measured(kind, found, seeds))
            step(kind)
    report(figures)


if __name__ == "__main__":
    main()
