"""A small problem that plans in about a second: OLMoE on cards of 6 GiB, so that neither pool is trivial."""

from __future__ import annotations

import numpy as np
import pytest

from janus.scale import Cluster, Hardware, ModelSpec, plan
from janus.scale.kernels.tables import CollectiveRow, DeepepRow, MlaRow, MoeRow, Tables
from janus.types import Slo


def popularity(layers: int, experts: int, seed: int = 0) -> np.ndarray:
    """Counts [L, E] whose popularity falls like rank^-0.6, shuffled per layer."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(10_000 / np.arange(1, experts + 1) ** 0.6) for _ in range(layers)]).astype(int)


@pytest.fixture(scope="session")
def skewed():
    return popularity


@pytest.fixture(scope="session")
def small_cluster() -> Cluster:
    return Cluster(Hardware("toy", 6 * 2**30, 1e12, 2e14, 4e14, 2e11, 4, 200))


@pytest.fixture(scope="session")
def olmoe() -> ModelSpec:
    return ModelSpec.from_config("olmoe-1b-7b")


@pytest.fixture(scope="session")
def small_plan(olmoe, small_cluster):
    return plan(
        olmoe,
        small_cluster,
        demand=3000,
        slo=Slo(20, percentile=50),
        context_cv=0.0,  # all requests alike: TPOT is one number, which the tests can recompute
        trace=popularity(16, 64),
        context=400,
        max_attention=6,
        max_experts=8,
        max_batch=512,
    )


@pytest.fixture(scope="session")
def made_up_tables() -> Tables:
    """Tables of a made-up H200 whose kernels take what simple formulas say."""
    moe = [
        MoeRow(
            "deepep", "fp8_block", n, 7168, 2048, 8, 256, ep, "uniform", 20 + 12 * min(256 // ep, max(1, 8 * n // ep))
        )
        for ep in (4, 8, 16, 32, 64)
        for n in (8, 32, 128, 512)
    ]
    grid = [(h, b, s) for h in (16, 64, 128) for b in (1, 8, 64, 512) for s in (16, 256, 4096)]
    core = [MlaRow("fa", "bfloat16", h, b, s, 12 + b * s * 1152 / 4e6) for h, b, s in grid]
    module = [MlaRow("fa", "fp8", h, b, s, 30 + h / 2 + b * s * 576 / 3e6 + b / 5) for h, b, s in grid]
    near = [DeepepRow("1", 1, 7168, n, 8, 256, 10 + n / 5, 10 + n / 3) for n in (1, 2, 8, 32, 64, 128, 256, 512)]
    far = [
        DeepepRow("2", nodes, 7168, n, 8, 256, 20 + nodes + n * (1 - 1 / nodes), 20 + nodes + 2 * n * (1 - 1 / nodes))
        for nodes in (1, 2, 4, 8)
        for n in (1, 8, 64, 512)
    ]
    nccl = [CollectiveRow("2", "all_reduce", 8, 2**k, 10 + 2**k / 2e5) for k in range(8, 28)]
    return Tables(tuple(moe), (), tuple(core), tuple(module), (*near, *far), tuple(nccl), "NVIDIA H200")
