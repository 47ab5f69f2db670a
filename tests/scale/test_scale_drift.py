"""Drift: what a meter sees of a placement, and what it does to the table."""

import numpy as np
import pytest

from janus import Placement
from janus.scale import ActivationTable, Cluster, LatencyModel
from janus.scale.online.drift import DriftMeter, Fixed, halves, shares, stretched, tpot_regret
from janus.scale.timing.latency import Activated
from janus.sched import balance


@pytest.fixture(scope="module")
def popular(skewed):
    return {seed: shares(skewed(5, 16, seed), 5) for seed in (0, 1)}


@pytest.fixture(scope="module")
def meter(popular):
    return DriftMeter(popular[0], 2, 5, layers=3, samples=24, sizes=(4, 16))


def test_shares_lend_the_nearest_row_and_sum_to_one(skewed):
    counts = skewed(3, 16)
    got = shares(counts, 7)
    assert got.shape == (7, 16)
    np.testing.assert_allclose(got.sum(axis=1), 1)
    np.testing.assert_allclose(got[[0, 3, 6]], counts / counts.sum(axis=1, keepdims=True))


def test_a_placement_is_judged_by_the_exact_balancer(meter, popular):
    """Batch by batch with `balance`, on the same active sets."""
    from janus.sched.popularity import Popularity

    placement = meter.sample(popular[0], 4)
    tops = np.zeros((3, 24, 2))
    for i, layer in enumerate(meter.layers):
        p = Popularity(np.rint(popular[1][layer] * 2**30), 2)
        active = p.active_sets((4, 16), 24, (0, 2)).reshape(16, 24, 2)
        for n, s in np.ndindex(24, 2):
            ids = np.flatnonzero(active[:, n, s])[:, None]
            tops[i, n, s] = balance(ids, placement, layer=i).a_max
    np.testing.assert_allclose(meter.a_max(placement, popular[1]), tops.mean(axis=(0, 1)))


def test_the_table_is_not_stretched_by_what_it_knows(meter, popular):
    assert meter.layers == [0, 2, 4]
    assert meter.stretch(popular[0], popular[0], 4) == 1.0
    whole = meter.place(popular[0], 4, None)
    assert meter.maps(whole) == meter.sample(popular[0], 4)
    drift = meter.compare(whole, popular[0], popular[0])
    assert drift.stretch == 1.0
    assert drift.followed <= 1.0
    assert all(c.moved == 0 for c in drift.candidates if c.previous and np.array_equal(c.a_max, drift.now))


def test_a_placement_that_follows_moves_less_than_a_fresh_one(meter, popular):
    drift = meter.compare(meter.place(popular[0], 4, None), popular[1], popular[1])
    followed, fresh = drift.candidates
    assert (followed.previous, fresh.previous) == (True, False)
    assert followed.moved < fresh.moved
    assert drift.followed == drift.after(followed)
    assert drift.stretch == pytest.approx((drift.now / drift.known).max())


def test_the_stretch_of_a_pool_is_that_of_its_placement_afterwards(meter, popular):
    """What is assumed of pools before they are chosen is what is measured of them afterwards."""
    old = meter.place(popular[0], 4, None)
    assumed = meter.stretch(popular[1], popular[1], 5, old)
    placed = meter.place(popular[1], 5, old)
    assert meter.compare(placed, popular[1], popular[1]).stretch == assumed


def test_the_nearest_size_is_so_in_proportion(meter):
    assert [meter.nearest(B) for B in (0, 1, 7, 9, 1000)] == [0, 0, 0, 1, 1]


def test_a_stretched_table_reads_more_experts_but_no_more_than_it_has_slots(skewed):
    table = ActivationTable.build(skewed(2, 16), [(4, 5), (5, 5)], (1, 8, 64), top_k=2, samples=2)
    twice = stretched(table, lambda n_e: 2.0 if n_e == 4 else 1.0)
    for B in (1, 8):
        assert twice.at(4, B).a_max == pytest.approx(min(5, 2 * table.at(4, B).a_max))
        assert twice.at(4, B).tokens == pytest.approx(2 * table.at(4, B).tokens)
        assert twice.at(5, B) == table.at(5, B)
    assert twice.at(4, 64).a_max <= 5


def test_regret_is_the_share_of_the_step_that_other_placement_takes_off(olmoe):
    latency = LatencyModel.roofline(olmoe, Cluster("h100-sxm"))
    now, other = Activated(12.0, 40.0), Activated(10.0, 40.0)
    got = tpot_regret(latency, (2, 8), 64, 500.0, now, other)
    by_hand = latency.tpot(2, 8, 64, 500.0, Fixed(now)).tpot / latency.tpot(2, 8, 64, 500.0, Fixed(other)).tpot - 1
    assert got == by_hand > 0
    assert tpot_regret(latency, (2, 8), 64, 500.0, other, now) < 0
    assert tpot_regret(latency, (2, 8), 64, 500.0, now, now) == 0


def test_one_map_for_every_layer_is_judged_on_all_of_them(meter, popular):
    one = Placement(meter.place(popular[0][:1], 4, None).slots[0], 16)
    assert one.uniform
    assert meter.maps(one).num_layers == 3


def test_halves_add_up_and_are_alike(skewed):
    counts = skewed(3, 16)
    first, second = halves(counts, seed=1)
    np.testing.assert_array_equal(first + second, counts)
    assert (np.abs(first - second) <= 6 * np.sqrt(counts)).all()  # six standard deviations of a fair deal
    np.testing.assert_array_equal(first, halves(counts, seed=1)[0])
    assert (first != halves(counts, seed=2)[0]).any()


@pytest.mark.parametrize("counts", [[[0.5, 0.25]], [[1, 0]], [[2.0**60, 1]]])
def test_what_cannot_be_dealt_is_taken_as_it_is(counts):
    for half in halves(counts, seed=0):
        np.testing.assert_array_equal(half, counts)
