"""What page and text say of plans that are not the usual one: two types of GPU, cut short, uniform, fitted on top."""

from dataclasses import replace

import pytest
from pages import Parsed

from janus.scale import Cluster, Hardware, plan
from janus.scale.html import plan_page
from janus.scale.html.plan import headline, lead
from janus.scale.html.words import RULES, synthetic_notice
from janus.scale.plans.report import notes, rows
from janus.scale.timing.scaled import ScaledLatencyModel, StepTerms

pytest.importorskip("matplotlib")

NEAR = Cluster(Hardware("near", 8 * 2**30, 2e12, 2e14, 4e14, 2e11, 4, 200, usd_per_hour=2.0))
FAR = Cluster(Hardware("far", 24 * 2**30, 1e12, 4e14, 8e14, 2e11, 8, 800, usd_per_hour=3.0))


def small(cluster=NEAR, **asked):
    asked = {"demand": 500, "slo": 50, "context": 400, "max_attention": 3, "max_experts": 4, "max_batch": 64} | asked
    return plan("olmoe-1b-7b", cluster, trace=asked.pop("trace", [list(range(1, 65))]), **asked)


@pytest.fixture(scope="module")
def mixed():
    return small([NEAR, FAR], objective="usd")


@pytest.fixture(scope="module")
def undecided():
    return replace(small(method="milp", time_limit_s=1e-9, slots=8), colocated=None)


def test_every_feasible_pair_of_every_types_stands_in_the_page(mixed):
    words = Parsed(plan_page(mixed)).words
    feasible = [c for c in mixed.candidates if not c.rejected]
    assert f"The 20 of least cost of {len(feasible)}" in words
    assert f"{mixed.pick.name} on {' + '.join(mixed.pick.kinds)}" in words
    assert len({c.kinds for c in feasible}) == 4
    kinds = mixed.pick.kinds
    assert f"on {kinds[0]} (attention) and {kinds[1]} (experts);" in notes(mixed)[0]


def test_of_an_infeasible_choice_all_types_are_named():
    found = small([NEAR, FAR], slo=0.001)
    words = Parsed(plan_page(found)).words
    assert "olmoe-1b-7b on near and far" in words
    assert "on near or far;" in notes(found)[0]
    one_way = small(NEAR, expert_cluster=FAR, slo=0.001)
    assert "on near (attention) and far (experts);" in notes(one_way)[0]


def test_what_fills_the_gpus_is_told_in_gib(mixed):
    page = Parsed(plan_page(mixed))
    cells = page.under("table")
    for pool, name in (("attention", "attention"), ("experts", "expert")):
        at = cells.index(f"{name} GPU, weights")
        assert cells[at + 1] == f"{mixed.memory[pool]['weights'] / 2**30:,.1f}"
    infeasible = replace(mixed, pick=None)
    assert "What fills the GPUs" not in Parsed(plan_page(infeasible)).words


def test_a_search_cut_short_is_not_said_to_be_infeasible(undecided):
    words = Parsed(plan_page(undecided)).words
    assert headline(undecided) == "No deployment was found in time"
    assert RULES["time_limit"] in lead(undecided)
    assert "No pair was tried." in words
    assert "there may be one" in notes(undecided)[-1]
    for said in (words, "\n".join(notes(undecided)), str(undecided)):
        assert "binding constraint" not in said
        assert "suffice" not in said
        assert "not feasible" not in said
    alone = small(method="milp", time_limit_s=1e-9, slots=8)
    assert "split: not found in time" in Parsed(plan_page(alone)).words
    assert "split, no deployment was found" in lead(alone)


def test_slots_of_a_deployment_that_there_is_none_of_are_not_told(undecided):
    line = next(line for line in rows(small(slots=4)) if line[0] == "expert slots per GPU")
    assert line[1] == "-"
    assert next(line for line in rows(undecided) if line[0] == "expert slots per GPU")[1:] == ("-", "-")


def test_uniform_routing_is_not_said_to_be_borrowed(undecided):
    found = small(trace="uniform")
    notice = synthetic_notice(found.routing)
    assert "chosen equally often" in notice
    assert "borrowed" not in notice
    assert "chosen equally often" in Parsed(plan_page(found)).words
    assert "borrowed" in synthetic_notice("synthetic routing (like gpt-oss-20b)")
    assert synthetic_notice(undecided.routing) == ""


def test_what_was_fitted_on_top_is_told_beside_a_roofline(mixed):
    scaled = ScaledLatencyModel(mixed.problem.latency, StepTerms(1.5, 2.0), ["2A6E"])
    told = replace(mixed, problem=replace(mixed.problem, latency=scaled))
    said = "1.50 x the latency model, 2.00 us per request and layer, 0.00 us per row and MoE layer; fitted to 2A6E"
    assert said in "\n".join(notes(told))
    assert said in Parsed(plan_page(told)).words
    assert "latency model" not in "\n".join(notes(mixed))


def test_both_factors_of_the_headroom_are_told():
    found = small(headroom=(1.25, 1.1))
    assert "500 tokens/s x headroom 1.25; context 400 tokens x headroom 1.1;" in notes(found)[0]
    assert "context 400 tokens;" in notes(small())[0]


def test_one_gpu_is_one_gpu():
    found = small(FAR)
    assert (found.colocated.gpus, found.gpus) == (1, 2)
    assert "needs 2 GPUs split and 1 unsplit" in lead(found)
    assert "needs 1 GPU unsplit" in lead(small(FAR, slots=4))
