"""A small problem that plans in about a second: OLMoE on cards of 6 GiB, so that neither pool is trivial."""

from __future__ import annotations

import numpy as np
import pytest

from janus.scale import Cluster, Hardware, ModelSpec, plan
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
