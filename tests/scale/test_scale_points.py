"""A latency model calibrated on whole steps: recovered terms, the optimum, refusals, and a plan with it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus import JanusError
from janus.scale import Cluster, LatencyModel, ModelSpec, StepPoint, fitted_to, plan
from janus.scale.timing.latency import Activated
from janus.scale.timing.points import Prior, left_out
from janus.scale.timing.ridge import ridge
from janus.scale.timing.scaled import ScaledLatencyModel, StepTerms

PAPER = [("1A6E", 64, 99), ("5A10E", 256, 170), ("2A6E", 256, 240), ("4A6E", 512, 340)]
SURE = Prior(error=1e-6, scale=1e3, work_us=1e3)  # points that settle everything


class Saturated:
    """Every expert is read: ceil(160 / n_e) on the busiest instance; fewer for a small batch."""

    def at(self, n_e, B):
        return Activated(-(-160 // n_e) * (0.85 if B < 100 else 1.0), 1.2 * 6 * B / n_e)


@pytest.fixture(scope="module")
def base():
    return LatencyModel.roofline(ModelSpec.from_config("deepseek-v2"), Cluster("h100-sxm"))


def paper(context=144):
    return [StepPoint.of_throughput(pools, B=B, s_ctx=context, tokens_per_gpu_s=rate) for pools, B, rate in PAPER]


def as_measured(model, point):
    ms = model.tpot(point.n_a, point.n_e, point.B, point.s_ctx, Saturated()).tpot
    return StepPoint(point.n_a, point.n_e, point.B, point.s_ctx, ms)


def test_a_point_by_hand():
    point = StepPoint.of_throughput("5A10E", B=256, s_ctx=144, tokens_per_gpu_s=170)
    assert (point.n_a, point.n_e, point.name) == (5, 10, "5A10E at B = 256")
    assert point.tpot_ms == pytest.approx(256 / (15 * 170) * 1e3)
    assert point.tokens_per_gpu_s == pytest.approx(170)


@given(scale=st.floats(0.3, 5), request_us=st.floats(0, 30), row_us=st.floats(0, 5))
def test_three_points_settle_three_terms(base, scale, request_us, row_us):
    truth = ScaledLatencyModel(base, StepTerms(scale, request_us, row_us))
    found = fitted_to(base, [as_measured(truth, p) for p in paper()[:3]], Saturated(), prior=SURE).terms
    assert (found.scale, found.request_us, found.row_us) == pytest.approx((scale, request_us, row_us), abs=1e-3)


@given(count=st.integers(1, 6), seed=st.integers(0, 99))
def test_any_number_of_points_gives_terms_that_are_not_negative(base, count, seed):
    rng = np.random.default_rng(seed)
    points = [
        StepPoint(*(int(n) for n in rng.integers(1, 20, 3)), 100.0, float(rng.uniform(1, 500))) for _ in "x" * count
    ]
    terms = fitted_to(base, points, Saturated()).terms
    assert min(terms.scale, terms.request_us, terms.row_us) >= 0


@given(seed=st.integers(0, 10_000))
def test_the_ridge_is_the_least_over_a_fine_neighbourhood(seed):
    """Convex: no step away from the answer, inside the allowed region, is better."""
    rng = np.random.default_rng(seed)
    rows, center, widths = rng.uniform(0, 1, (3, 3)), np.array([1.0, 0, 0]), rng.uniform(0.1, 5, 3)

    def off(x):
        return np.sum(((rows @ x - 1) / 0.05) ** 2) + np.sum(((x - center) / widths) ** 2)

    best = ridge(rows, 0.05, center, widths)
    for step in itertools.product((-1, 0, 1), repeat=3):
        for size in (1e-4, 1e-2, 1):
            assert off(np.maximum(0, best + size * np.array(step))) >= off(best) - 1e-9


def test_one_slow_point_slows_everything(base):
    twice = as_measured(ScaledLatencyModel(base, StepTerms(2)), paper()[0])
    fitted = fitted_to(base, [twice], Saturated())
    assert fitted.tpot(1, 6, 64, 144, Saturated()).tpot == pytest.approx(twice.tpot_ms, rel=0.02)
    assert fitted.terms.scale > 1.6
    assert fitted.tpot(4, 8, 300, 144, Saturated()).tpot > 1.7 * base.tpot(4, 8, 300, 144, Saturated()).tpot


def test_points_that_the_model_meets_leave_it_alone(base):
    points = [as_measured(base, p) for p in paper()]
    terms = fitted_to(base, points, Saturated()).terms
    assert (terms.scale, terms.request_us, terms.row_us) == pytest.approx((1, 0, 0), abs=1e-9)


def test_left_out_is_the_fit_to_the_others(base):
    points = paper()
    want = fitted_to(base, points[1:], Saturated()).tpot(1, 6, 64, 144, Saturated()).tpot
    assert left_out(base, points, Saturated())[0] == want


@pytest.mark.parametrize("context", [144, 272])
def test_each_of_the_papers_points_follows_from_the_other_three(base, context):
    for point, ms in zip(paper(context), left_out(base, paper(context), Saturated()), strict=True):
        assert ms == pytest.approx(point.tpot_ms, rel=0.1), point.name


def test_a_fitted_model_plans_and_its_colocated_column_is_as_slow(olmoe, small_cluster, skewed):
    model = LatencyModel.roofline(olmoe, small_cluster)
    given = {"batch": 100, "trace": skewed(16, 64), "context": 400, "max_attention": 3, "max_experts": 6}
    fast = plan(olmoe, small_cluster, slo=1000, **given, max_batch=512)
    table = fast.problem.table
    point = StepPoint(fast.n_attention, fast.n_experts, 100, 400, 3 * fast.tpot_ms)
    fitted = fitted_to(model, [point], table)
    slow = plan(olmoe, small_cluster, slo=1000, **given, max_batch=512, latency=fitted)
    assert slow.tpot_ms == pytest.approx(3 * fast.tpot_ms, rel=0.05)
    assert fast.colocated
    assert slow.colocated
    assert fitted.terms.scale > 1.5
    assert slow.colocated.tpot_ms > fitted.terms.scale * fast.colocated.tpot_ms


def test_it_says_what_it_was_fitted_to(base):
    text = fitted_to(base, paper()[:2], Saturated()).explain()
    assert "fitted to 1A6E at B = 64, 5A10E at B = 256" in text
    assert "per request and layer" in text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ((0, 6, 64, 144, 90.0), "n_a"),
        ((1, 6.0, 64, 144, 90.0), "n_e"),
        ((1, 6, True, 144, 90.0), "StepPoint.B"),
        ((1, 6, 64, -1, 90.0), "s_ctx"),
        ((1, 6, 64, 144, float("nan")), "tpot_ms"),
        ((1, 6, 64, 144, 10**400), "tpot_ms"),
    ],
)
def test_a_point_that_cannot_be_is_refused(fields, says):
    with pytest.raises(JanusError, match=says) as error:
        StepPoint(*fields)
    assert error.value.code == "points.range"


def test_fits_refuse_what_is_no_point(base):
    for wrong, code in ((None, "points.kind"), ([1], "points.kind"), ([], "points.empty"), ({}, "points.kind")):
        with pytest.raises(JanusError) as error:
            fitted_to(base, wrong, Saturated())
        assert error.value.code == code
    with pytest.raises(JanusError, match=r"points.kind"):
        fitted_to("roofline", paper(), Saturated())
    with pytest.raises(JanusError, match=r"points.kind"):
        fitted_to(base, paper(), Saturated(), prior=0.02)
    with pytest.raises(JanusError, match=r"points.empty"):
        left_out(base, paper()[:1], Saturated())
    for wrong in ({"error": 0}, {"scale": -1}, {"work_us": float("inf")}):
        with pytest.raises(JanusError, match=r"points.range"):
            Prior(**wrong)
    with pytest.raises(JanusError, match="tokens_per_gpu_s"):
        StepPoint.of_throughput("1A6E", B=64, s_ctx=144, tokens_per_gpu_s=0)
    with pytest.raises(JanusError, match=r"points.range"):
        StepPoint.of_throughput("1A6E", B=0, s_ctx=144, tokens_per_gpu_s=99)


def test_fit_takes_whole_steps(base):
    fitted = LatencyModel.fit(paper(), model=base.model, cluster=base.cluster, activation=Saturated())
    assert isinstance(fitted, ScaledLatencyModel)
    assert fitted.terms == fitted_to(base, paper(), Saturated()).terms
    one = LatencyModel.fit(paper()[0], model=base.model, cluster=base.cluster, activation=Saturated())
    assert one.points == ("1A6E at B = 64",)


@pytest.mark.parametrize(
    ("points", "activation", "code"),
    [
        (paper(), None, "points.activation"),
        ("tables.csv", Saturated(), "points.activation"),
        ([], Saturated(), "points.activation"),
        ([*paper(), "2A6E"], Saturated(), "points.kind"),
    ],
)
def test_fit_refuses_steps_without_an_activation_and_one_without_steps(base, points, activation, code):
    with pytest.raises(JanusError) as caught:
        LatencyModel.fit(points, model=base.model, cluster=base.cluster, activation=activation)
    assert caught.value.code == code
