"""One row of the table: its statistics by hand, and cases whose answer is known exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import RoutingTrace
from janus.scale import ActivationTable
from janus.scale.activation.batches import Routing, inclusion
from janus.scale.activation.montecarlo import MonteCarlo, Seen, summary
from janus.scale.activation.table import analytic_bound


def test_the_summary_by_hand():
    # two batch sizes, two of four layers, two samples each
    a_max = np.array([[[1.0, 3.0], [4.0, 6.0]], [[2.0, 2.0], [4.0, 4.0]]])
    row = summary(Seen(a_max, 10 * a_max), 4, together=False)
    # layers' means 2, 5 then 2, 4: the mean 3.5, 3.0 may not fall
    assert row.mean == (3.5, 3.5)
    assert row.worst == (5.0, 5.0)
    assert row.tokens == (35.0, 35.0)
    # draws: variance 2 in both layers over 4 values; layers: variance of (2, 5) is 4.5, over 2, half of them left out
    assert row.stderr[0] == pytest.approx((2 / 4 + 4.5 / 2 * 0.5) ** 0.5)
    assert row.stderr[1] == pytest.approx((2 / 2 * 0.5) ** 0.5)  # no draws' part, (2, 4) has variance 2


def test_all_layers_measured_leaves_the_draws_alone():
    a_max = np.array([[[1.0, 1.0], [9.0, 9.0]]])  # layers differ, draws do not
    assert summary(Seen(a_max, a_max), 2, together=False).stderr == (0.0,)


def test_the_worst_layer_is_never_below_the_mean(skewed):
    table = ActivationTable.build(skewed(1, 24), [(3, 8)], range(1, 40), top_k=2, samples=2)
    for B in table.batch_sizes:
        assert table.worst_layer(3, B) >= table.at(3, B).a_max


def test_sixteen_times_the_draws_give_a_quarter_of_the_error(skewed):
    few, many = (
        ActivationTable.build(skewed(1, 24), [(3, 8)], [6, 8, 12], top_k=2, samples=n).rows[3, 8] for n in (12, 192)
    )
    # mean of three batch sizes; a standard deviation of 36 values is off by an eighth or so
    assert np.mean(many.stderr) / np.mean(few.stderr) == pytest.approx(1 / 4, rel=0.5)


def test_one_instance_activates_as_many_experts_as_probability_says(skewed):
    """G = 1: a_max is the number of distinct experts, whose mean is the sum of 1 - (1 - p)^B, and every token is there."""
    counts = skewed(1, 32)
    table = ActivationTable.build(counts, [(1, 32)], [1, 4, 16, 64], top_k=4, samples=300)
    p = inclusion(counts[0], 4)
    for B in table.batch_sizes:
        seen = table.at(1, B)
        want = (1 - (1 - p) ** B).sum()
        assert abs(seen.a_max - want) <= 4 * table.stderr(1, B) + 1e-9  # exactly 4 at B = 1
        assert seen.tokens == 4 * B


@pytest.mark.parametrize(("n_e", "slots"), [(1, 6), (2, 3), (6, 1)])
def test_a_token_that_takes_every_expert_activates_them_all(n_e, slots):
    table = ActivationTable.build(np.arange(1, 7), [(n_e, slots)], [1, 5], top_k=6)
    for B in (1, 5):
        assert table.at(n_e, B) == (slots, slots * B)
        assert table.stderr(n_e, B) == 0
        assert table.worst_layer(n_e, B) == slots


@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("placing", ["janus", "eplb"])
def test_the_bound_lies_above_what_is_measured(skewed, top_k, placing):
    grid = [(2, 12), (3, 10), (4, 6), (8, 4)]
    table = ActivationTable.build(skewed(2, 24), grid, [1, 3, 10, 40], top_k=top_k, placing=placing, samples=16)
    for n_e, slots in grid:
        for B in table.batch_sizes:
            assert table.bound(n_e, B, slots) >= table.at(n_e, B, slots).a_max


def test_the_bound_counts_no_empty_slot():
    p, full = np.array([0.5, 0.25]), np.array([[0], [1]])
    spare = np.array([[0, -1], [1, -1]])
    # one active expert at most per instance: 1/2 + sqrt(2 * 1/2 * ln 2) = 1.33, cut by C = 1 but not by C = 2
    assert analytic_bound(p, full, 1) == 2
    assert analytic_bound(p, spare, 1) == pytest.approx(1 + 0.5 + np.log(2) ** 0.5)
    assert analytic_bound(p, spare, 1, shared=True) == analytic_bound(p, spare, 1)


@settings(max_examples=25)
@given(
    st.integers(1, 3), st.integers(4, 20), st.integers(1, 4), st.integers(1, 7), st.integers(0, 4),
    st.sampled_from(["exact", "greedy"]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_counted_at_once_is_batch_by_batch(layers, experts, top_k, n_e, spare, method, recorded, seed):
    """Equal integers from entries per expert alone and from the ids under the balancer that serves."""
    rng = np.random.default_rng(seed)
    slots = -(-experts // n_e) + spare
    if recorded:
        ids = rng.permuted(np.tile(np.arange(experts), (50, layers, 1)), axis=2)[:, :, :top_k].astype(np.int16)
        ids[rng.random(ids.shape) < 0.1] = -1  # no choice
        routing = Routing.of(RoutingTrace(ids, experts))
    else:
        routing = Routing.of(rng.integers(1, 50, (layers, experts)), top_k)
    carlo = MonteCarlo(routing, (1, 5, 60), method=method, placing="eplb", layers=2, samples=3, seed=seed)
    fast, plain = (f(n_e, slots, (1, 5, 60)) for f in (carlo.measure, carlo.measure_plainly))
    assert (fast.a_max == plain.a_max).all()
    assert (fast.tokens == plain.tokens).all()


@pytest.mark.parametrize("method", ["tokens", "random", "round_robin"])
def test_methods_that_look_at_the_order_of_entries_are_measured_batch_by_batch(skewed, method):
    table = ActivationTable.build(skewed(1, 12), [(3, 6)], [4, 30], top_k=2, method=method, samples=2)
    plain = table.carlo.measure_plainly(3, 6, (4, 30))
    assert table.at(3, 30).a_max == plain.a_max[1].mean()


def test_without_numba_it_is_measured_batch_by_batch(skewed, monkeypatch):
    import janus.sched.search_loops as loops

    want = ActivationTable.build(skewed(1, 12), [(3, 6)], [4, 30], top_k=2).rows
    monkeypatch.setattr(loops, "numba", None)
    assert ActivationTable.build(skewed(1, 12), [(3, 6)], [4, 30], top_k=2).rows == want


def test_layers_of_one_step_that_move_together_are_not_averaged_out():
    # three layers that always agree: their mean is as noisy as one
    same = np.array([[[1, 2, 3, 4]] * 3])
    row = summary(Seen(same, same), 3, together=True)
    assert row.correlation == 1
    assert row.deviation == (pytest.approx((5 / 3) ** 0.5),)
    assert row.stderr == (pytest.approx((5 / 3 / 4) ** 0.5),)
    # the same values drawn each on its own count as three times as many
    assert summary(Seen(same, same), 3, together=False).stderr == (pytest.approx((5 / 3 / 12) ** 0.5),)


@pytest.mark.parametrize("common", [0.0, 0.3, 0.8])
def test_the_correlation_is_found_again(common):
    rng = np.random.default_rng(0)
    shape = (12, 4, 200)
    shared, own = rng.normal(size=(12, 1, 200)), rng.normal(size=shape)
    values = 50 + 3 * (common**0.5 * shared + (1 - common) ** 0.5 * own)
    assert summary(Seen(values, values), 4, together=True).correlation == pytest.approx(common, abs=0.05)


def test_every_layer_is_placed_and_the_measured_ones_as_measured(skewed):
    carlo = MonteCarlo(
        Routing.of(skewed(7, 16), 2), (4, 8), method="exact", placing="janus", layers=3, samples=2, seed=0
    )
    placed, measured = carlo.placed(3, 7), carlo.placement(3, 7)
    assert placed.num_layers == 7
    assert (placed.slots[carlo.layers] == measured.slots).all()
    others = [layer for layer in range(7) if layer not in carlo.layers]
    assert (placed.slots[others] == carlo.place(others, 3, 7).slots).all()
    alone = MonteCarlo(Routing.of(skewed(2, 16), 2), (4,), method="exact", placing="janus", layers=4, samples=2, seed=0)
    assert alone.placed(3, 7) == alone.placement(3, 7)
