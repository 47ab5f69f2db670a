"""Routing for the named models: recorded where there is a recording, else borrowed; every figure says which."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shapes import Model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from janus.types import RoutingTrace, read_expert_counts, sample  # noqa: E402  (the path above comes first)

SHARED = Path(os.environ.get("JANUS_SHARED", ROOT.parent / "shared"))
DEEPSEEK = SHARED / "data" / "expert_load" / "deepseek_v3_LOCAL_ONLY.npz"
GPT_OSS = SHARED / "data" / "routing" / "gptoss20b.npz"
TOKENS = 16384  # of a drawn trace; four batches of the largest size without a token twice

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Routing:
    """One layer of routing in two halves: placements are made from `seen`, batches are drawn from `held_out`.

    Attributes:
        label: where it comes from, for every row and figure; begins with "recorded" or "synthetic".
        seen: the half to place from.
        held_out: the half to judge on.
    """

    label: str
    seen: RoutingTrace
    held_out: RoutingTrace

    def batches(self, B: int, how_many: int, seed: int = 1) -> list[npt.NDArray[np.int64]]:
        """int64 [B, K] each, tokens drawn from `held_out`."""
        rng = np.random.default_rng(seed)
        return [self.held_out.sample(B, rng)[:, 0].astype(np.int64) for _ in range(how_many)]


def gpt_oss() -> RoutingTrace:
    """gpt-oss-20b in decode: the whole recording where it is present, else the sample that comes along."""
    if GPT_OSS.exists():
        return RoutingTrace.load(GPT_OSS, num_experts=32)
    return RoutingTrace.load(sample("gptoss20b-routing"))


def routing(model: Model) -> Routing:
    """The best there is for one layer of `model`."""
    if model.name == "gpt-oss-20b":
        ids = gpt_oss().ids[:, 12:13]  # a middle layer; tokens are ordered by request, so halves share none
        half = len(ids) // 2
        return Routing("recorded routing, layer 12", *(RoutingTrace(part, 32) for part in (ids[:half], ids[half:])))
    if model.name == "deepseek-v3" and DEEPSEEK.exists():
        counts_LE = read_expert_counts(DEEPSEEK)["decode_in1000out1000"][30:31]
        return _drawn("recorded loads, layer 30; tokens drawn independently", counts_LE, model.top_k)
    if model.name == "mixtral-8x7b":
        counts_LE = read_expert_counts(sample("olmoe-mixtral-counts"))["mixtral8x7b/c4"][1:2]
        return _drawn(
            "recorded counts of c4, second of three layers; tokens drawn independently", counts_LE, model.top_k
        )
    like = RoutingTrace.load(sample("gptoss20b-routing"))
    one = RoutingTrace.synthetic(
        like=like, num_experts=model.experts, top_k=model.top_k, num_layers=1, tokens=2 * TOKENS
    )
    halves = (RoutingTrace(ids, model.experts, synthetic=True) for ids in (one.ids[:TOKENS], one.ids[TOKENS:]))
    return Routing("synthetic routing, popularity quantiles of gpt-oss-20b", *halves)


def _drawn(label: str, counts_LE: npt.NDArray[np.int64], top_k: int) -> Routing:
    seen, held_out = (RoutingTrace.from_counts(counts_LE, top_k, tokens=TOKENS, seed=seed) for seed in (0, 1))
    return Routing(label, seen, held_out)
