"""Plans at the ends of what floats hold, cut short, on unequal pools: an answer or a `JanusError`, never another error."""

from dataclasses import replace

import pytest

from janus import JanusError, plan
from janus.scale import Cluster, Hardware
from janus.scale.plans.saved import SavedPlan
from janus.scale.search.problems import Headroom
from janus.scale.search.solve import evaluate

COUNTS = [list(range(1, 65))]
NEAR = Cluster(Hardware("near", 8 * 2**30, 2e12, 2e14, 4e14, 2e11, 4, 200, usd_per_hour=2.0))
FAR = Cluster(Hardware("far", 24 * 2**30, 1e12, 4e14, 8e14, 2e11, 8, 800, usd_per_hour=3.0))


def small(cluster=NEAR, **asked):
    asked = {"demand": 500, "slo": 50, "context": 400, "max_attention": 3, "max_experts": 4, "max_batch": 64} | asked
    return plan("olmoe-1b-7b", cluster, trace=asked.pop("trace", COUNTS), **asked)


@pytest.mark.parametrize("method", ["exhaustive", "milp"])
@pytest.mark.parametrize(
    ("asked", "binding"),
    [
        ({"demand": 1e300, "slo": 1e300}, "max_batch"),
        ({"demand": 1e308, "slo": 1.0}, "slo"),
        ({"context": 1e308}, "attention_memory"),
        ({"context_cv": 1e300}, "slo"),
        ({"prefill": "attention", "input_tokens": 1e300, "output_tokens": 1.0}, "prefill"),
    ],
)
def test_numbers_without_measure_are_infeasible(asked, binding, method):
    found = small(method=method, **asked)
    assert (found.feasible, found.colocated, found.binding) == (False, None, binding)


def test_a_demand_next_to_nothing_is_one_request():
    found = small(demand=1e-300)
    assert (found.pick.name, found.batch) == ("1A2E", 1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"demand": 1e308, "headroom": 10.0}, "demand x headroom"),
        ({"context": 1e308, "headroom": (1.0, 10.0)}, "context x headroom"),
        ({"prefill": "attention", "input_tokens": 1e300, "output_tokens": 1e-300}, "prompt tokens per second"),
        ({"headroom": ()}, "headroom"),
        ({"solver": "magic"}, "CBC"),
        ({"progress": 5}, "progress"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(asked, says):
    with pytest.raises(JanusError, match=says):
        small(**asked)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.99, float("nan"), float("inf"), "2"])
@pytest.mark.parametrize("field", ["rate", "length"])
def test_headroom_by_name_is_held_to_the_same_rule(field, factor):
    with pytest.raises(JanusError, match="headroom"):
        Headroom(**{field: factor})


def test_a_pair_of_thousands_of_digits_is_no_pair(small_plan):
    with pytest.raises(JanusError) as refused:
        small_plan.explain("1" * 5000 + "A1E")
    assert refused.value.code == "topology.parse"
    assert len(str(refused.value)) < 200


@pytest.fixture(scope="module")
def undecided():
    """Time ran out before a first pair could be looked at: slots so few that the least pool is larger than allowed."""
    return small(method="milp", time_limit_s=1e-9, slots=8)


def test_a_search_cut_short_does_not_call_the_demand_infeasible(undecided):
    assert (undecided.pick, undecided.candidates, undecided.binding) == (None, (), "time_limit")
    assert "time_limit" in undecided.verdict
    assert "is feasible" not in replace(undecided, colocated=None).verdict
    assert replace(undecided, colocated=None).verdict.startswith("Undecided")


def test_a_pair_that_a_cut_search_missed_is_told_as_such(small_plan):
    cheap = small_plan.pick
    dear = next(c for c in small_plan.candidates if not c.rejected and c.gpus > cheap.gpus)
    cut = replace(small_plan, pick=dear, candidates=(dear,), proof="time limit: best so far")
    said = cut.explain(cheap.name)
    assert f"better than {dear.name}" in said
    assert "cut short" in said
    none = replace(small_plan, pick=None, candidates=(), proof="time limit: best so far")
    assert "cut short" in none.explain(cheap.name)


def test_pools_fill_nodes_of_their_own_size():
    found = small(NEAR, expert_cluster=replace(FAR, gpus_per_node=1), slots=24)
    assert found.n_experts >= 3
    assert [len(node) for node in found.topology.experts] == [1] * found.n_experts
    assert [len(node) for node in found.topology.attention] == [found.n_attention]
    ranks = [rank for node in (*found.topology.attention, *found.topology.experts) for rank in node]
    assert ranks == list(range(found.gpus))


def saved(found, folder):
    found.save(folder / "plan.json")
    return SavedPlan.load(folder / "plan.json")


@pytest.mark.parametrize("method", ["exhaustive", "milp"])
@pytest.mark.parametrize("slo", [50, 0.001])
@pytest.mark.parametrize("cluster", [NEAR, [NEAR, FAR]])
@pytest.mark.parametrize("trace", [COUNTS, "uniform"])
def test_every_kind_of_plan_comes_back_from_its_file(method, slo, cluster, trace, tmp_path):
    found = small(cluster, method=method, slo=slo, objective="usd", trace=trace)
    back = saved(found, tmp_path)
    assert (back.feasible, back.binding, back.verdict) == (found.feasible, found.binding, found.verdict)
    assert (back.topology, back.placement) == (found.topology if found.pick else None, found.placement)
    assert back.data["provenance"] == found.problem.latency.provenance
    assert ("uniform" in back.data["routing"]) == (trace == "uniform")
    assert ("uniform" in str(found)) == (trace == "uniform")


def test_an_undecided_plan_comes_back_too(undecided, tmp_path):
    assert saved(undecided, tmp_path).binding == "time_limit"


def test_every_feasible_pair_meets_its_memory():
    for found in (small(NEAR, expert_cluster=FAR), small(FAR, expert_cluster=NEAR)):
        for c in found.candidates:
            if not c.rejected:
                memory = replace(found, pick=c).memory
                assert all(sum(v for k, v in m.items() if k != "usable") <= m["usable"] for m in memory.values())
        assert found.memory["attention"]["usable"] != found.memory["experts"]["usable"]
        assert evaluate(found.problem, found.n_attention, found.n_experts) == found.pick
