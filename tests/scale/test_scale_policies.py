"""The named policies: what each may choose, what a change costs, what they know."""

from dataclasses import replace

import numpy as np
import pytest

from janus.errors import JanusError
from janus.scale.days.policies import named
from janus.scale.days.policy import POLICIES, check_policy
from janus.scale.days.staging import staged
from janus.scale.days.workload import Workload
from janus.scale.online.decisions import Observation
from janus.types import RequestTrace, Slo


@pytest.fixture(scope="module")
def stage(olmoe, small_cluster, skewed):
    rows = 200
    requests = RequestTrace(np.linspace(0, 39, rows), [200] * rows, [50] * 100 + [250] * 100, duration_s=40.0)
    options = {
        "max_attention": 6,
        "max_experts": 9,
        "max_batch": 512,
        "tiers": (4, 8),
        "window_s": 10.0,
        "start_s": 3.0,
    }
    return staged(requests, POLICIES, olmoe, small_cluster, Slo(20), skewed(16, 64), options)


def answers(stage, name, demands, **efficiency):
    policy = named(name, stage, efficiency)
    return [policy.decide(Observation(10.0 * i, d, 300.0)) for i, d in enumerate(demands)], policy


@pytest.mark.parametrize("name", POLICIES)
def test_more_demand_never_needs_fewer_gpus(stage, name):
    found, _ = answers(stage, name, [0.0, 10, 500, 2000, 5000, 10000])
    gpus = [d.gpus for d in found]
    assert gpus == sorted(gpus)
    assert found[0].action == "keep"


def test_what_each_may_choose(stage):
    demands = [10, 1000, 4000, 9000, 15000]
    janus, _ = answers(stage, "janus", demands)
    steps, _ = answers(stage, "xdeepserve", demands)
    whole, policy = answers(stage, "monolithic", demands)
    static, _ = answers(stage, "static", demands)
    balanced, _ = answers(stage, "megascale", demands)
    assert all(d.n_attention % 4 == d.n_experts % 4 == 0 for d in steps)
    assert {d.n_attention // policy.copies(d.n_attention, d.n_experts) for d in whole} <= {4, 8}
    assert len({(d.n_attention, d.n_experts) for d in static}) == 1
    for j, s, b in zip(janus, steps, balanced, strict=True):
        assert j.gpus <= min(s.gpus, b.gpus)


def test_static_is_sized_for_the_largest_window_of_the_trace(stage):
    static, _ = answers(stage, "static", [1.0])
    janus, _ = answers(stage, "janus", [float(stage.load.demand.max())])
    assert static[0].gpus >= janus[0].gpus - 1  # its context is that of the window, not 300
    larger = replace(stage, load=replace(stage.load, tokens=stage.load.tokens * 20))
    assert answers(larger, "static", [1.0])[0][0].gpus > static[0].gpus


def test_a_change_costs_start_up_and_whole_instances_of_weights(stage):
    found, _ = answers(stage, "janus", [10, 9000, 9000, 10])
    first, grown, kept, shrunk = found
    assert (first.moved_bytes, first.migration_s) == (0, 0.0)
    assert grown.action == shrunk.action == "scale"
    assert grown.migration_s > 3.0
    assert grown.moved_bytes > 0
    assert (kept.action, kept.moved_bytes, kept.migration_s) == ("keep", 0, 0.0)
    assert 0 <= shrunk.migration_s < 3.0  # nothing starts up


def test_what_nobody_can_serve_is_called_infeasible_and_gets_the_most_there_is(stage):
    (decision,), policy = answers(stage, "janus", [1e7])
    assert decision.action == "infeasible"
    assert (decision.n_attention, decision.n_experts) == (24, 36)
    assert policy.copies(24, 36) == 4
    assert "no pools serve" in decision.reason


def test_a_less_efficient_baseline_needs_more(stage):
    full, half = (answers(stage, "megascale", [6000], megascale=e)[0][0] for e in (1.0, 0.25))
    assert half.gpus > full.gpus


def test_names_and_objects_are_checked():
    class NoName:
        def decide(self, observation):
            raise NotImplementedError

    with pytest.raises(JanusError, match="a policy is one of janus"):
        check_policy(NoName())
    with pytest.raises(JanusError, match="vllm"):
        named("vllm", None, {})


# ---- the load by window


def test_a_window_counts_the_tokens_of_the_requests_that_arrive_in_it():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 100, 300))
    inputs, outputs = rng.integers(1, 500, 300), rng.integers(1, 40, 300)
    load = Workload.of(RequestTrace(times, inputs, outputs, duration_s=100.0), 30.0)
    assert len(load.tokens) == 4
    for w in range(4):
        inside = (times >= 30 * w) & (times < 30 * (w + 1))
        seen = np.concatenate([i + np.arange(1, o) for i, o in zip(inputs[inside], outputs[inside], strict=True)])
        assert load.arrivals[w] == inside.sum()
        assert load.tokens[w] == len(seen)
        assert load.context[w] == pytest.approx(seen.mean())
        assert load.context_cv[w] == pytest.approx(seen.std() / seen.mean())
        assert load.demand[w] == len(seen) / 30.0
    full = np.repeat(inputs + outputs, outputs - 1)
    every = np.concatenate([i + np.arange(1, o) for i, o in zip(inputs, outputs, strict=True)])
    assert load.reserve == pytest.approx(full.mean() / every.mean())


def test_an_idle_window_keeps_the_last_context_and_the_first_takes_the_next():
    load = Workload.of(RequestTrace([25.0, 45.0], [10, 20], [3, 5], duration_s=70.0), 10.0)
    assert load.tokens.tolist() == [0, 0, 2, 0, 4, 0, 0]
    assert load.context.tolist() == [11.5, 11.5, 11.5, 11.5, 22.5, 22.5, 22.5]


def test_requests_of_one_token_ask_for_nothing():
    load = Workload.of(RequestTrace([0.0], [7], [1]), 10.0)
    assert (load.tokens.tolist(), load.context.tolist(), load.reserve) == ([0.0], [7.0], 1.0)
