"""Placements: valid for any sizes, as good as they claim. Layer 1 (integers; one test needs the recorded routing)."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError, Placement, RoutingTrace
from janus.sched import place, replicate, searching
from janus.sched.baselines import eplb, eplb_global
from janus.sched.hosts import Load, Pressure, assign_hosts, deal
from janus.sched.judging import mean_a_max
from janus.sched.placing import METHODS
from janus.sched.popularity import Popularity, popularity, whole
from janus.sched.starting import Frame, first_map

PINNED = [
    [7, 13, 22, 15, 20, 19, 18, 14],
    [9, 19, 10, 5, 11, 21, 18, 1],
    [4, 3, 2, 15, 11, 17, 8, 16],
    [12, 23, 5, 20, 16, 6, 17, 0],
]


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


def test_the_first_map_gives_many_experts_two_replicas_before_any_has_three():
    counts = np.array([3.0, 3.0, 1.0, 1.0])
    (layer,), _ = popularity(counts, 1)
    first = first_map(layer.activation(1), Frame(4, 2, 4))
    assert np.bincount(first.ravel()).tolist() == [2, 2, 2, 2]
    assert np.bincount(eplb(layer, (4, 2)).ravel()).tolist() == [3, 3, 1, 1]


def test_the_first_map_uses_every_pair_of_hosts():
    (layer,), _ = popularity([1, 1, 1, 1, 1, 1], 1)
    placement = Placement(first_map(layer.activation(8), Frame(4, 3, 6)), 6)
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


@pytest.mark.parametrize("method", ["eplb", "coactivation"])
def test_previous_renames_and_changes_nothing_else(method):
    trace = small_trace()
    plain = place(trace, 3, 5, method=method)
    rng = np.random.default_rng(2)
    shuffled = rng.permuted(plain.slots[:, rng.permutation(3)], axis=-1)
    again = place(trace, 3, 5, method=method, previous=Placement(shuffled, 12))
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
        (([1, 2, 3], 10**6, 2), "sched.option", r"num_instances must be an integer in 1\.\.4096"),
        ((np.ones(5000), 64, 100), "sched.counts", "number of experts"),
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
        ({"node_size": 3}, r"divide num_instances=2.*got 3; choose one of \[1, 2\]"),
        ({"node_size": 0}, "node_size must be an integer >= 1"),
        ({"node_size": 1.0}, "node_size must be an integer >= 1"),
        ({"node_size": 1, "method": "eplb"}, "baselines know no nodes.*use method='janus'"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"seed": None}, "seed must be an integer >= 0"),
        ({"progress": "bar"}, "progress must be callable.*got str"),
        ({"progress": "bar", "method": "eplb"}, "progress must be callable.*got str"),
        ({"batch_sizes": (1,) * 65}, "at most 64 batch sizes, got 65"),
        ({"batch_sizes": (2**17,)}, r"each of batch_sizes must be an integer in 1\.\.65536"),
        ({"top_k": True}, "top_k"),
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


def hosts_of(placement):
    """Per layer and expert: the instances that hold it."""
    return [[placement.hosts(e, layer) for e in range(placement.num_experts)] for layer in range(placement.num_layers)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.booleans())
def test_replicas_are_kept_apart_across_nodes(seed, nodes, node_size, extra, from_previous):
    rng = np.random.default_rng(seed)
    E, G = int(rng.integers(3, 20)), nodes * node_size
    C = -(-E // G) + extra
    old = place(rng.integers(0, 99, size=E), 3, -(-E // 3) + 1, method="eplb") if from_previous else None
    counts = rng.integers(0, 100, size=E) ** 2
    placement = place(counts, G, C, top_k=3, batch_sizes=(4,), node_size=node_size, previous=old)
    for hosts in hosts_of(placement)[0]:
        on = {g // node_size for g in hosts}
        assert len(on) == min(len(hosts), nodes)
        if nodes > 1 and G * C >= 2 * E:
            assert len(on) >= 2  # so the loss of any one node loses no expert
    assert (placement.slots >= 0).sum() == min(G * C, E * G)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
def test_dealing_keeps_any_replicas_apart(seed, nodes, node_size):
    rng = np.random.default_rng(seed)
    E, G = int(rng.integers(1, 12)), nodes * node_size
    replicas = rng.integers(1, G + 1, size=E).astype(np.int32)
    C = -(-int(replicas.sum()) // G)
    slots = deal(replicas, rng.permutation(E), (G, C), node_size)
    for e, count in enumerate(replicas.tolist()):
        hosts = np.flatnonzero((slots == e).any(axis=1))
        assert len(hosts) == (slots == e).sum() == count
        assert len(set(hosts // node_size)) == min(count, nodes)


def test_the_first_map_is_dealt_where_greedy_gets_stuck(monkeypatch):
    dealt = []
    monkeypatch.setattr("janus.sched.starting.deal", lambda *a: dealt.append(1) or deal(*a))
    first = first_map(np.array([2, 3, 3, 2, 9]) / 16, Frame.of(6, 2, 5, 3))
    assert dealt
    assert all(len({g // 3 for g in np.flatnonzero((first == e).any(axis=1))}) == 2 for e in range(5))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
def test_previous_of_any_size_is_taken_over_in_place(seed, old_G, new_G):
    rng = np.random.default_rng(seed)
    E = int(rng.integers(3, 14))
    old = place(rng.integers(0, 99, size=E), old_G, -(-E // old_G) + int(rng.integers(0, 3)), method="eplb")
    C = -(-E // new_G) + int(rng.integers(0, 3))
    new = place(rng.integers(0, 99, size=E), new_G, C, top_k=2, batch_sizes=(4,), previous=old)
    assert (new.slots >= 0).sum() == min(new_G * C, E * new_G)
    for was, now in zip(old.slots[0].tolist(), new.slots[0].tolist(), strict=False):
        stayed = [e for e in was[:C] if e >= 0 and e in now]
        assert [now[was.index(e)] for e in stayed] == stayed  # in the slot it had


def test_the_same_counts_again_move_next_to_nothing():
    counts = np.random.default_rng(3).gamma(1.0, size=(2, 48)) * 100
    options = {"top_k": 4, "batch_sizes": (16,)}
    old = place(counts, 6, 10, **options)
    assert place(counts, 6, 10, previous=old, **options).moves(old).share < 0.05
    assert place(counts, 6, 10, seed=1, **options).moves(old).share > 0.2  # what a placement from nothing moves


def test_moves_buy_a_lower_a_max():
    counts = np.random.default_rng(4).gamma(0.5, size=(2, 48)) * 100
    options = {"top_k": 4, "batch_sizes": (16,)}
    old, (layer,) = place(counts[0], 8, 7, **options), popularity(counts[1], 4)[0]
    fresh, new = place(counts[1], 8, 7, **options), place(counts[1], 8, 7, previous=old, **options)
    batches = [layer.batches(16, 400, np.random.default_rng(9))]
    tops = [mean_a_max(p.slots[0], 48, batches) for p in (fresh, new, old)]
    assert tops[0] <= tops[2]
    assert tops[1] <= 1.03 * tops[0]
    assert new.moves(old).total <= 0.5 * fresh.moves(old).total


def test_where_loading_costs_too_much_nothing_is_loaded(monkeypatch):
    old, new = (np.random.default_rng(seed).gamma(0.5, size=48) * 100 for seed in (4, 5))
    options = {"top_k": 4, "batch_sizes": (16,)}
    before = place(old, 8, 7, **options)
    assert place(new, 8, 7, previous=before, **options) != before
    monkeypatch.setattr(searching, "PRICE", 1e6)
    assert place(new, 8, 7, previous=before, **options) == before


def test_a_replica_that_makes_way_leaves_the_others_on_both_nodes():
    old = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [4, -1]])  # the last instance goes, and expert 4 needs a slot
    new = first_map(np.array([1, 9, 9, 9, 9]) / 16, Frame(4, 2, 5, 2), old)
    assert new.tolist() == [[0, 1], [2, 4], [0, 3], [1, 2]]


def test_a_layer_is_placed_without_regard_to_the_others():
    counts = np.random.default_rng(5).gamma(1.0, size=(3, 24)) * 100
    every = place(counts, 4, 8, top_k=3)
    assert [(place(row, 4, 8, top_k=3).slots[0] == every.slots[i]).all() for i, row in enumerate(counts)] == [True] * 3


def test_the_number_of_threads_changes_nothing(monkeypatch):
    counts, maps = np.random.default_rng(6).gamma(1.0, size=(5, 24)) * 100, []
    for threads in (1, 2, 7):
        monkeypatch.setattr(searching, "_cores", lambda threads=threads: threads)
        maps.append(place(counts, 4, 8, top_k=3, batch_sizes=(2, 16)))
    assert maps[0] == maps[1] == maps[2]


def test_a_placement_is_the_same_on_every_machine():
    """Pinned: integers, and float operations whose rounding is fixed, in a fixed order."""
    counts = np.arange(1, 25) ** 2 % 37 + 0.25
    placement = place(counts, 4, 8, top_k=3, batch_sizes=(2, 16), seed=3)
    assert placement.slots[0].tolist() == PINNED


def test_progress_is_told_after_every_layer():
    told = []
    place(np.ones((3, 4)), 2, 3, top_k=1, progress=lambda *now: told.append(now))
    assert told == [(1, 3, "layers placed"), (2, 3, "layers placed"), (3, 3, "layers placed")]


def test_a_search_that_finds_nothing_for_unseen_batches_is_not_kept(monkeypatch):
    import janus.sched.search_loops as loops

    (layer,), _ = popularity(np.random.default_rng(7).gamma(1.0, size=24) * 100, 3)
    first = first_map(layer.activation(16), Frame(4, 8, 24))

    def spoil(state, *_):  # every replica but one is gone: worse for any batch
        state.slots[...] = np.where(np.arange(32).reshape(8, 4).T < 24, np.arange(32).reshape(8, 4).T, -1)

    monkeypatch.setattr(loops, "search", spoil)
    assert (place(layer.counts, 4, 8, top_k=3, batch_sizes=(16,)).slots[0] == first).all()


@pytest.mark.parametrize("counts", [np.zeros((2, 6)), [[5, 0, 0, 0, 0, 0]] * 2, [[1e300, 1e-9, 3, 0, 2.5, 1]] * 2])
def test_odd_counts_are_placed(counts):
    placement = place(counts, 3, 3, top_k=3, batch_sizes=(1, 300))
    assert placement.logcnt.min() >= 1
    assert (placement.slots[0] == placement.slots[1]).all()


def test_experts_that_were_never_seen_share_what_is_left():
    assert Popularity(np.array([5.0, 0, 0]), 2).chosen().tolist() == [1.0, 0.5, 0.5]
    assert Popularity(np.zeros(4), 2).chosen().tolist() == [0.5] * 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3000))
def test_activation_is_the_power_it_stands_for(seed, B):
    counts = np.random.default_rng(seed).gamma(0.7, size=9)
    layer = Popularity(whole(counts), 3)
    assert layer.activation(B) == pytest.approx(1 - (1 - layer.chosen()) ** B, abs=1e-12)


def test_counts_become_whole_numbers_in_proportion():
    assert whole(np.array([3.0, 0.0, 7.0])).tolist() == [3, 0, 7]
    scaled = whole(np.array([0.5, 1e-30, 0.0, 0.25]))
    assert scaled.tolist() == [2**40 - 1, 1, 0, 2**39]
    assert (whole(np.array([2.0**60, 2.0**59])) < 2**40).all()


@pytest.mark.parametrize("B", [1, 8])
def test_sampled_sets_have_the_marginals_of_drawn_batches(B):
    trace = small_trace(T=400, L=1)
    for layer in (popularity(trace, 3)[0][0], popularity(trace.counts(), 3)[0][0]):
        drawn = layer.batches(B, 4000, np.random.default_rng(0))
        share = [np.mean((drawn == e).any(axis=(1, 2))) for e in range(12)]
        active = layer.active_sets((B,), 4000, (0, 0))
        assert active.shape == (12, 4000)
        assert active.mean(axis=1) == pytest.approx(share, abs=0.05)  # two samples of 4000: 6 standard errors


def test_batches_of_several_sizes_take_turns():
    active = Popularity(np.ones(6), 1).active_sets((1, 600), 50, (0, 0))
    assert active[:, 1::2].all()
    assert not active[:, ::2].all(axis=0).any()


def test_choices_of_minus_one_activate_nothing():
    trace = RoutingTrace(np.array([[[0, -1]], [[-1, -1]]]), 3)
    active = popularity(trace, 2)[0][0].active_sets((2,), 40, (0, 0))
    assert active[0].any()
    assert not active[1:].any()


def test_eplb_global_by_hand():
    assert eplb_global([9, 2, 1], 2, 2).slots[0].tolist() == [[0, 1], [0, 2]]
    assert eplb_global([10, 4, 3, 3, 2, 1], 2, 3).slots[0].tolist() == [[0, 4, 5], [1, 2, 3]]  # loads 13 and 10
    twice = eplb_global([[10, 1, 1], [1, 1, 1]], 2, 3)  # 0: four replicas of 2.5, two of which meet on each instance
    assert twice.slots.tolist() == [[[0, -1, 1], [0, -1, 2]], [[0, 2, 1], [1, 0, 2]]]
    assert twice.eplb_duplicates == 2
    with pytest.raises(JanusError, match="3 experts, 2 slots"):
        eplb_global([1, 2, 3], 2, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 3))
def test_eplb_global_replicates_the_heaviest(seed, G, extra):
    rng = np.random.default_rng(seed)
    E = int(rng.integers(1, 12))
    counts, C = rng.random(E), -(-E // G) + extra
    placement = eplb_global(counts, G, C)
    assert (placement.logcnt[0] <= replicate(counts, G * C)).all()
    assert placement.logcnt.sum() + placement.eplb_duplicates == G * C
