"""The pools that policies choose: against trying every pair on the same tables, and against the planner's own search."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.scale.days.littles_law import crossing, meeting, turning
from janus.scale.days.policy import POLICIES
from janus.scale.days.sizing import BALANCED, Need, Sizer
from janus.scale.days.staging import staged
from janus.scale.search.solve import pick, search
from janus.types import RequestTrace, Slo

NEEDS = st.builds(
    lambda demand, context, more, slo: Need(demand, context, context * more, slo),
    st.floats(1, 60_000),
    st.floats(10, 6000),
    st.floats(1, 2),
    st.floats(3, 40),
)


@pytest.fixture(scope="module")
def stage(olmoe, small_cluster, skewed):
    one = RequestTrace([0.0], [300], [30_000], duration_s=1.0)
    options = {"max_attention": 6, "max_experts": 8, "max_batch": 512, "tiers": (4, 8), "copies": 1}
    return staged(one, POLICIES, olmoe, small_cluster, Slo(20), skewed(16, 64), options)


def every_pair(sizer, need, step=1):
    """All pairs that serve the need, by the tables alone."""
    out = []
    for n_a in range(step, sizer.max_attention + 1, step):
        for n_e in range(step, sizer.max_experts + 1, step):
            if n_e >= sizer.times.least:
                steps = sizer.steps(n_a, sizer.times.rest(n_a, n_e), need)
                at = meeting(sizer.knots, steps, need.demand, need.slo_ms, sizer.room(n_a, need))
                if at:
                    out.append((n_a + n_e, at[1], n_a, n_e))
    return out


@settings(max_examples=60, deadline=None)
@given(need=NEEDS, step=st.sampled_from([1, 2, 4]))
def test_the_smallest_is_the_best_of_every_pair(stage, need, step):
    found, pairs = stage.sizer.smallest(need, step), every_pair(stage.sizer, need, step)
    assert found.feasible == bool(pairs)
    if pairs:
        assert (found.gpus, found.tpot_ms, found.n_a) == min(pairs)[:3]
    else:
        assert (found.n_a, found.n_e) == (6 // step * step, 8 // step * step)


@settings(max_examples=40, deadline=None)
@given(need=NEEDS)
def test_copies_share_the_demand_and_never_need_more_gpus(stage, need):
    one = stage.sizer.smallest(need)
    many = Sizer(stage.times, 6, 8, copies=3).smallest(need)
    choices = [(k * min(pairs)[0], k) for k in (1, 2, 3) if (pairs := every_pair(stage.sizer, need.shared(k)))]
    assert many.feasible == bool(choices)
    if choices:
        assert (many.gpus, many.copies) == min(choices)
        assert not one.feasible or many.gpus <= one.gpus
    assert many.n_a % many.copies == many.n_e % many.copies == 0


@pytest.mark.parametrize(
    ("demand", "slo", "context"), [(500, 12, 400), (3000, 20, 400), (8000, 25, 900), (20000, 15, 200)]
)
def test_it_chooses_what_the_planner_chooses(stage, demand, slo, context):
    problem = replace(stage.times.problem, demand=demand, batch=None, slo_ms=slo, context=context)
    planned, found = pick(search(problem)), stage.sizer.smallest(Need(demand, context, context, slo))
    assert planned is not None
    assert found.gpus == planned.gpus  # tables are linear between knots, so the pair may differ among equals
    assert found.tpot_ms == pytest.approx(planned.tpot_ms, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(need=NEEDS)
def test_a_balanced_pair_is_as_balanced_as_can_be(stage, need):
    sizer, found = stage.sizer, stage.sizer.balanced(need)
    if not found.feasible:
        return

    def apart(n_a):
        steps = sizer.steps(n_a, sizer.times.rest(n_a, found.n_e), need)
        batch = (crossing(sizer.knots, steps, need.demand) or (sizer.knots[-1], 0.0))[0]
        attention = sizer.times.attention_at(np.array([np.ceil(batch / n_a)]), need.context)[0]
        return abs(attention - np.interp(batch, sizer.knots, sizer.times.moe(found.n_e))), attention

    closest, attention = min(apart(n_a) for n_a in range(1, 7))
    assert apart(found.n_a)[0] <= closest + BALANCED * attention + 1e-9
    assert found.gpus >= sizer.smallest(need).gpus
    assert (found.gpus, found.n_a, found.n_e) in [(g, a, e) for g, _, a, e in every_pair(sizer, need)]


@settings(max_examples=40, deadline=None)
@given(need=NEEDS, efficiency=st.sampled_from([0.25, 0.5, 1.0]))
def test_the_first_tier_that_serves_is_taken(stage, need, efficiency):
    found = stage.sizer.tier(need, (4, 8), efficiency)
    fits = [w for w in (4, 8) if stage.sizer.colocated(need, w, 1, efficiency)]
    if fits:
        assert (found.n_a, found.copies) == (fits[0], 1)
    else:
        assert found.n_a % 8 == 0
        assert found.copies == found.n_a // 8
    assert found.n_a == found.n_e


def test_half_the_efficiency_serves_half_the_demand(stage):
    need = Need(4000, 300, 400, 30)
    whole, half = (stage.sizer.colocated(replace(need, demand=d), 8, 1, e) for d, e in ((4000, 1.0), (2000, 0.5)))
    assert whole is not None
    assert half is not None
    assert half.tpot_ms == whole.tpot_ms
    assert half.batch == whole.batch / 2


@given(st.floats(1, 50), st.floats(0, 1), st.floats(1, 3000))
def test_the_batch_is_demand_times_step(base, slope, demand):
    at = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 500.0, 4000.0])
    found = crossing(at, base + slope * at, demand)
    rate = demand / 1e3
    exact = rate * base / (1 - rate * slope) if rate * slope < 1 else np.inf
    if exact <= 1:
        assert found == (1.0, base + slope)
    elif exact > 4000:
        assert found is None or found[0] == pytest.approx(4000)
    else:
        assert found is not None
        assert found[0] == pytest.approx(exact, rel=1e-6)
        assert found[1] == pytest.approx(base + slope * exact, rel=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_the_turning_point_of_a_falling_function_is_its_smallest_size(values):
    falling = sorted(values, reverse=True)
    at = turning(lambda i: falling[i], len(falling))
    assert abs(falling[at]) == min(map(abs, falling))
