"""A scaled latency model: its terms by hand, and one answer whichever way it is asked."""

import itertools

import pytest

from janus.scale import Cluster, LatencyModel, ModelSpec
from janus.scale.timing.latency import Activated
from janus.scale.timing.scaled import ScaledExchange, ScaledLatencyModel, StepTerms


class Saturated:
    """Every expert is read: ceil(160 / n_e) on the busiest instance; fewer for a small batch."""

    def at(self, n_e, B):
        return Activated(-(-160 // n_e) * (0.85 if B < 100 else 1.0), 1.2 * 6 * B / n_e)


@pytest.fixture(scope="module")
def base():
    return LatencyModel.roofline(ModelSpec.from_config("deepseek-v2"), Cluster("h100-sxm"))


def test_terms_by_hand(base):
    # 60 layers x ceil(5 / 2) = 3 requests x 10 us = 1.8 ms; 59 MoE layers x 5 rows x 2 us = 0.59 ms
    plain = base.tpot(2, 6, 5, 100, Saturated())
    step = ScaledLatencyModel(base, StepTerms(3, 10, 2)).tpot(2, 6, 5, 100, Saturated())
    assert step.attention == pytest.approx(3 * plain.attention + 1.8)
    assert step.moe == pytest.approx(3 * plain.moe + 0.59)
    assert (step.comm, step.other) == pytest.approx((3 * plain.comm, 3 * plain.other))
    assert step.tpot == pytest.approx(3 * plain.tpot + 1.8 + 0.59)


def test_terms_as_they_stand_change_nothing(base):
    same = ScaledLatencyModel(base, StepTerms())
    assert same.tpot(3, 7, 50, 200, Saturated()) == base.tpot(3, 7, 50, 200, Saturated())


def test_the_parts_agree_with_the_step(base):
    """What a colocated deployment is made of adds up to the same attention, moe and exchange."""
    scaled = ScaledLatencyModel(base, StepTerms(1.7, 4, 0))
    m, step = scaled.model, scaled.tpot(4, 8, 100, 300, Saturated())
    attention, shared, other = scaled.attention_side_us(25, 300)
    assert attention == scaled.attention_layer_us(25, 300)
    assert step.attention == pytest.approx((m.layers * attention + m.moe_layers * shared) / 1e3)
    assert step.other == pytest.approx(other / 1e3)
    assert step.moe == pytest.approx(m.moe_layers * scaled.moe_layer_us(Saturated().at(8, 100), 100) / 1e3)
    assert step.comm == pytest.approx(m.moe_layers * scaled.cost.layer_s(4, 8, 100, 2 * m.hidden) * 1e3)
    assert scaled.expert_cost.read_us == pytest.approx(1.7 * base.expert_cost.read_us)


def test_a_scaled_exchange_scales_every_way_to_ask(base):
    twice = ScaledExchange(base.cost, 2)
    for n_a, n_e, B in itertools.product((1, 3), (2, 9), (1, 40)):
        assert twice.layer_s(n_a, n_e, B, 64) == pytest.approx(2 * base.cost.layer_s(n_a, n_e, B, 64))
        assert twice.layers_s(n_a, n_e, B, 64)[0] == pytest.approx(2 * base.cost.layer_s(n_a, n_e, B, 64))
        assert twice.listed_s(n_a, n_e, B, 64) == pytest.approx(2 * base.cost.listed_s(n_a, n_e, B, 64))
        regimes = twice.regimes_s(n_a, n_e, B, 64)
        assert min(regimes.values()) == pytest.approx(twice.layer_s(n_a, n_e, B, 64))
