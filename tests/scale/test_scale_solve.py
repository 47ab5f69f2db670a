"""The fixed point, and every candidate of random small problems against the plain-loop reference."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.scale import Cluster, Hardware, ModelSpec, plan
from janus.scale.search.reference import judge, step_ms, turns
from janus.scale.search.solve import fixed_point


@given(
    st.lists(st.floats(0, 40), min_size=1, max_size=60),
    st.floats(0.1, 100),
    st.floats(1, 3000),
)
def test_the_fixed_point_is_one(steps, first, demand):
    """Any TPOT that never falls: f(B) >= 0 > f(B - 1), or the right end fails."""
    tpot = np.cumsum([first, *steps])
    b_max = len(steps)

    def surplus(B):
        return B - demand * tpot[B] / 1e3

    B = fixed_point(lambda B: tpot[B], demand, b_max)
    if B is None:
        assert surplus(b_max) < 0
        assert surplus(1) < 0
    else:
        assert 1 <= B <= b_max
        assert surplus(B) >= 0
        assert B == 1 or surplus(B - 1) < 0


@given(st.floats(0.01, 50), st.floats(0, 2), st.floats(1, 500))
def test_with_an_affine_step_it_is_the_algebraic_one(base, slope, demand):
    B = fixed_point(lambda B: base + slope * B, demand, 10_000)
    rate = demand / 1e3
    if rate * slope >= 1 or rate * base / (1 - rate * slope) > 10_000 - 1:
        assert B is None or rate * (base + slope * B) <= B
    else:
        assert max(1, math.ceil(rate * base / (1 - rate * slope) - 1e-9)) == B or rate * (base + slope * B) <= B


def test_an_early_crossing_is_found_before_a_bend():
    # flat at 10 ms up to 20 requests, then steep: f(b_max) < 0, yet 10 requests serve 1000 tokens/s
    assert fixed_point(lambda B: 10 + max(0, B - 20) * 5, 1000, 64) == 10


@settings(max_examples=10)
@given(
    model=st.sampled_from(["olmoe-1b-7b", "gpt-oss-20b", "deepseek-v2-lite"]),
    demand=st.floats(50, 8_000),
    slo=st.floats(3, 60),
    context=st.floats(10, 8000),
    memory=st.floats(8, 24),
    node=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_every_candidate_against_the_reference(model, demand, slo, context, memory, node, seed):
    spec = ModelSpec.from_config(model)
    counts = np.random.default_rng(seed).integers(1, 100, (1, spec.experts))
    cluster = Cluster(Hardware("toy", memory * 2**30, 2e12, 2e14, 4e14, 2e11, node, 200))
    found = plan(
        spec,
        cluster,
        demand=demand,
        slo=slo,
        trace=counts,
        context=context,
        max_attention=2,
        max_experts=3,
        max_batch=96,
        placing="eplb",
    )
    judged = {(c.n_a, c.n_e): judge(found.problem, c.n_a, c.n_e) for c in found.candidates}
    assert len(judged) == 6
    for c in found.candidates:
        want = judged[c.n_a, c.n_e]
        assert c.rejected == want.rejected, (c, want)
        if not c.rejected:
            assert turns(found.problem, c.n_a, c.n_e, c.batch)  # mostly at want.batch, where times never fall
            assert c.tpot_ms == pytest.approx(step_ms(found.problem, c.n_a, c.n_e, c.batch), rel=1e-9)
    feasible = [(a + e, want.tpot_ms) for (a, e), want in judged.items() if not want.rejected]
    assert found.feasible == bool(feasible)
    if feasible:
        assert found.gpus == min(feasible)[0]
        assert found.tpot_ms == pytest.approx(min(feasible)[1], rel=0.02)  # another turn of Little's law at most
        assert found.throughput >= demand * (1 - 1e-9)
        assert found.tpot_ms <= slo
