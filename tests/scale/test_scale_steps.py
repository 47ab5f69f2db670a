"""What makes a step slower than its mean: the slowest attention instance, and batches that activate more experts."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.scale.search.reference import step_ms
from janus.scale.search.solve import evaluate
from janus.scale.search.steps import Steps, deviations


@given(st.floats(50, 99.9), st.integers(1, 64))
def test_the_slowest_of_n_stands_where_the_quantile_says(percentile, n):
    z = deviations(percentile, n)
    below = (0.5 * (1 + math.erf(z / math.sqrt(2)))) ** n
    assert below == pytest.approx(percentile / 100, rel=1e-9)


def test_below_the_median_of_one_nothing_is_taken_off():
    assert deviations(10.0, 1) == 0.0
    assert deviations(100.0, 4) == pytest.approx(deviations(99.99, 4))


def test_the_slowest_instance_is_as_drawn(small_plan):
    """64 requests on each of 8 instances, lengths drawn with the assumed spread: the largest sum, its 99th percentile."""
    rng = np.random.default_rng(0)
    steps = replace(small_plan.problem.steps, context=1000.0, context_cv=0.5)
    lengths = rng.gamma(4.0, 250.0, (4000, 8, 64))  # cv 0.5
    slowest = lengths.mean(axis=2).max(axis=1)
    for percentile in (50.0, 99.0):
        want = steps.slowest_context(8, 512, percentile)
        assert np.percentile(slowest, percentile) == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0])
@pytest.mark.parametrize("cv", [0.0, 0.7])
def test_every_time_is_the_reference_s(small_plan, percentile, cv):
    p = replace(small_plan.problem, context_cv=cv)
    n_a, n_e, B = np.array([1, 3, 6]), np.array([3, 8, 5]), np.array([1, 50, 200])
    got = p.steps.tail_ms(n_a, n_e, B, percentile)
    want = [step_ms(p, int(a), int(e), int(b), percentile) for a, e, b in zip(n_a, n_e, B, strict=True)]
    assert got == pytest.approx(want, rel=1e-9)


def test_alike_requests_and_the_median_are_the_plain_step(small_plan):
    p = small_plan.problem
    alone = p.latency.tpot(2, 5, 40, p.context, p.table).tpot
    assert Steps(p.latency, p.table, p.slots, p.context, 0.0).mean_ms(*np.array([[2], [5], [40]]))[0] == alone


def test_a_percentile_never_lets_more_through(small_plan):
    p = replace(small_plan.problem, context_cv=0.8)
    seen = [evaluate(replace(p, percentile=q), 2, 4) for q in (50.0, 90.0, 99.0, 100.0)]
    tails = [c.tail_ms for c in seen]
    assert tails == sorted(tails)
    assert len({c.tpot_ms for c in seen}) == 1  # the mean, and so the batch, do not depend on the percentile
    slo = (tails[0] + tails[2]) / 2
    verdicts = [evaluate(replace(p, percentile=q, slo_ms=slo), 2, 4).rejected for q in (50.0, 99.0)]
    assert verdicts == ["", "slo"]
    assert "P99" in evaluate(replace(p, percentile=99.0, slo_ms=slo), 2, 4).detail


def test_no_instance_reads_more_experts_than_it_has_slots(small_plan):
    steps = small_plan.problem.steps
    assert steps.activated(3, 512, 1e6).a_max == small_plan.problem.slots
