"""The online loop: never below what the demand needs, never back and forth, and no move that does not pay."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError, Placement
from janus.scale import Autoscaler, Cluster, Decision, Hardware, ModelSpec, Observation, Tuning, simulate
from janus.scale.online.cheapest import cheapest
from janus.scale.online.drift import halves, shares, stretched
from janus.scale.online.migration import Migration
from janus.scale.search.reference import judge
from janus.scale.search.solve import evaluate, pick, search
from janus.types import RequestTrace, Slo

HEADROOM = 1.1
LIMITS = {"max_attention": 5, "max_experts": 5, "max_batch": 128, "slots": 6, "context_cv": 0.0}
WINDOW_S = 900.0


@pytest.fixture(scope="module")
def tiny() -> ModelSpec:
    """Four layers of 16 experts: three instances of six slots hold them."""
    return replace(ModelSpec.from_config("olmoe-1b-7b"), layers=4, moe_layers=4, experts=16, top_k=2)


@pytest.fixture(scope="module")
def cards() -> Cluster:
    """Cards of 0.75 GiB: an attention instance has room for 13 requests of 400 tokens."""
    return Cluster(Hardware("card", 0.75 * 2**30, 1e12, 2e14, 4e14, 2e11, 4, 200))


@pytest.fixture(scope="module")
def made(tiny, cards, skewed):
    """The table is measured once; each test works on a copy."""
    return Autoscaler(
        tiny, cards, slo=Slo(2.5, percentile=50), trace=skewed(4, 16), context=400, headroom=HEADROOM, **LIMITS
    )


@pytest.fixture
def scaler(made):
    return copy.deepcopy(made)


def tuned(made, **changes):
    new = copy.deepcopy(made)
    new.tuning = replace(new.tuning, **changes)
    return new


def run(scaler, demands, context=400.0, counts=None, start=0):
    """One decision per window of 900 s."""
    windows = enumerate(demands, start)
    return [scaler.decide(Observation(i * WINDOW_S, d, context, counts=counts)) for i, d in windows]


def sizes(decisions):
    return [(d.action, d.n_attention, d.n_experts) for d in decisions]


def broken(scaler, seen, decision):
    """The rule that the pools break at the observed demand and headroom, by the plain reference; "" when none."""
    problem = replace(
        scaler._base,
        demand=max(seen.demand * HEADROOM, 1e-6),
        context=float(seen.context),
        table=stretched(scaler._base.table, lambda _: stretch_of(scaler, decision.placement)),
    )
    return judge(problem, decision.n_attention, decision.n_experts).rejected


def stretch_of(scaler, placement):
    """Measured anew: what this placement does to the a_max of the table, on the routing of the last window."""
    meter = scaler._meter
    now = meter.a_max(meter.maps(placement), scaler._latest)
    return float((now / meter.a_max(meter.sample(meter.known, placement.num_instances), meter.known)).max())


WINDOWS = st.lists(
    st.tuples(st.floats(0, 40_000), st.floats(50, 1500), st.sampled_from([None, 1, 2, 3])), min_size=1, max_size=7
)


@settings(max_examples=10, deadline=None)
@given(windows=WINDOWS, patience=st.integers(1, 3))
def test_pools_are_never_below_what_the_demand_needs(made, skewed, windows, patience):
    scaler = tuned(made, patience=patience)
    scaler._recent = type(scaler._recent)(maxlen=patience)
    for i, (demand, context, seed) in enumerate(windows):
        counts = None if seed is None else skewed(4, 16, seed)
        seen = Observation(i * WINDOW_S, demand, context, counts=counts)
        decision = scaler.decide(seen)
        if decision.action == "infeasible":
            assert (decision.n_attention, decision.n_experts) == (5, 5)
            best, _ = scaler._cheapest(seen)
            assert best is None
        else:
            assert broken(scaler, seen, decision) == ""
        assert decision.placement is not None
        assert decision.placement.slots.shape == (4, decision.n_experts, 6)


@settings(max_examples=8, deadline=None)
@given(windows=WINDOWS)
def test_the_same_observations_give_the_same_decisions(made, skewed, windows):
    seen = [
        Observation(i * WINDOW_S, d, c, counts=None if s is None else skewed(4, 16, s))
        for i, (d, c, s) in enumerate(windows)
    ]
    first, second = (copy.deepcopy(made) for _ in range(2))
    assert [first.decide(o) for o in seen] == [second.decide(o) for o in seen]


@settings(max_examples=8, deadline=None)
@given(windows=WINDOWS)
def test_an_observation_seen_again_changes_no_pools(made, windows):
    """What a decision assumes of the pools it asks for is what the next one measures of them."""
    scaler = copy.deepcopy(made)
    for i, (demand, context, _) in enumerate(windows):
        seen = Observation(i * WINDOW_S, demand, context)
        first = scaler.decide(seen)
        again = scaler.decide(seen)
        assert again.gpus <= first.gpus
        if first.action != "infeasible":
            assert sizes([again]) == [("keep", first.n_attention, first.n_experts)] or again.gpus < first.gpus


@settings(max_examples=8, deadline=None)
@given(demand=st.floats(0, 20_000), context=st.floats(100, 800))
def test_a_constant_load_is_scaled_for_once(made, demand, context):
    decisions = run(copy.deepcopy(made), [demand] * 6, context)
    assert [d.action for d in decisions[1:]] == [decisions[0].action if decisions[0].action != "scale" else "keep"] * 5


@settings(max_examples=8, deadline=None)
@given(
    mean=st.floats(3000, 12_000),
    swing=st.floats(0, 0.8),
    period=st.sampled_from([2, 3]),
    phase=st.floats(0, 2 * math.pi),
)
def test_a_swing_within_the_patience_does_not_flap(made, mean, swing, period, phase):
    demands = [mean * (1 + swing * math.sin(2 * math.pi * i / period + phase)) for i in range(10)]
    decisions = run(copy.deepcopy(made), demands)
    assert {d.action for d in decisions[period:]} <= {"keep"}


def test_it_grows_at_once_and_shrinks_after_the_patience(scaler):
    decisions = run(scaler, [1000, 10_000, 1000, 1000, 1000, 1000])
    assert [d.action for d in decisions] == ["scale", "scale", "keep", "keep", "scale", "keep"]
    assert decisions[1].gpus > decisions[0].gpus
    assert decisions[4].gpus == decisions[0].gpus
    assert "fails by attention_memory" in decisions[1].reason
    assert "last 3 windows" in decisions[4].reason


def test_headroom_is_held_not_only_the_demand(made):
    """At the first demand where the small pools fail, they would still hold the demand itself."""
    scaler = copy.deepcopy(made)
    small = run(scaler, [1000])[0]
    for i, demand in enumerate(range(1100, 9000, 100), 1):
        grown = scaler.decide(Observation(i * WINDOW_S, demand, 400))
        if grown.action == "scale":
            break
    bare = replace(scaler._base, demand=float(demand), context=400.0)
    assert evaluate(bare, small.n_attention, small.n_experts).rejected == ""
    assert evaluate(replace(bare, demand=demand * HEADROOM), small.n_attention, small.n_experts).rejected


def test_it_keeps_the_peak_of_the_last_windows(scaler):
    """6000 alone would need fewer; the window before it still counts."""
    decisions = run(scaler, [1000, 10_000, 6000, 6000, 6000])
    assert [d.action for d in decisions] == ["scale", "scale", "keep", "keep", "scale"]
    assert decisions[0].gpus < decisions[4].gpus < decisions[3].gpus


@pytest.mark.parametrize(("horizon_s", "action"), [(900.0, "scale"), (1e-3, "keep")])
def test_pools_shrink_only_if_that_pays_for_the_move(made, horizon_s, action):
    """Three of five instances without spares do not hold every expert: some have to be loaded."""
    scaler = tuned(made, horizon_s=horizon_s)
    scaler.adopt(1, 5, Placement.contiguous(16, 5, 6))
    decision = run(scaler, [1000] * 3)[-1]
    assert decision.action == action
    assert decision.n_experts == (3 if action == "scale" else 5)
    assert (decision.moved_bytes > 0) == (action == "scale")


def test_longer_contexts_ask_for_more_attention(scaler):
    short, long = run(scaler, [5000], 400.0) + run(scaler, [5000], 1500.0, start=1)
    assert long.n_attention > short.n_attention
    assert long.moved_bytes >= (long.n_attention - short.n_attention) * scaler._base.latency.model.attention_side_bytes


def test_the_first_decision_loads_every_weight(scaler, tiny):
    first = run(scaler, [1000])[0]
    slots = int((first.placement.slots >= 0).sum())
    assert first.moved_bytes == slots * tiny.expert_bytes + first.n_attention * tiny.attention_side_bytes
    assert first.migration_s > scaler.tuning.startup_s


def test_where_nothing_is_feasible_the_largest_pools_stay_and_the_rule_is_named(scaler):
    decisions = run(scaler, [1000, 200_000, 200_000])
    assert sizes(decisions)[1:] == [("infeasible", 5, 5)] * 2
    assert decisions[1].moved_bytes > 0
    assert decisions[2].moved_bytes == 0
    assert "slo binds" in decisions[1].reason
    after = run(scaler, [1000] * 3, start=3)
    assert [d.action for d in after] == ["keep", "keep", "scale"]


def test_an_impossible_objective_is_infeasible_not_an_error(tiny, cards, skewed):
    scaler = Autoscaler(tiny, cards, slo=0.5, trace=skewed(4, 16), context=400, demand=100, **LIMITS)
    decision = run(scaler, [100])[0]
    assert decision.action == "infeasible"
    assert "slo binds" in decision.reason


@pytest.mark.parametrize(("gpus", "most"), [(None, 10), (10, 10), (9, 9), (6, 6), (4, 4)])
def test_the_infeasible_answer_stays_within_the_cluster(made, gpus, most):
    scaler = copy.deepcopy(made)
    owned = replace(scaler._base.latency.cluster, gpus=gpus)
    scaler._base = replace(scaler._base, latency=scaler._base.latency.owned(owned, owned))
    decision = run(scaler, [200_000])[0]
    assert decision.action == "infeasible"
    assert decision.gpus == most
    assert decision.n_experts >= 3  # they hold every expert


def test_too_few_gpus_for_the_load_bind(made):
    """A load that five GPUs serve, on a cluster of four: the answer names the cluster."""
    scaler = copy.deepcopy(made)
    owned = replace(scaler._base.latency.cluster, gpus=4)
    free = run(copy.deepcopy(made), [10_000])[0]
    scaler._base = replace(scaler._base, latency=scaler._base.latency.owned(owned, owned))
    assert free.gpus > 4
    decision = run(scaler, [10_000])[0]
    assert (decision.action, decision.gpus) == ("infeasible", 4)
    assert "cluster_gpus binds" in decision.reason


def test_a_cluster_that_cannot_hold_the_experts_is_refused(tiny, cards, skewed):
    with pytest.raises(JanusError, match=r"4 card GPUs are needed, the cluster has 3"):
        Autoscaler(tiny, replace(cards, gpus=3), slo=2.5, trace=skewed(4, 16), context=400, demand=100, **LIMITS)


def test_the_spread_of_the_lengths_seen_is_planned_for(made):
    """At one demand the same pools hold alike requests, and fail with widely spread ones."""
    scaler = copy.deepcopy(made)
    scaler._base = replace(scaler._base, percentile=99.0)
    tails = [evaluate(scaler._problem(Observation(0, 1500, 400, None, cv)), 1, 3).tail_ms for cv in (None, 0.0, 3.0)]
    assert tails[0] == tails[1] < tails[2]
    alike, spread = (copy.deepcopy(scaler).decide(Observation(0, 1500, 400, context_cv=cv)) for cv in (0.0, 20.0))
    assert alike.action == "scale"
    assert (spread.gpus, spread.action) != (alike.gpus, alike.action)


def test_the_widest_spread_of_the_last_windows_counts(made):
    scaler = copy.deepcopy(made)
    for i, cv in enumerate((0.5, 2.0, None)):
        scaler._learn(Observation(i, 1000, 400, context_cv=cv))
    assert scaler._worst().context_cv == 2.0


@pytest.mark.parametrize("objective", ["gpus", "usd"])
@pytest.mark.parametrize("demand", [100.0, 3000.0, 9000.0, 16_000.0, 200_000.0])
def test_the_ordered_search_chooses_what_the_full_one_does(made, objective, demand):
    base = made._base
    cards = [Cluster(replace(base.latency.cluster.gpu, usd_per_hour=p)) for p in (3.0, 1.1)]
    problem = replace(base, latency=base.latency.owned(*cards), demand=demand, objective=objective)
    for most in (10, 6, 4):
        every = tuple(c for c in search(problem) if c.gpus <= most)
        best, tried = cheapest(problem, most)
        assert best == pick(every, objective)
        if best is None:
            assert {c.name for c in tried} == {c.name for c in every}


def test_headroom_may_be_one_of_the_lengths_too(tiny, cards, skewed):
    args = {"slo": Slo(2.5, 50), "trace": skewed(4, 16), "context": 400, "demand": 3000, **LIMITS}
    one, two = (Autoscaler(tiny, cards, headroom=h, **args) for h in (1.5, (1.5, 3.0)))
    seen = Observation(0, 1000, 400)
    assert (one._problem(seen).demand, one._problem(seen).context) == (1500, 400)
    assert (two._problem(seen).demand, two._problem(seen).context) == (1500, 1200)


@pytest.mark.parametrize("demand", [0.0, 5e-324, 1e308])
@pytest.mark.parametrize("context", [1e-300, 1.0, 1e15, 1e308])
def test_any_observation_there_can_be_has_an_answer(made, demand, context):
    scaler = copy.deepcopy(made)
    for i, cv in enumerate((None, 0.0, 1e308)):
        decision = scaler.decide(Observation(i * WINDOW_S, demand, context, context_cv=cv))
        assert decision.gpus <= 10


def test_it_is_a_policy_of_a_simulated_day(tiny, cards, skewed):
    """Demand rises and falls: it grows, shrinks again, loses nobody, and pays less than its largest pools all day."""
    rng, rates = np.random.default_rng(0), np.repeat([2, 80, 2, 2, 2, 2], 20)
    times = np.sort(np.concatenate([i + rng.uniform(0, 1, n) for i, n in enumerate(rates)]))
    day = RequestTrace(times, rng.integers(50, 600, len(times)), rng.integers(50, 300, len(times)), duration_s=120)
    options = {name: LIMITS[name] for name in ("max_attention", "max_experts", "max_batch", "slots")}
    scaler = Autoscaler(
        tiny,
        cards,
        slo=Slo(5),
        trace=skewed(4, 16),
        context=450,
        tuning=Tuning(horizon_s=20.0, startup_s=0.1),
        **LIMITS,
    )
    found = simulate(
        day, [scaler, Fixed(5, 5)], model=tiny, cluster=cards, slo=Slo(5), trace=skewed(4, 16), window_s=20.0, **options
    )
    ours, most = found["janus"], found["fixed"]
    assert np.isfinite(ours.finished_s).all()
    assert ours.tokens == int((day.output_tokens - 1).sum())
    assert {d.action for d in ours.decisions} >= {"scale", "keep"}
    assert ours.gpus.max() > ours.gpus[0]
    assert ours.gpus[-1] < ours.gpus.max()
    assert ours.gpu_hours < 0.8 * most.gpu_hours
    assert (scaler.pools.n_attention, scaler.pools.n_experts) == (
        ours.decisions[-1].n_attention,
        ours.decisions[-1].n_experts,
    )


class Fixed:
    """The same pools all day."""

    name = "fixed"

    def __init__(self, n_attention, n_experts):
        self.sizes = n_attention, n_experts

    def decide(self, observation):
        return Decision(observation.time_s, "keep", *self.sizes)


# ---- routing


def moved_away(placement):
    """A map that holds every expert and suits no routing: all spare slots repeat what the first instance holds."""
    slots = np.full_like(placement.slots, -1)
    for layer in slots:
        layer[:3, :5] = np.arange(15).reshape(3, 5)
        layer[0, 5] = 15
    return Placement(slots, placement.num_experts)


def test_a_bad_placement_is_replaced_when_that_pays(made, skewed):
    scaler = tuned(made, replace_at=1e-4)
    first = run(scaler, [3000])[0]
    scaler.adopt(first.n_attention, first.n_experts, moved_away(first.placement))
    counts = skewed(4, 16)
    placed = run(scaler, [3000], counts=counts, start=1)[0]
    assert sizes([placed]) == [("place", first.n_attention, first.n_experts)]
    assert placed.moved_bytes > 0
    assert "saves" in placed.reason
    assert placed.migration_s < scaler.tuning.startup_s  # nothing is started
    assert stretch_of(scaler, placed.placement) < stretch_of(scaler, moved_away(first.placement))
    assert run(scaler, [3000], counts=counts, start=2)[0].action == "keep"


@pytest.mark.parametrize("changed", [{"horizon_s": 1e-6}, {"replace_at": 10.0}])
def test_it_stays_when_replacing_does_not_pay(made, skewed, changed):
    scaler = tuned(made, **changed)
    first = run(scaler, [3000])[0]
    scaler.adopt(first.n_attention, first.n_experts, moved_away(first.placement))
    assert run(scaler, [3000], counts=skewed(4, 16), start=1)[0].action == "keep"


def test_windows_without_counts_ask_for_no_other_placement(made):
    scaler = tuned(made, replace_at=0.0)
    first = run(scaler, [3000])[0]
    scaler.adopt(first.n_attention, first.n_experts, moved_away(first.placement))
    assert run(scaler, [3000], start=1)[0].action == "keep"


def test_pools_that_a_placement_holds_back_are_replaced_before_they_grow(made, skewed):
    """An objective between the step times of a good and of a bad map."""
    scaler = copy.deepcopy(made)
    first = run(scaler, [3000])[0]
    seen, bad = Observation(WINDOW_S, 3000, 400, counts=skewed(4, 16)), moved_away(first.placement)
    times = [
        evaluate(scaler._problem(seen, stretch), first.n_attention, first.n_experts).tpot_ms
        for stretch in (1.0, stretch_of(scaler, bad))
    ]
    assert times[0] < 0.999 * times[1]
    scaler._base = replace(scaler._base, slo_ms=sum(times) / 2)
    scaler.adopt(first.n_attention, first.n_experts, bad)
    placed = scaler.decide(seen)
    assert sizes([placed]) == [("place", first.n_attention, first.n_experts)]
    assert "fails by slo" in placed.reason


def test_noise_of_counting_is_no_drift(scaler, skewed):
    rng = np.random.default_rng(0)
    popular = shares(skewed(4, 16), 4)
    for i in range(6):
        counts = np.stack([rng.multinomial(40_000, p) for p in popular])
        decision = scaler.decide(Observation(i * WINDOW_S, 3000, 400, counts=counts))
        assert decision.action == ("keep" if i else "scale")


def test_popularity_is_smoothed_over_windows(made, skewed):
    scaler = tuned(made, memory=0.25)
    before, (placed, judged) = scaler._popular, halves(skewed(4, 16, 5), 0)
    run(scaler, [1000], counts=skewed(4, 16, 5))
    np.testing.assert_allclose(scaler._popular, 0.25 * before + 0.75 * shares(placed, 4))
    np.testing.assert_allclose(scaler._latest, shares(judged, 4))


def test_one_row_of_popularity_makes_one_map_until_layers_are_counted(tiny, cards, skewed):
    scaler = Autoscaler(
        tiny, cards, slo=Slo(2.5, percentile=50), trace=skewed(1, 16), context=400, demand=3000, **LIMITS
    )
    assert run(scaler, [1000])[0].placement.uniform
    more = run(scaler, [9000], counts=skewed(4, 16), start=1)[0]
    assert more.placement.num_layers == 4


# ---- what it is told


def test_prompts_take_their_share(tiny, cards, skewed):
    prompts = {"prefill": "attention", "input_tokens": 2000.0, "output_tokens": 50.0}
    args = {"slo": 2.5, "trace": skewed(4, 16), "context": 400, "demand": 3000, **LIMITS}
    plain, loaded = (run(Autoscaler(tiny, cards, **args, **more), [1500])[0] for more in ({}, prompts))
    assert loaded.gpus > plain.gpus or loaded.action == "infeasible"


def test_adopted_pools_are_what_is_held_against_the_demand(scaler):
    placement = run(scaler, [1000])[0].placement
    scaler.adopt(5, placement.num_instances, placement)
    assert scaler.pools.n_attention == 5
    decisions = run(scaler, [1000] * 3, start=1)
    assert decisions[0].n_attention == 5
    assert decisions[-1].n_attention == 1


@pytest.mark.parametrize("slots", [np.arange(16).reshape(4, 4), np.arange(18).reshape(3, 6)])
def test_pools_of_another_model_are_not_adopted(scaler, slots):
    placement = Placement(slots, int(slots.max()) + 1)
    with pytest.raises(JanusError, match="E=16 experts in C=6 slots"):
        scaler.adopt(1, len(slots), placement)


def test_times_do_not_go_back(scaler):
    scaler.decide(Observation(900, 1000, 400))
    with pytest.raises(JanusError, match="order of time"):
        scaler.decide(Observation(899, 1000, 400))


def test_counts_of_another_model_are_refused(scaler, skewed):
    with pytest.raises(JanusError, match="64 experts"):
        scaler.decide(Observation(0, 1000, 400, counts=skewed(4, 64)))
    with pytest.raises(JanusError, match="4 MoE layers"):
        scaler.decide(Observation(0, 1000, 400, counts=skewed(3, 16)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"slo": 0}, "tpot_ms"),
        ({"context": -1}, "context"),
        ({"headroom": 0.9}, "headroom"),
        ({"demand": float("nan")}, "demand"),
        ({"tuning": 3}, "Tuning"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": "a"}, "max_batch"),
        ({"batch": 8}, "an option of Autoscaler"),
        ({"patience": 8}, "an option of Autoscaler"),
        ({"max_experts": 2}, r"2 \* 6 = 12"),
        ({"prefill": "attention"}, "input_tokens"),
        ({"trace": [[1, 2, 3]]}, "16"),
    ],
)
def test_nonsense_is_refused_before_anything_is_measured(tiny, cards, skewed, changed, words):
    args = {"slo": 2.5, "trace": skewed(4, 16), "context": 400, "demand": 100, **LIMITS}
    with pytest.raises(JanusError, match=words):
        Autoscaler(tiny, cards, **{**args, **changed})


def test_only_observations_are_taken(scaler):
    with pytest.raises(JanusError, match=r"Observation\(time_s, demand, context\)"):
        scaler.decide(1000)


@pytest.mark.parametrize(
    "changed",
    [{"patience": 0}, {"horizon_s": 0}, {"startup_s": -1}, {"replace_at": float("nan")}, {"memory": 1}],
)
def test_a_tuning_out_of_range_is_refused(changed):
    with pytest.raises(JanusError, match=next(iter(changed))):
        Tuning(**changed)


def test_the_cost_of_a_decision_is_the_migration_between_its_pools(scaler, tiny, cards):
    scaler.decide(Observation(0, 1000, 400))
    before = scaler.pools
    grown = scaler.decide(Observation(900, 10_000, 400))
    cost = Migration.between(tiny, cards, before, scaler.pools, scaler.tuning.startup_s)
    assert (grown.moved_bytes, grown.migration_s) == (cost.moved_bytes, cost.seconds)
