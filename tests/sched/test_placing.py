"""Placements: valid for any sizes, as good as they claim. Layer 1 (integers; one test needs the recorded routing)."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError, Placement, RoutingTrace
from janus.sched import place, replicate
from janus.sched.hosts import Load, Pressure, assign_hosts
from janus.sched.judging import mean_a_max
from janus.sched.placing import METHODS, eplb
from janus.sched.popularity import popularity


def small_trace(seed=0, T=40, L=2, K=3, E=12):
    rng = np.random.default_rng(seed)
    return RoutingTrace(np.argsort(rng.random((T, L, E)) ** 2, axis=-1)[..., :K], E)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 4), st.sampled_from(["eplb", "coactivation"]))
def test_every_slot_that_can_be_used_is_used_once(seed, G, extra, method):
    rng = np.random.default_rng(seed)
    E = int(rng.integers(1, 20))
    C = -(-E // G) + extra
    counts = rng.integers(0, 100, size=E) * (rng.random(E) < 0.8)
    placement = place(counts, G, C, method=method)  # the constructor refuses a duplicate and a missing expert
    assert placement.uniform
    assert (placement.slots >= 0).sum() == min(G * C, E * G)
    assert (placement.logcnt[0] == replicate(counts, G * C, max_replicas=G)).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 3))
def test_janus_places_any_sizes(seed, G, extra):
    rng = np.random.default_rng(seed)
    E = int(rng.integers(4, 20))
    C = -(-E // G) + extra
    placement = place(rng.integers(0, 100, size=E), G, C, top_k=3, batch_sizes=(2, 8))
    assert (placement.slots >= 0).sum() == min(G * C, E * G)


@pytest.mark.parametrize("method", METHODS)
def test_edges(method):
    one = place([5, 1, 1], 1, 3, method=method, top_k=2)  # G = 1
    assert sorted(one.slots[0, 0].tolist()) == [0, 1, 2]
    thin = place([5, 1, 1], 3, 1, method=method, top_k=2)  # C = 1
    assert sorted(thin.slots[0, :, 0].tolist()) == [0, 1, 2]
    uneven = place([5, 1, 1, 4, 2], 2, 3, method=method, top_k=2)  # E not divisible by G
    assert (uneven.slots >= 0).all()
    idle = place([5, 1], 2, 4, method=method, top_k=1)  # two replicas each is all that can be used
    assert idle.logcnt[0].tolist() == [2, 2]
    assert (idle.slots == -1).sum() == 4


@pytest.mark.parametrize("method", METHODS)
def test_the_same_input_gives_the_same_placement(method):
    trace = small_trace()
    first, second = (place(trace, 3, 5, method=method, batch_sizes=(4,), seed=7) for _ in range(2))
    assert first == second
    assert first.num_layers == 2
    assert not first.uniform


def test_eplb_by_hand():
    assert place([8, 4, 2, 2], 2, 3, method="eplb").slots[0].tolist() == [[0, 1, 2], [0, 1, 3]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.integers(1, 6))
def test_load_is_balanced_where_room_is_no_limit(weights, G):
    weight = np.array(weights)
    rule = Load(weight, G)
    assign_hosts(weight, np.ones(len(weight), dtype=np.int32), (G, len(weight)), rule)
    assert rule.load.sum() == pytest.approx(weight.sum())
    assert rule.load.max() - rule.load.min() <= weight.max() + 1e-9  # what always taking the lightest promises


def test_spread_gives_many_experts_two_replicas_before_any_has_three():
    (layer,), _ = popularity([3, 3, 1, 1], 1)
    assert np.bincount(spread(layer, (4, 2), (1,)).ravel()).tolist() == [2, 2, 2, 2]
    assert np.bincount(eplb(layer, (4, 2)).ravel()).tolist() == [3, 3, 1, 1]


def test_spread_uses_every_pair_of_hosts():
    (layer,), _ = popularity([1, 1, 1, 1, 1, 1], 1)
    placement = Placement(spread(layer, (4, 3), (8,)), 6)
    assert len({placement.hosts(e) for e in range(6)}) == 6  # six experts, six pairs of four instances


def test_a_swap_makes_room_when_every_open_instance_holds_the_expert():
    # two replicas of the light expert 3; when they come, only one instance is open
    weight, replicas = np.array([9.0, 9.0, 9.0, 1.0]), np.array([1, 1, 1, 2], dtype=np.int32)
    rule = Load(weight, 3)
    rule.load[:] = [0, 50, 100]  # drives every heavy expert to instance 0, then 1
    slots = assign_hosts(weight, replicas, (3, 2), rule)
    assert sorted(slots[slots >= 0].tolist()) == [0, 1, 2, 3, 3]
    tight = Pressure(np.array([[0, 0, 9], [0, 0, 9], [9, 9, 0]]).astype(float), 2)
    slots = assign_hosts(np.array([3.0, 2.0, 1.0]), np.array([1, 1, 2], dtype=np.int32), (2, 2), tight)
    assert [2 in row for row in slots.tolist()] == [True, True]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000))
def test_any_rule_finds_room_for_any_replica_counts(seed):
    rng = np.random.default_rng(seed)
    E, G, C = rng.integers(1, 9), int(rng.integers(1, 6)), int(rng.integers(1, 7))
    replicas = rng.integers(1, G + 1, size=E).astype(np.int32)
    if replicas.sum() > G * C:
        return
    rule = Load(rng.random(E), G)
    rule.load = rng.random(G) * 100  # a bias that fills some instances first
    slots = assign_hosts(rng.random(E), replicas, (G, C), rule)
    assert (np.bincount(slots[slots >= 0], minlength=E) == replicas).all()
    assert all(len(set(row) - {-1}) == sum(e >= 0 for e in row) for row in slots.tolist())


def test_pressure_counts_the_pairs_on_an_instance():
    trace = small_trace(T=60, E=8)
    pairs = trace.coactivation(0).astype(float)
    rule = Pressure(pairs, 2)
    slots = assign_hosts(trace.counts()[0].astype(float), np.ones(8, dtype=np.int32), (2, 4), rule)
    for g in range(2):
        by_hand = sum(pairs[a, b] for i, a in enumerate(slots[g]) for b in slots[g, i + 1 :])
        assert rule.total[g] == by_hand


def test_coactivation_separates_experts_that_fire_together():
    ids = np.array([[[0, 1]], [[2, 3]]] * 8)
    slots = place(RoutingTrace(ids, 4), 2, 2, method="coactivation").slots[0]
    assert sorted(sorted(row) for row in slots.tolist()) in ([[0, 2], [1, 3]], [[0, 3], [1, 2]])


def test_batches_from_counts_hold_distinct_experts_by_popularity():
    (layer,), _ = popularity([0, 1, 1, 30, 30], 2)
    ids = layer.batches(16, 20, np.random.default_rng(0))
    assert ids.shape == (20, 16, 2)
    assert (ids[..., 0] != ids[..., 1]).all()
    seen = np.bincount(ids.ravel(), minlength=5)
    assert seen[0] == 0
    assert seen[3:].min() > 5 * seen[1:3].max()


def test_janus_is_no_worse_than_eplb_on_recorded_routing(shared):
    ids = np.load(shared / "data" / "routing" / "gptoss20b.npz")["topk"].astype(np.int16)[
        :, :, ::6
    ]  # requests, steps, four layers of 24, K
    train, test = (RoutingTrace(part.reshape(-1, 4, 4), 32) for part in (ids[:96], ids[96:]))
    means = {}
    for method in METHODS:
        placement = place(train, 8, 5, method=method, batch_sizes=(16,))
        rng = np.random.default_rng(1)
        layers = [p.batches(16, 50, rng) for p in popularity(test, 4)[0]]
        means[method] = np.mean([mean_a_max(placement.slots[i], 32, [b]) for i, b in enumerate(layers)])
    assert means["janus"] <= means["eplb"]
    assert means["janus"] <= means["coactivation"]


@pytest.mark.parametrize("method", METHODS)
def test_previous_renames_and_changes_nothing_else(method):
    trace = small_trace()
    plain = place(trace, 3, 5, method=method, batch_sizes=(4,))
    rng = np.random.default_rng(2)
    shuffled = rng.permuted(plain.slots[:, rng.permutation(3)], axis=-1)
    again = place(trace, 3, 5, method=method, batch_sizes=(4,), previous=Placement(shuffled, 12))
    assert (again.slots == shuffled).all()  # nothing moves


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
def test_previous_keeps_the_groups_when_pools_grow_or_shrink(seed, old_G, new_G):
    rng = np.random.default_rng(seed)
    E = int(rng.integers(1, 12))
    old = place(rng.integers(0, 9, size=E), old_G, -(-E // old_G) + 1, method="eplb")
    counts, C = rng.integers(0, 9, size=E), -(-E // new_G) + int(rng.integers(0, 3))
    plain, kept = (place(counts, new_G, C, method="eplb", previous=p) for p in (None, old))
    groups = [sorted(sorted(row) for row in p.slots[0].tolist()) for p in (plain, kept)]
    assert groups[0] == groups[1]
    # greedy pairing keeps at least half of what the best pairing keeps
    common = [[len(set(was) & set(new) - {-1}) for new in plain.slots[0].tolist()] for was in old.slots[0].tolist()]
    rows = common + [[0] * new_G] * (new_G - old_G)
    best = max(sum(rows[g][x] for g, x in enumerate(p)) for p in permutations(range(new_G)))
    pairs = zip(old.slots[0].tolist(), kept.slots[0].tolist(), strict=False)
    assert 2 * sum(len(set(was) & set(now) - {-1}) for was, now in pairs) >= best


def test_previous_of_one_map_serves_every_layer():
    trace = small_trace()
    assert place(trace, 3, 5, method="eplb", previous=Placement.contiguous(12, 3)).num_layers == 2
    with pytest.raises(JanusError, match="one map for every layer"):
        place(trace.counts()[0], 3, 5, method="eplb", previous=place(trace, 3, 5, method="eplb"))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (([1, 2, 3], 1, 2), "sched.slots", "3 experts, 2 slots"),
        (([1, 2, 3], 0, 2), "sched.option", "num_instances"),
        (([1, 2, 3], 2, 2.5), "sched.option", "slots_per_instance"),
        (([1, -1], 2, 2), "sched.counts", "finite"),
        (([1, 2, 3], 2, 2), "sched.option", "top_k=8"),
    ],
)
def test_bad_sizes_are_refused(arguments, code, says):
    with pytest.raises(JanusError, match=says) as caught:
        place(*arguments)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"method": "best"}, "'janus', 'coactivation', 'eplb'"),
        ({"node_size": 2}, "node_size is not in this version"),
        ({"previous": 1}, "previous must be a Placement, got int"),
        ({"previous": Placement.contiguous(4, 2)}, "same model: E=3"),
        ({"batch_sizes": ()}, "at least one"),
        ({"batch_sizes": (0,)}, "batch_sizes"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_bad_options_are_refused_by_name(option, says):
    with pytest.raises(JanusError, match=says):
        place([1, 2, 3], 2, 2, **{"top_k": 2, **option})


def test_an_empty_trace_is_refused():
    with pytest.raises(JanusError, match="0 tokens"):
        place(RoutingTrace(np.zeros((0, 1, 2), dtype=int), 4), 2, 2)


def test_a_single_batch_size_is_refused_with_the_tuple_to_write():
    with pytest.raises(JanusError, match=r"sched\.option.*\(64,\)"):
        place([1, 2, 3], 2, 2, top_k=2, batch_sizes=64)
