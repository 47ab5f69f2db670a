"""The colocated side is timed by the same model as the split one, whatever that is, and stands on the right GPUs."""

from dataclasses import replace

import numpy as np
import pytest

from janus.comm.cost import CostModel
from janus.scale import Cluster, Hardware, LatencyModel, ModelSpec, plan
from janus.scale.kernels.fitted import KernelSet
from janus.scale.search.colocated import colocated_step
from janus.scale.timing.exchange import ExchangeCost
from janus.scale.timing.one_type import on_one_type
from janus.scale.timing.scaled import ScaledLatencyModel, StepTerms

H200 = Hardware.preset("h200-sxm")


def on(problem, latency, **changed):
    return replace(problem, latency=latency, **changed)


def comm_ms(problem, width):
    table = problem.table.extended([(width, 64)])
    return colocated_step(problem, table, width, 64, 64).comm


def test_the_least_time_of_an_exchange_holds_for_both_sides(small_plan):
    old = small_plan.problem.latency
    cost = ExchangeCost(
        CostModel({"in_node": 1e-6, "between_nodes": 4e-6}, {"in_node": 1e-15, "between_nodes": 1e-15}), 4
    )
    floored = LatencyModel(old.model, old.cluster, old.efficiency, cost, comm_floor_us=500.0)
    problem = on(small_plan.problem, floored)
    layers = old.model.moe_layers / 1e3
    assert comm_ms(problem, 1) == 0  # no exchange
    assert comm_ms(problem, 4) == pytest.approx(500 * layers / 4)  # a node's messages take a quarter as long
    assert comm_ms(problem, 8) == pytest.approx(500 * layers)
    assert problem.steps.breakdowns(*(np.array([n]) for n in (1, 3, 64)))[0].comm == pytest.approx(500 * layers)


def test_a_floor_never_shortens_a_longer_exchange(small_plan):
    old = small_plan.problem.latency
    floored = LatencyModel(old.model, old.cluster, old.efficiency, old.cost, comm_floor_us=1e-3)
    for width in (2, 4, 8):
        assert comm_ms(on(small_plan.problem, floored), width) == comm_ms(small_plan.problem, width)


def test_pools_of_two_types_leave_the_colocated_side_the_same_model_of_times(olmoe, skewed):
    """A factor on every part is a factor on the unsplit step too, also where no pair of pools is of one type."""
    fast = Hardware("fast", 6 * 2**30, 2e12, 2e14, 4e14, 2e11, 4, 200)
    a, e = Cluster(fast), Cluster(replace(fast, name="slow", memory_bytes_per_s=1e12))
    ask = {"demand": 500, "slo": 200, "context": 400, "trace": skewed(1, 64), "context_cv": 0.0, "expert_cluster": e}
    ask |= {"max_attention": 2, "max_experts": 4, "max_batch": 64}
    base = LatencyModel.roofline(olmoe, a, e)
    slower = ScaledLatencyModel(base, StepTerms(scale=3.0))
    one, three = (plan(olmoe, a, latency=latency, **ask) for latency in (base, slower))
    assert three.pick.tpot_ms > 2 * one.pick.tpot_ms
    assert three.colocated.tpot_ms > 2 * one.colocated.tpot_ms
    assert "3.00 x the latency model" in str(three)
    assert "3.00 x" not in str(one)


@pytest.mark.parametrize("floor", [0.0, 80.0])
def test_one_type_of_two_keeps_what_was_given(olmoe, floor):
    a, e = Cluster("h200-sxm"), Cluster("a100-sxm")
    measured = ExchangeCost(CostModel({"in_node": 1e-6, "between_nodes": 4e-6}), 8)
    given = LatencyModel(olmoe, a, LatencyModel.roofline(olmoe, a).efficiency, measured, e, comm_floor_us=floor)
    alone = on_one_type(given, e)
    assert (alone.cluster, alone.expert_cluster, alone.comm_floor_us) == (e, e, floor)
    assert alone.cost.model == measured.model
    assumed = on_one_type(LatencyModel.roofline(olmoe, a, e), a)
    assert assumed.cost.model == ExchangeCost.of(a).model  # not the slower network of the two


def test_fitted_kernels_stay_fitted_on_one_type(made_up_tables):
    model, a, e = ModelSpec.from_config("deepseek-v3"), Cluster("h200-sxm"), Cluster("a100-sxm")
    fitted = on_one_type(LatencyModel.fit(made_up_tables, model=model, cluster=a, expert_cluster=e), a)
    plain = LatencyModel.fit(made_up_tables, model=model, cluster=a)
    assert fitted.provenance == plain.provenance
    assert fitted.comm_floor_us == plain.comm_floor_us
    assert fitted.cost.model == plain.cost.model


def test_a_price_does_not_make_another_card(made_up_tables):
    """Kernels measured on an H200 time an H200, whatever it costs."""
    model, kernels = ModelSpec.from_config("deepseek-v3"), KernelSet.fit(made_up_tables)
    free, paid = (LatencyModel.of_kernels(kernels, model, Cluster(replace(H200, usd_per_hour=u))) for u in (None, 3.5))
    assert paid.provenance == free.provenance
    assert paid.attention_layer_us(8, 256) == free.attention_layer_us(8, 256)
    assert H200.alike(replace(H200, usd_per_hour=1.0))
    assert not H200.alike(replace(H200, memory_bytes_per_s=1e12))


def test_one_card_in_two_stocks_is_looked_at_twice(olmoe, skewed):
    """The same card may stand in small nodes for one pool and in large ones for the other."""
    toy = Hardware("toy", 6 * 2**30, 1e12, 2e14, 4e14, 2e11, 4, 200)
    ask = {"demand": 3000, "slo": 20, "context": 400, "trace": skewed(1, 64), "max_attention": 4, "max_experts": 6}
    many, one = Cluster(toy), Cluster(toy, gpus=1)
    for a, e in ((many, one), (one, many)):
        found = plan(olmoe, a, expert_cluster=e, max_batch=256, **ask)
        assert found.colocated is not None
        assert found.colocated.gpus > 1


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_phase_takes_its_time_on_both_sides(small_plan, scale):
    old, free = small_plan.problem.latency, {"in_node": 0.0, "between_nodes": 0.0}
    cost = ExchangeCost(CostModel(free, free, round_s=1e-4), 4)
    phased = ScaledLatencyModel(LatencyModel(old.model, old.cluster, old.efficiency, cost), StepTerms(scale))
    each = scale * old.model.moe_layers * 0.1
    assert comm_ms(on(small_plan.problem, phased), 1) == 0
    assert comm_ms(on(small_plan.problem, phased), 4) == pytest.approx(2 * each)  # dispatch and combine
    assert comm_ms(on(small_plan.problem, phased), 8) == pytest.approx(2 * each)  # flat: one phase each
    slow = CostModel({"in_node": 0.0, "between_nodes": 1.0}, free, round_s=1e-4)
    cost = ExchangeCost(slow, 4)
    phased = LatencyModel(old.model, old.cluster, old.efficiency, cost)
    layers = old.model.moe_layers * 1e3
    assert comm_ms(on(small_plan.problem, phased), 8) == pytest.approx(2 * layers * (1 + 2e-4))  # node by node: two
