"""What a plan claims about its candidates, in words and numbers, recomputed one by one."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError, RoutingTrace
from janus.scale import Breakdown, LatencyModel, ScalePlan, plan
from janus.scale.plans.report import notes, render, rows
from janus.scale.search.memory import attention_capacity
from janus.scale.search.solve import CONSTRAINTS, Candidate, evaluate, pick, search, searched_again
from janus.scale.timing.prefill import Prefill

MIXED = {"demand": 2300.0, "slo_ms": 20.0, "max_batch": 40, "context": 4000.0}  # every constraint rejects somebody


def with_prompts(problem, share):
    """The problem with prompts that take `share` of the time of one GPU of each kind."""
    one = Prefill(1.0, 100.0).share(problem.latency, 1, 1)
    return replace(problem, prefill=Prefill(share / one, 100.0))


@pytest.fixture(scope="module")
def mixed(small_plan):
    problem = with_prompts(replace(small_plan.problem, **MIXED), 2.0)
    old = problem.latency
    few = LatencyModel.roofline(old.model, replace(old.cluster, gpus=13), efficiency=old.efficiency)
    problem = replace(problem, latency=few)
    candidates = search(problem)
    return replace(small_plan, problem=problem, candidates=candidates, pick=pick(candidates))


def step_ms(problem, c, B):
    share = problem.prefill.share(problem.latency, c.n_a, c.n_e) if problem.prefill else 0.0
    return problem.latency.tpot(c.n_a, c.n_e, B, problem.context, problem.table).tpot / (1 - share)


def test_every_constraint_rejects_and_some_pass(mixed):
    assert list(mixed.rejections) == list(CONSTRAINTS)
    assert mixed.feasible


def test_every_rejection_is_true(mixed):
    """And every constraint checked before it holds."""
    p = mixed.problem
    capacity = attention_capacity(p.latency.model, p.latency.cluster, p.context)
    for c in mixed.candidates:
        room = c.n_a * capacity
        prompts = p.prefill.share(p.latency, c.n_a, c.n_e)
        broken = {
            "expert_slots": c.n_e * p.slots < 64,
            "attention_memory": room < 1,
            "prefill": prompts >= 1,
        }
        if any(broken.values()):
            assert c.rejected == next(name for name in CONSTRAINTS if broken.get(name))
            continue
        most = min(room, p.max_batch)
        serves = [B for B in range(1, most + 1) if p.demand * step_ms(p, c, B) / 1e3 <= B]
        if c.rejected == "slo":
            assert c.tpot_ms > p.slo_ms
            assert all(step_ms(p, c, B) > p.slo_ms for B in serves)
        elif c.rejected == "cluster_gpus":
            assert (c.gpus > 13, c.batch) == (True, serves[0])
            assert c.tpot_ms == pytest.approx(step_ms(p, c, serves[0]))
        elif c.rejected:
            assert serves == []
            assert c.batch == most == {"attention_memory": room, "max_batch": p.max_batch}[c.rejected]
        else:
            assert (c.batch, c.tpot_ms) == (serves[0], pytest.approx(step_ms(p, c, serves[0])))


def test_explain_says_of_every_candidate_what_became_of_it(mixed):
    best = mixed.pick
    for c in mixed.candidates:
        said = mixed.explain(c.name)
        assert said.startswith(f"{c.name}: ")
        if c.rejected:
            assert f"rejected by {c.rejected}: {c.detail}" in said
            assert c.detail
        else:
            assert f"TPOT {c.tpot_ms:.1f} ms at batch {c.batch}" in said
            assert ("chosen" in said) == (c.name == best.name)
            assert (f"{c.gpus} GPUs where {best.name} needs {best.gpus}" in said) == (c.gpus > best.gpus)
            assert ("as many GPUs" in said) == (c.gpus == best.gpus and c.name != best.name)


def test_a_slower_pair_of_as_many_gpus_is_told_so(small_plan):
    same = replace(small_plan.pick, n_a=small_plan.pick.n_a + 1, n_e=small_plan.pick.n_e - 1, tpot_ms=19.9)
    others = tuple(c for c in small_plan.candidates if c.name != same.name)
    p = replace(small_plan, candidates=(*others, same))
    assert f"as many GPUs as {p.pick.name}, whose TPOT is {p.tpot_ms:.1f} ms" in p.explain(same.name)


def test_looking_again_after_a_measurement_is_searching_anew(small_plan):
    """The small table measured 3 to 7 and 8; one without 5 and 6 interpolates there."""
    p = small_plan.problem
    rows = {pair: row for pair, row in p.table.rows.items() if pair[0] in (3, 7, 8)}
    sparse = replace(p, table=replace(p.table, rows=rows))
    before = search(sparse)
    sparse = replace(sparse, table=sparse.table.extended([(5, p.slots)]))
    again = searched_again(sparse, before, 5)
    for got, want in zip(again, search(sparse), strict=True):
        assert (got.name, got.rejected, got.batch) == (want.name, want.rejected, want.batch)
        assert got.tpot_ms == pytest.approx(want.tpot_ms, nan_ok=True)
    assert [c.tpot_ms for c in before if c.n_e in (4, 5, 6)] != [c.tpot_ms for c in again if c.n_e in (4, 5, 6)]


def test_ties_go_to_the_lower_tpot_then_to_fewer_attention_instances():
    a, b, c = Candidate(1, 3, 5, None, 9.0), Candidate(2, 2, 5, None, 8.0), Candidate(3, 1, 5, None, 8.0)
    small = Candidate(1, 1, 5, None, 1.0, rejected="slo")
    assert pick((small, c, a, b)) is b
    assert pick((a, Candidate(1, 2, 5, None, 20.0))).gpus == 3
    assert pick((small,)) is None


@settings(max_examples=25, deadline=None)
@given(load=st.floats(0.01, 1), factor=st.floats(1, 4), slo=st.floats(2, 40), looser=st.floats(1, 3))
def test_more_demand_never_needs_fewer_gpus_and_a_looser_slo_never_more(small_plan, load, factor, slo, looser):
    """For batches the table covers, as `plan` measures it: beyond them a_max jumps to C and B = demand x TPOT may hold twice."""
    demand = load * (small_plan.problem.table.batch_sizes[-1] - 1) * 1e3 / (slo * max(looser, factor))

    def gpus(demand, slo):
        best = pick(search(replace(small_plan.problem, demand=demand, slo_ms=slo, max_attention=3)))
        return best.gpus if best else float("inf")

    one = gpus(demand, slo)
    assert gpus(demand * factor, slo) >= one
    assert gpus(demand, slo * looser) <= one


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0.01, 0.9), n_a=st.integers(2, 6), n_e=st.integers(3, 8))
def test_prompts_stretch_the_step_by_their_share(small_plan, share, n_a, n_e):
    p = replace(with_prompts(small_plan.problem, share), demand=None, batch=20, slo_ms=1e9)
    plain = evaluate(replace(p, prefill=None), n_a, n_e)
    c = evaluate(p, n_a, n_e)
    if not plain.rejected:
        assert plain.tpot_ms == c.breakdown.tpot
        assert c.tpot_ms == pytest.approx(plain.tpot_ms / (1 - p.prefill.share(p.latency, n_a, n_e)))


def test_what_is_saved_rebuilds_every_candidate(mixed, tmp_path):
    mixed.save(tmp_path / "plan.json")
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved == mixed.to_dict()
    again = []
    for data in saved["candidates"]:
        assert data.pop("gpus") == data["n_a"] + data["n_e"]
        throughput, step = data.pop("throughput"), data.pop("breakdown")
        times = {name: float("nan") if data[name] is None else data[name] for name in ("tpot_ms", "tail_ms")}
        c = Candidate(**{**data, **times, "kinds": tuple(data["kinds"])}, breakdown=step and Breakdown(**step))
        assert throughput == (c.throughput if c.batch else None)
        again.append(c)
    for old, new in zip(mixed.candidates, again, strict=True):
        untimed = {"tpot_ms": 0.0, "tail_ms": 0.0} if np.isnan(old.tpot_ms) and np.isnan(new.tpot_ms) else {}
        assert replace(old, **untimed) == replace(new, **untimed)
    assert pick(tuple(again)) == mixed.pick
    assert saved["rejections"] == mixed.rejections
    assert saved["topology"] == mixed.topology.to_dict()


def test_the_verdict_weighs_gpus_then_time(small_plan):
    c = small_plan.colocated
    width = small_plan.gpus
    for tpot, other, split in [
        (small_plan.tpot_ms, width, True),
        (small_plan.tpot_ms * 0.99, width, False),
        (1.0, width + 1, True),
        (1e3, width - 1, False),
    ]:
        p = replace(small_plan, colocated=replace(c, width=other, copies=1, tpot_ms=tpot))
        assert p.disaggregate is split
        assert p.verdict.startswith("Disaggregate" if split else "Do not disaggregate")
        assert f"colocated EP{other} on {other} GPUs" in p.verdict
    assert replace(small_plan, colocated=None).disaggregate
    assert "no colocated deployment is feasible" in replace(small_plan, colocated=None).verdict
    several = replace(small_plan, colocated=replace(c, width=2, copies=3))
    assert "colocated 3 x EP2 on 6 GPUs" in several.verdict


def infeasible(p: ScalePlan, colocated=None) -> ScalePlan:
    candidates = search(replace(p.problem, slo_ms=0.1))
    return replace(p, pick=None, candidates=candidates, colocated=colocated, placement=None)


def test_an_infeasible_plan_says_so_everywhere(small_plan):
    p = infeasible(small_plan)
    text = str(p)
    assert text.startswith("Infeasible: no deployment meets the SLO; the binding constraint is slo.")
    assert "No pair of pools is feasible; binding constraint: slo." in text
    assert all(ours == alone == "-" for what, ours, alone in rows(p) if what != "expert slots per GPU")
    half = infeasible(small_plan, small_plan.colocated)
    assert half.verdict.startswith("Do not disaggregate: no pair of pools is feasible (slo); colocated")
    assert half.to_dict()["colocated"]["width"] == small_plan.colocated.width
    assert half.to_dict()["pick"] is None


def test_the_report_names_prefill_and_batch_as_asked(small_plan):
    assert "prefill is NOT counted" in notes(small_plan)[0]
    assert "prefill is counted" in notes(replace(small_plan, asked=replace(small_plan.asked, prefill="attention")))[0]
    assert "3000 tokens/s x headroom 1;" in notes(small_plan)[0]
    fixed = replace(
        small_plan,
        asked=replace(small_plan.asked, demand=None),
        problem=replace(small_plan.problem, demand=None, batch=17),
    )
    assert "batch 17;" in notes(fixed)[0]


def test_the_rows_add_up_to_the_tpot(small_plan):
    said = {what.strip(): (ours, alone) for what, ours, alone in rows(small_plan)}
    for i, step in enumerate((small_plan.pick, small_plan.colocated)):
        parts = [float(said[f"{part}, ms"][i]) for part in ("attention", "moe", "comm", "other", "overlap")]
        assert sum(parts) == pytest.approx(step.tpot_ms, abs=0.03)  # five figures of two digits
        assert said["TPOT, ms"][i] == f"{step.tpot_ms:.1f}"
        assert said["GPUs"][i] == str(step.gpus)
    several = replace(small_plan, colocated=replace(small_plan.colocated, batch=7, copies=3))
    assert ("requests in flight", str(small_plan.batch), "21") in rows(several)


def test_the_colour_follows_the_verdict(small_plan):
    pytest.importorskip("rich")
    c = small_plan.colocated
    plans = {
        "bold green": replace(small_plan, colocated=None),
        "bold yellow": replace(small_plan, colocated=replace(c, width=1, copies=1)),
        "bold red": infeasible(small_plan),
    }
    for style, p in plans.items():
        assert render(p, "rich").renderables[0].style == style


def test_a_trace_marked_synthetic_is_called_so_in_report_and_file(olmoe, small_cluster):
    ids = np.stack([np.random.default_rng(i).permutation(64)[:8] for i in range(40)])[:, None, :]
    trace = RoutingTrace(ids, 64, source="borrowed", synthetic=True)
    p = plan(
        olmoe, small_cluster, demand=50, slo=50, trace=trace, context=50, max_attention=1, max_experts=4, max_batch=8,
        placing="eplb",
    )  # fmt: skip
    assert "synthetic routing: borrowed" in str(p)
    assert p.to_dict()["routing"] == p.problem.table.source == "synthetic routing: borrowed"


@pytest.mark.parametrize("name", [None, 5, "A1E", "1A", "1A1E1", "-1A1E", "1.0A2E"])
def test_what_is_no_pair_of_pools_is_told_how_one_reads(small_plan, name):
    with pytest.raises(JanusError) as error:
        small_plan.explain(name)
    assert error.value.code == "topology.parse"
