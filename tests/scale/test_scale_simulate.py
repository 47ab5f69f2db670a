"""The simulator: against the plain one to the last bit, and what must hold whatever the trace and the policy."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.errors import JanusError
from janus.scale import Cluster, LatencyModel, ModelSpec, simulate
from janus.scale.days.playing import play
from janus.scale.days.policy import POLICIES
from janus.scale.days.reference import replay
from janus.scale.days.stage import Layout
from janus.scale.days.staging import staged
from janus.scale.online.decisions import Decision
from janus.types import RequestTrace, Slo

SMALL = {"max_attention": 4, "max_experts": 6, "max_batch": 96, "tiers": (4, 8), "window_s": 2.0, "start_s": 0.7}


class Scripted:
    """A policy that answers from a list, whatever it sees, and remembers what it saw."""

    name = "scripted"

    def __init__(self, sizes, migration_s=0.0, *, colocated=False, efficiency=1.0):
        self.sizes, self.migration_s = list(sizes), migration_s
        self.colocated, self.efficiency, self.seen = colocated, efficiency, []

    def decide(self, observation):
        self.seen.append(observation)
        n_a, n_e = self.sizes[(len(self.seen) - 1) % len(self.sizes)]
        return Decision(observation.time_s, "scale", n_a, n_e, migration_s=self.migration_s)


@pytest.fixture(scope="module")
def stage_of(olmoe, small_cluster, skewed):
    """A stage for a trace; the tables are measured once and kept between calls."""
    one = RequestTrace([0.0], [1], [2], duration_s=1.0)
    first = staged(one, POLICIES, olmoe, small_cluster, Slo(20), skewed(16, 64), SMALL)

    def make(requests, **other):
        from janus.scale.days.workload import Workload

        return replace(first, requests=requests, load=Workload.of(requests, SMALL["window_s"]), **other)

    return make


def trace_of(rows, duration_s=None):
    """From (gap in s, input, output) per request."""
    gaps, inputs, outputs = zip(*rows, strict=True)
    times = np.cumsum(gaps)
    return RequestTrace(times, inputs, outputs, duration_s=duration_s or float(times[-1]) + 1.0)


ROWS = st.lists(st.tuples(st.floats(0, 1.5), st.integers(1, 3000), st.integers(1, 60)), min_size=1, max_size=40)
SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(3, 6)), min_size=1, max_size=4)


def agree(stage, policy):
    day = play(stage, policy)
    plain = replay(stage, policy, day.decisions)
    by_number = sorted(plain.done, key=lambda r: r.number)
    assert [r.number for r in by_number] == list(range(stage.requests.num_requests))
    assert [r.finished_s for r in by_number] == day.finished_s.tolist()
    assert [r.joined_s for r in by_number] == day.joined_s.tolist()
    assert (plain.tokens, plain.steps, plain.gpu_s / 3600) == (day.tokens, day.steps, day.gpu_hours)
    return day


@settings(max_examples=40, deadline=None)
@given(
    rows=ROWS,
    sizes=SIZES,
    migration_s=st.sampled_from([0.0, 0.3, 1.9, 2.0, 5.5]),
    efficiency=st.sampled_from([1.0, 0.4]),
)
def test_it_agrees_with_the_plain_simulator_to_the_last_bit(stage_of, rows, sizes, migration_s, efficiency):
    agree(stage_of(trace_of(rows)), Scripted(sizes, migration_s, efficiency=efficiency))


@settings(max_examples=15, deadline=None)
@given(rows=ROWS, sizes=st.lists(st.sampled_from([(4, 4), (8, 8), (16, 16)]), min_size=1, max_size=4))
def test_colocated_pools_agree_too(stage_of, rows, sizes):
    agree(stage_of(trace_of(rows)), Scripted(sizes, 0.3, colocated=True, efficiency=0.5))


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, sizes=SIZES)
def test_nothing_is_lost_and_nobody_is_overtaken(stage_of, rows, sizes):
    stage = stage_of(trace_of(rows))
    day = play(stage, Scripted(sizes, 0.5))
    r = stage.requests
    assert np.isfinite(day.finished_s).all()
    assert day.tokens == int((r.output_tokens - 1).sum())
    decoded = r.output_tokens > 1
    assert (np.diff(day.joined_s[decoded]) >= 0).all()  # first in, first out
    assert (day.joined_s >= r.times_s).all()
    assert (day.finished_s >= day.joined_s).all()
    assert (day.finished_s[decoded] > day.joined_s[decoded]).all()
    assert day.queued[-1] == 0


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, sizes=SIZES)
def test_gpu_hours_are_the_integral_of_the_gpus_paid(stage_of, rows, sizes):
    day = play(stage_of(trace_of(rows)), Scripted(sizes, 0.5))
    ends = np.append(day.times_s[1:], max(day.finished_s.max(), day.times_s[-1]))
    assert day.gpu_hours >= min(a + e for a, e in sizes) * (ends[-1] - day.window_s) / 3600
    assert day.gpus.min() >= min(a + e for a, e in sizes) - 1e-9
    most = max(a for a, _ in sizes) + max(e for _, e in sizes)
    assert day.gpus.max() <= most + 1e-9
    assert (day.gpus * day.window_s).sum() / 3600 == pytest.approx(day.gpu_hours, abs=most * (day.window_s + 1) / 3600)


def test_the_same_trace_gives_the_same_day(stage_of):
    rows = [(0.05, 100 + i, 5 + i % 40) for i in range(80)]
    one, two = (play(stage_of(trace_of(rows)), Scripted([(2, 3), (1, 3)], 0.4)) for _ in range(2))
    assert one.to_dict() == two.to_dict()


def test_requests_wait_for_memory_in_order_of_arrival(stage_of):
    # one instance of 6 GiB less weights: long prompts fill it, then everybody waits, even a short one that would fit
    stage = stage_of(trace_of([(0.0, 9000, 40)] * 12 + [(0.0, 10, 5)]))
    day = play(stage, Scripted([(1, 3)]))
    assert len(set(day.joined_s.tolist())) > 1
    assert day.joined_s[-1] == day.joined_s.max()
    agree(stage, Scripted([(1, 3)]))


def test_no_instance_ever_promises_more_memory_than_it_has(stage_of):
    stage = stage_of(trace_of([(0.01, 4000 + 100 * i, 30) for i in range(30)]))
    day, held = play(stage, Scripted([(1, 3)])), stage.held_bytes()
    capacity = stage.pools((1, 3), (1, 3), Layout()).capacity
    for t in day.joined_s:
        inside = (day.joined_s <= t) & (day.finished_s > t)
        assert held[inside].sum() <= capacity
    assert held.sum() > capacity  # the bound was met


def test_the_largest_batch_is_kept(stage_of):
    day = play(stage_of(trace_of([(0.0, 5, 40)] * 200)), Scripted([(4, 6)]))
    first = day.joined_s == 0
    assert first.sum() == SMALL["max_batch"]


def test_new_gpus_are_paid_at_once_and_serve_after_the_migration(stage_of):
    stage = stage_of(trace_of([(0.1, 50, 10)] * 60))
    day = play(stage, Scripted([(1, 3), (3, 5)], migration_s=1.0))
    assert day.n_attention[:2].tolist() == [1, 3]
    assert day.gpus[0] == pytest.approx(4)
    assert day.gpus[1] == pytest.approx(8)  # paid from the decision at 2 s, though they serve from 3 s


def test_a_change_longer_than_a_window_is_finished_before_the_next_question(stage_of):
    policy = Scripted([(1, 3), (3, 5), (2, 3)], migration_s=3.0)
    day = play(stage_of(trace_of([(0.1, 50, 10)] * 100)), policy)
    assert [o.time_s for o in policy.seen[:3]] == [0.0, 2.0, 6.0]
    assert day.n_attention[:4].tolist() == [1, 1, 3, 3]
    agree(stage_of(trace_of([(0.1, 50, 10)] * 100)), Scripted([(1, 3), (3, 5), (2, 3)], migration_s=3.0))


def test_a_shrinking_pool_drains(stage_of):
    # a long request sits on the second instance when the pool shrinks to one: it is paid until that request ends
    stage = stage_of(trace_of([(0.0, 50, 600), (0.0, 50, 600), (0.5, 50, 2)], duration_s=12.0))
    day = play(stage, Scripted([(2, 3), (1, 3)] + [(1, 3)] * 9))
    end = day.finished_s.max()
    assert 2 < end < 12
    want = 5 * end + 4 * (12 - end)
    assert day.gpu_hours * 3600 == pytest.approx(want, rel=1e-9)
    assert day.finished_s[0] == day.finished_s[1]


def test_a_policy_sees_the_past_only(stage_of):
    rows = [(0.5, 100, 11)] * 8 + [(0.01, 900, 50)] * 100
    policy = Scripted([(4, 6)])
    play(stage_of(trace_of(rows)), policy)
    load = stage_of(trace_of(rows)).load
    assert policy.seen[0].demand == load.demand[0]  # time zero: the first window's load stands for the past
    assert [o.demand for o in policy.seen[1:3]] == load.demand[:2].tolist()
    assert policy.seen[1].context == load.context[0]


def test_the_oracle_sees_the_coming_window_and_a_forecast_is_asked(stage_of):
    rows = [(0.5, 100, 11)] * 8 + [(0.05, 900, 50)] * 100
    policy, asked = Scripted([(4, 6)]), []
    stage = stage_of(trace_of(rows), forecast="oracle")
    play(stage, policy)
    assert [o.demand for o in policy.seen[1:3]] == stage.load.demand[1:3].tolist()
    stage = stage_of(trace_of(rows), forecast=lambda past: asked.append(past.tolist()) or 77.0)
    policy = Scripted([(4, 6)])
    play(stage, policy)
    assert asked[1] == stage.load.demand[:2].tolist()
    assert policy.seen[1].demand == 77.0


def test_what_still_waits_is_part_of_the_demand(stage_of):
    stage = stage_of(trace_of([(0.0, 9000, 60)] * 40, duration_s=6.0))
    policy = Scripted([(1, 3)])
    play(stage, policy)
    assert policy.seen[2].demand > 0  # nothing arrived in the second window
    assert stage.load.demand[1] == 0


@pytest.mark.parametrize("name", POLICIES)
def test_every_named_policy_serves_a_trace_and_agrees_with_the_plain_simulator(stage_of, name):
    from janus.scale.days.policies import named

    rng = np.random.default_rng(0)
    rows = [
        (float(g), int(i), int(o))
        for g, i, o in zip(
            rng.exponential(0.02, 400), rng.integers(10, 900, 400), rng.integers(1, 120, 400), strict=True
        )
    ]
    day = agree(stage_of(trace_of(rows)), named(name, stage_of(trace_of(rows)), {}))
    assert day.policy == name
    assert day.attainment > 0.9
    assert day.colocated == (name == "monolithic")


ONE = RequestTrace([0.0], [10], [3], duration_s=1.0)


def test_several_policies_come_back_by_name(olmoe, small_cluster, skewed):
    args = {"model": olmoe, "cluster": small_cluster, "slo": 20, "trace": skewed(16, 64), **SMALL}
    told = []
    days = simulate(ONE, ["janus", Scripted([(1, 3)])], progress=lambda *a: told.append(a), **args)
    assert list(days) == ["janus", "scripted"]
    assert told == [(1, 2, "janus"), (2, 2, "scripted")]
    assert simulate(ONE, "static", **args).policy == "static"


def wrong(**changed):
    return pytest.param(changed, id=next(iter(changed)))


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"policy": "vllm"}, "simulate.policy", "vllm"),
        ({"policy": object()}, "simulate.policy", "decide"),
        ({"policy": ["janus", "janus"]}, "simulate.policy", "different names"),
        ({"policy": []}, "simulate.policy", "at least one"),
        ({"requests": [1, 2]}, "simulate.requests", "RequestTrace"),
        ({"requests": RequestTrace([], [], [], duration_s=5.0)}, "requests.empty", "nothing to simulate"),
        ({"requests": RequestTrace([0.0], [10**7], [3])}, "simulate.memory", "request 0 of 10000003 tokens"),
        ({"requests": RequestTrace([0.0], [10], [2**23])}, "simulate.requests", "longest"),
        ({"window_s": 0}, "simulate.range", "window_s"),
        ({"window_s": math.nan}, "simulate.range", "window_s"),
        ({"headroom": 0.9}, "simulate.range", "headroom"),
        ({"start_s": -1}, "simulate.range", "start_s"),
        ({"max_experts": 1}, "simulate.range", "max_experts"),
        ({"max_attention": 0}, "simulate.range", "max_attention"),
        ({"tiers": (4, 2)}, "simulate.range", "tiers"),
        ({"tiers": (128,)}, "simulate.range", "tiers"),
        ({"per_gpu_efficiency": {"sglang": 1}}, "simulate.policy", "sglang"),
        ({"per_gpu_efficiency": {"monolithic": 0}}, "simulate.range", "per_gpu_efficiency"),
        ({"forecast": "tomorrow"}, "simulate.forecast", "tomorrow"),
        ({"slots": 10**6}, "scale.memory", "slots"),
        ({"copies": 0}, "simulate.range", "copies"),
        ({"threads": 0}, "simulate.range", "threads"),
        ({"cluster": "h100-sxm"}, "scale.cluster", "Cluster"),
        ({"speed": 3}, "simulate.option", "speed"),
        ({"latency": 3}, "simulate.latency", "LatencyModel"),
        ({"progress": 3}, "simulate.range", "progress"),
        ({"per_gpu_efficiency": 0.5}, "simulate.range", "dict of policy names"),
        ({"window_s": 1e-6}, "simulate.range", "at most 100000 windows"),
        ({"requests": RequestTrace([0.0, 1e12], [1, 1], [2, 2])}, "simulate.range", "at most 100000 windows"),
        ({"trace": [range(1, 33)]}, "routing.model", "32 experts"),
    ],
)
def test_mistakes_are_refused(olmoe, small_cluster, skewed, changed, code, words):
    args = {"requests": ONE, "policy": "janus", "model": olmoe, "cluster": small_cluster, "slo": 20}
    args |= {"trace": skewed(16, 64), **SMALL} | changed
    with pytest.raises(JanusError) as caught:
        simulate(args.pop("requests"), args.pop("policy"), **args)
    assert caught.value.code == code
    assert words in caught.value.message


def test_a_policy_that_answers_something_else_is_named(stage_of):
    class Broken:
        name = "broken"

        def decide(self, observation):
            return 3

    with pytest.raises(JanusError, match=r"broken.decide must return a Decision"):
        play(stage_of(ONE), Broken())


def test_times_of_another_model_or_card_are_refused(olmoe, small_cluster, skewed):
    args = {"model": olmoe, "cluster": small_cluster, "slo": 20, "trace": skewed(16, 64), **SMALL}
    other = ModelSpec.from_config("gpt-oss-20b")
    for latency in (LatencyModel.roofline(other, small_cluster), LatencyModel.roofline(olmoe, Cluster("h200-sxm"))):
        with pytest.raises(JanusError, match=r"simulate\.latency.*what is simulated"):
            simulate(ONE, "janus", latency=latency, **args)


def test_the_price_is_the_clusters_not_that_of_the_times(olmoe, small_cluster, skewed):
    priced = Cluster(replace(small_cluster.gpu, usd_per_hour=2.0), gpus_per_node=small_cluster.node_size)
    args = {"model": olmoe, "slo": 20, "trace": skewed(16, 64), **SMALL}
    latency = LatencyModel.roofline(olmoe, replace(priced, hardware=replace(priced.gpu, usd_per_hour=None)))
    day = simulate(ONE, "janus", cluster=priced, latency=latency, **args)
    assert day.usd == pytest.approx(2 * day.gpu_hours)


@pytest.mark.parametrize(
    "odd",
    [{"copies": lambda n_a, n_e: 0}, {"copies": lambda n_a, n_e: "x"}, {"efficiency": 0}, {"efficiency": math.nan}],
)
def test_a_policy_with_odd_copies_or_efficiency_is_named(stage_of, odd):
    policy = Scripted([(2, 4)])
    vars(policy).update(odd)
    with pytest.raises(JanusError, match=r"simulate\.policy.*of policy scripted"):
        play(stage_of(ONE), policy)


@pytest.mark.parametrize("slo", [20.0, 1e-3])
@pytest.mark.parametrize("gpus", [8, 9, 13])
@pytest.mark.parametrize("name", ["janus", "megascale", "static", "xdeepserve", "monolithic"])
def test_no_built_in_policy_asks_for_more_gpus_than_the_cluster_has(olmoe, small_cluster, skewed, name, gpus, slo):
    count = 3000 if slo < 1 else 60
    busy = RequestTrace(np.linspace(0, 3.9, count), [300] * count, [40] * count, duration_s=4.0)
    args = {"model": olmoe, "cluster": replace(small_cluster, gpus=gpus), "slo": slo, "trace": skewed(16, 64)}
    day = simulate(busy, name, **args, **SMALL | {"tiers": (4, 8)})
    for d in day.decisions:
        assert (d.n_attention if day.colocated else d.gpus) <= gpus
        assert (d.action == "infeasible") == (slo < 1)
    if slo < 1 and name == "janus":
        assert {d.gpus for d in day.decisions} == {min(gpus, 10)}


def test_a_cluster_too_small_for_the_experts_is_refused(olmoe, small_cluster, skewed):
    args = {"model": olmoe, "cluster": replace(small_cluster, gpus=2), "slo": 20, "trace": skewed(16, 64), **SMALL}
    with pytest.raises(JanusError, match=r"scale\.cluster.*the cluster has 2"):
        simulate(ONE, "janus", **args)
    args["cluster"] = replace(small_cluster, gpus=4)
    with pytest.raises(JanusError, match="no pools of this policy fit"):
        simulate(ONE, "xdeepserve", **args)
