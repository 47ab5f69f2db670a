"""The simulator's tables of step times against the latency model they were read from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.scale import Cluster, ModelSpec
from janus.scale.days.policy import POLICIES
from janus.scale.days.staging import staged
from janus.scale.days.stepping import attention_ms, line, piece
from janus.scale.days.steptimes import CONTEXTS, between, knots
from janus.scale.search.colocated import colocated_step
from janus.types import RequestTrace, Slo

# Tables are linear between batches that grow by up to a half; a_max is linear in log B, and the exchange has jumps where
# another route or one more piece of a message pays. Seen on the grid below: worst 6.1 % below 64 requests, where a jump
# is a large part of a short step, 3.0 % from there on; means 0.1 % and 0.2 %.
WORST_FEW, WORST, MEAN = 0.08, 0.035, 0.005


@pytest.fixture(scope="module", params=["deepseek-v2", "gpt-oss-20b"])
def stage(request, skewed):
    model, cluster = ModelSpec.from_config(request.param), Cluster("h100-sxm")
    one = RequestTrace([0.0], [300], [100_000], duration_s=5.0)  # 20,000 tokens/s: batches up to 3600 are measured
    trace = skewed(2, model.experts).sum(axis=0, keepdims=True)
    options = {"max_attention": 16, "max_experts": 16, "max_batch": 4096, "slots": max(2, model.experts // 6 + 1)}
    return staged(one, POLICIES, model, cluster, Slo(150), trace, {**options, "tiers": (8, 16)})


def looked_up(stage, curve, n, batch, context):
    """As the loops do it, for instances that all hold `n` requests."""
    k = piece(curve.batch_knots, batch * curve.batch_share)
    rest = line(curve.batch_knots, curve.rest, k, batch * curve.batch_share)
    return attention_ms(curve, n * curve.instance_share, context) + rest


def errors(stage, told, pools):
    rng, out = np.random.default_rng(0), []
    for _ in range(150):
        n_a, n_e = pools(rng)
        batch, context = int(np.exp(rng.uniform(0, np.log(3500)))), float(np.exp(rng.uniform(3, 10)))
        curve, want = told(n_a, n_e, batch, context)
        out.append((batch, looked_up(stage, curve, -(-batch // n_a), batch, context) / want - 1))
    return np.array(out).T


def check(batch, off):
    off, many = np.abs(off), batch >= 64
    assert 20 < many.sum() < 130
    assert off[~many].max() <= WORST_FEW
    assert off[many].max() <= WORST
    assert off.mean() <= MEAN


def test_two_pools_are_within_a_few_percent_of_the_latency_model(stage):
    p, times = stage.times.problem, stage.times

    def told(n_a, n_e, B, context):
        return times.curve(times.rest(n_a, n_e)), p.latency.tpot(n_a, n_e, B, context, p.table).tpot

    check(*errors(stage, told, lambda rng: (int(rng.integers(1, 17)), int(rng.integers(times.least, 17)))))


def test_colocated_pools_are_too(stage):
    p, times = stage.times.problem, stage.times
    from dataclasses import replace

    def told(width, _, B, context):
        slots = stage.sizer.slots(width)
        step = colocated_step(replace(p, context=context), times._colocated_table, width, slots, B)
        return times.curve(times.colocated_rest(width, slots)), step.tpot

    check(*errors(stage, told, lambda rng: (int(rng.choice([8, 16])), 0)))


def test_at_the_knots_nothing_is_lost(stage):
    p, times = stage.times.problem, stage.times
    for B in (1, 2, 48, 256, 1024):
        for context in (64.0, 1024.0):
            step = p.latency.tpot(1, times.least + 1, B, context, p.table)
            seen = looked_up(stage, times.curve(times.rest(1, times.least + 1)), B, B, context)
            assert seen == pytest.approx(step.tpot, rel=1e-12)


def test_half_the_efficiency_is_as_slow_as_twice_the_batch(stage):
    times = stage.times
    rest = times.rest(2, times.least)
    full, half = times.curve(rest), times.curve(rest, efficiency=0.5)
    assert looked_up(stage, half, 50, 100, 500.0) == looked_up(stage, full, 100, 200, 500.0)


def test_copies_share_the_batch(stage):
    times = stage.times
    rest = times.rest(2, times.least)
    assert looked_up(stage, times.curve(rest, copies=3), 50, 300, 500.0) == looked_up(
        stage, times.curve(rest), 50, 100, 500.0
    )


@given(st.integers(1, 200_000))
def test_knots_are_close_and_reach_the_end(most):
    found = knots(most)
    assert found[:2].tolist() == [1, 2]
    assert found[-1] >= most
    assert len(found) == 2 or found[-2] < most
    growth = found[1:] / found[:-1]
    assert growth[found[:-1] >= 8].max(initial=1.0) <= 1.5
    assert growth[(found[:-1] >= 8) & (found[:-1] < 64)].max(initial=1.0) <= 1.25


@given(st.floats(0, 3e6))
def test_pieces_are_found_by_bisection_as_by_numpy(x):
    want = int(np.clip(np.searchsorted(CONTEXTS, x, side="right") - 1, 0, len(CONTEXTS) - 2))
    assert piece(CONTEXTS, x) == want


def test_between_goes_on_beyond_both_ends():
    at, values = np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 20.0])
    assert between(np.array([0.0, 3.0, 8.0]), at, values).tolist() == [0.0, 20.0, 20.0]
