"""What `plan` was asked: defaults resolved, types of GPU paired, routing by kind, times at another price."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus import JanusError, RoutingTrace
from janus.scale import Cluster, Hardware, LatencyModel, plan
from janus.scale.activation.batches import Routing
from janus.scale.hardware import PRESETS
from janus.scale.search.memory import attention_capacity, expert_slots
from janus.scale.search.problems import (
    CONTEXT_CV,
    Asked,
    Headroom,
    ask,
    batch_sizes,
    clusters,
    measured_at,
    pool_sizes,
    problems,
    prompts,
)
from janus.types import Slo

FIELDS = {
    "demand": 1000.0,
    "headroom": Headroom(),
    "slo": Slo(20),
    "context": 400.0,
    "max_attention": 3,
    "max_experts": 5,
}


@pytest.fixture(scope="module")
def asked(olmoe, small_cluster, skewed):
    """A function: the arguments of a small plan, some of them changed."""

    def of(cluster=small_cluster, trace=None, **changes) -> Asked:
        options = {"max_batch": 64, "placing": "eplb", **changes.pop("options", {})}
        trace = skewed(1, 64) if trace is None else trace
        return ask(olmoe, cluster, trace, **{**FIELDS, "prefill": "elsewhere", **changes}, options=options)

    return of


def other(cluster: Cluster, name: str, gib: float) -> Cluster:
    return replace(cluster, hardware=replace(cluster.gpu, name=name, memory_bytes=gib * 2**30))


def test_every_pair_of_types_has_a_problem_on_one_table(asked, olmoe, small_cluster):
    large = other(small_cluster, "large", 12)
    found = problems(asked([small_cluster, large]))
    assert [p.kinds for p in found] == [(a, e) for a in ("toy", "large") for e in ("toy", "large")]
    assert len({id(p.table) for p in found}) == 1
    for p in found:
        attention, experts = p.latency.cluster, p.latency.expert_cluster
        assert p.capacity == attention_capacity(olmoe, attention, 400.0)
        assert p.slots == expert_slots(olmoe, experts, 64)
        assert {n for n, c in p.table.rows if c == p.slots} == set(pool_sizes(-(-64 // p.slots), 5))


def test_the_expert_pool_may_have_types_of_its_own(asked, small_cluster):
    large = other(small_cluster, "large", 12)
    found = problems(asked(options={"expert_cluster": large}))
    assert [p.kinds for p in found] == [("toy", "large")]


def test_defaults_are_those_that_are_documented(asked):
    (p,) = problems(asked())
    assert (p.percentile, p.context_cv, p.objective, p.batch) == (99.0, CONTEXT_CV, "gpus", None)
    assert p.latency.provenance["moe"].startswith("roofline: datasheet of toy")


def test_headroom_reaches_demand_and_lengths(asked):
    (p,) = problems(asked(headroom=Headroom(1.5, 1.2)))
    assert (p.demand, p.context) == (1500.0, pytest.approx(480.0))


@pytest.mark.parametrize(
    ("trace", "words"),
    [("uniform", "uniform routing (asked for)"), (Routing.uniform(64, 8), "uniform routing (asked for)")],
)
def test_uniform_routing_is_used_when_asked_for_and_says_so(asked, trace, words):
    table = problems(asked(trace=trace))[0].table
    assert words in table.source
    assert "synthetic" in table.source


def test_skewed_routing_activates_fewer_experts_than_uniform(asked):
    """The factor that assuming uniform routing costs: what the recorded popularity would never activate."""
    hot = np.array([[1000] * 8 + [1] * 56])
    busy, even = (problems(asked(trace=t))[0].table for t in (hot, "uniform"))
    pair = next(iter(busy.rows))
    assert busy.at(pair[0], 8, pair[1]).a_max < 0.8 * even.at(pair[0], 8, pair[1]).a_max


def test_a_word_that_is_no_routing_is_refused(asked):
    with pytest.raises(JanusError, match=r"routing\.trace.*uniform"):
        asked(trace="even")


def test_another_model_s_trace_is_refused_before_anything_is_measured(asked):
    with pytest.raises(JanusError, match=r"routing\.model"):
        asked(trace=RoutingTrace(np.zeros((4, 16, 2), int), 32))


def test_times_may_be_planned_with_at_another_price(asked, olmoe, small_cluster):
    """A price does not change a time: measured once, planned with at any."""
    measured = LatencyModel.roofline(olmoe, small_cluster)
    dear = replace(small_cluster, hardware=replace(small_cluster.gpu, usd_per_hour=9.0), gpus=40)
    (p,) = problems(asked(dear, options={"latency": measured, "objective": "usd"}))
    assert p.usd_per_hour(1, 2) == 27.0
    assert p.lacking(39, 2) == "41 toy GPUs are needed, the cluster has 40"
    assert p.latency.side_us(8, 400.0) == measured.side_us(8, 400.0)
    assert measured.cluster.gpu.usd_per_hour is None  # the one given is as it was


@pytest.mark.parametrize("change", [{"memory_bytes_per_s": 2e12}, {"memory_bytes": 2**33}])
def test_times_of_another_gpu_are_refused(asked, olmoe, small_cluster, change):
    elsewhere = Cluster(replace(small_cluster.gpu, **change))
    with pytest.raises(JanusError, match=r"scale\.latency"):
        problems(asked(options={"latency": LatencyModel.roofline(olmoe, elsewhere)}))


def test_one_latency_model_does_not_serve_several_types(asked, olmoe, small_cluster):
    latency = LatencyModel.roofline(olmoe, small_cluster)
    with pytest.raises(JanusError, match="4 may be chosen"):
        problems(asked([small_cluster, other(small_cluster, "large", 12)], options={"latency": latency}))


def test_gpus_are_counted_per_type_where_the_pools_differ(asked, small_cluster):
    few = replace(small_cluster, gpus=2)
    many = replace(other(small_cluster, "large", 12), gpus=7)
    mixed = next(p for p in problems(asked([few, many])) if p.kinds == ("toy", "large"))
    assert mixed.lacking(2, 7) == ""
    assert "toy" in mixed.lacking(3, 7)
    assert "large" in mixed.lacking(2, 8)


def test_a_measured_pool_is_added_to_every_problem(asked, small_cluster):
    found = problems(asked([small_cluster, other(small_cluster, "large", 12)], max_experts=12))
    slots = found[0].slots
    absent = next(n for n in range(3, 13) if (n, slots) not in found[0].table.rows)
    after = measured_at(found, absent, slots)
    assert all((absent, slots) in p.table.rows for p in after)
    assert len({id(p.table) for p in after}) == 1


@given(st.integers(1, 200), st.integers(0, 200))
def test_measured_pool_sizes_reach_both_ends_without_large_gaps(least, more):
    sizes = pool_sizes(least, least + more)
    assert (sizes[0], sizes[-1]) == (least, least + more)
    assert all(b <= -(-a * 4 // 3) for a, b in itertools.pairwise(sizes))


@given(st.floats(0, 1e6), st.integers(1, 16384))
def test_measured_batches_cover_what_the_slo_allows(largest, cap):
    sizes = batch_sizes(largest, cap)
    assert sizes[0] == 1
    assert sizes[-1] <= cap
    assert sizes[-1] >= min(largest, cap)
    assert all(b <= 2 * a for a, b in itertools.pairwise(sizes))


def test_prompts_need_their_lengths():
    assert prompts("elsewhere", 100.0, None, None) is None
    assert prompts("attention", 100.0, 50.0, 10.0).tokens_per_s == 500.0
    for args in (
        ("attention", None, 50.0, 10.0),
        ("attention", 1.0, None, 10.0),
        ("attention", 1.0, 50.0, float("nan")),
    ):
        with pytest.raises(JanusError, match=r"scale\.prefill"):
            prompts(*args)


def test_a_cluster_may_stand_alone_or_in_company(small_cluster):
    assert clusters(small_cluster, "cluster") == clusters([small_cluster], "cluster") == (small_cluster,)


def test_prices_are_the_buyer_s():
    assert all(hardware.usd_per_hour is None for hardware in PRESETS.values())
    assert Hardware.preset("h100-sxm", usd_per_hour=2.5).usd_per_hour == 2.5
    for wrong in (0, -1, float("inf"), "cheap", True):
        with pytest.raises(JanusError, match=r"hardware\.range"):
            Hardware.preset("h100-sxm", usd_per_hour=wrong)
    for wrong in (0, 2.5, True, "many"):
        with pytest.raises(JanusError, match=r"cluster\.range"):
            Cluster("h100-sxm", gpus=wrong)


def test_alike_looks_at_wires_and_silicon_alone(small_cluster):
    assert small_cluster.alike(replace(small_cluster, gpus=3))
    assert small_cluster.alike(Cluster(replace(small_cluster.gpu, usd_per_hour=4.0)))
    assert not small_cluster.alike(replace(small_cluster, inter_node_gbps=100.0))


def test_pools_of_unequal_gpus_are_as_fast_as_their_own_cards(olmoe, small_cluster, skewed):
    """Experts on a card of twice the bandwidth read in half the time; attention is where it was."""
    quick = replace(small_cluster, hardware=replace(small_cluster.gpu, name="quick", memory_bytes_per_s=2e12))
    args = {
        "batch": 32,
        "slo": Slo(500, 50),
        "context": 400,
        "trace": skewed(1, 64),
        "max_batch": 64,
        "placing": "eplb",
    }
    same = plan(olmoe, small_cluster, **args, max_attention=1, max_experts=3)
    mixed = plan(olmoe, small_cluster, expert_cluster=quick, **args, max_attention=1, max_experts=3)
    a, b = same.pick.breakdown, mixed.pick.breakdown
    assert b.attention == a.attention
    fixed = olmoe.moe_layers * same.problem.latency.efficiency.moe_us / 1e3
    assert b.moe - fixed == pytest.approx((a.moe - fixed) / 2)
