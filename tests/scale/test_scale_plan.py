"""`plan` from end to end: the answer, its words, its pictures, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

from janus import JanusError, Placement, RoutingTrace, Slo, Topology
from janus.scale import Cluster, Hardware, ModelSpec, plan
from janus.scale.pictures.space import grids
from janus.scale.plans.report import render
from janus.scale.search.colocated import colocated_step
from janus.scale.search.reference import judge

ARGS = {"demand": 3000, "slo": 20, "context": 400, "max_attention": 4, "max_experts": 5, "max_batch": 512}


def test_the_pick_is_consistent(small_plan, olmoe):
    p = small_plan
    assert p.feasible
    assert p.binding == ""
    assert p.gpus == p.n_attention + p.n_experts
    assert p.n_experts * p.problem.slots >= olmoe.experts
    assert p.throughput == pytest.approx(p.batch / p.tpot_ms * 1e3)
    assert p.throughput >= 3000
    assert p.tokens_per_gpu_s == pytest.approx(p.throughput / p.gpus)
    assert p.tpot_ms <= 20
    assert (p.n_experts, p.problem.slots) in p.problem.table.rows  # never an interpolated pick
    assert isinstance(p.topology, Topology)
    assert str(p.topology) == p.pick.name
    assert isinstance(p.placement, Placement)
    assert p.placement.slots.shape == (16, p.n_experts, p.problem.slots)


def test_the_reference_agrees_with_every_candidate(small_plan):
    for c in small_plan.candidates:
        want = judge(small_plan.problem, c.n_a, c.n_e)
        assert (c.rejected, c.batch if not c.rejected else 0) == (want.rejected, want.batch)


def test_rejections_count_every_candidate_once(small_plan):
    feasible = sum(not c.rejected for c in small_plan.candidates)
    assert sum(small_plan.rejections.values()) + feasible == len(small_plan.candidates) == 6 * 8


def test_explain_says_the_constraint_and_the_values(small_plan):
    said = small_plan.explain("3A1E")
    assert "expert_slots" in said
    assert f"1 * {small_plan.problem.slots}" in said
    assert "E = 64" in said
    assert "chosen" in small_plan.explain(small_plan.pick.name.lower())
    assert f"{small_plan.pick.name} needs" in small_plan.explain("6A8E")
    with pytest.raises(JanusError, match="max_experts"):
        small_plan.explain("1A9E")
    with pytest.raises(JanusError, match="1A5E"):
        small_plan.explain("five")


def test_the_report_says_what_it_rests_on(small_plan):
    text = render(small_plan, "plain")
    assert isinstance(text, str)
    assert text == str(small_plan)
    for words in ("prefill is NOT counted", "P50 of TPOT", "colocated", "tokens/s/GPU", "overlap", "olmoe-1b-7b"):
        assert words in text
    assert small_plan.verdict in text
    with pytest.raises(JanusError, match="rich"):
        render(small_plan, "loud")


def test_the_rich_report_has_the_same_rows(small_plan):
    rich = pytest.importorskip("rich.console")
    console = rich.Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(small_plan, "rich"))
    text = console.export_text()
    assert small_plan.verdict[:40] in text
    assert "requests in flight" in text
    console.file.close()


def test_synthetic_routing_is_printed(small_cluster, olmoe):
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permuted(np.tile(np.arange(64), (50, 1)), axis=1)[:, :8] for _ in range(3)], axis=1)
    trace = RoutingTrace(ids, 64, source="like gpt-oss-20b", synthetic=True)
    p = plan(olmoe, small_cluster, trace=trace, **ARGS)
    assert "synthetic routing" in str(p)
    assert p.placement is not None
    assert p.placement.num_layers == 16  # three layers of the source serve sixteen of the model


def test_it_saves_json(small_plan, tmp_path):
    small_plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["format"] == "janus.plan/1"
    assert data["pick"]["gpus"] == small_plan.gpus
    assert data["colocated"]["gpus"] == small_plan.colocated.gpus
    assert len(data["candidates"]) == 48
    assert Placement.from_dict(data["placement"]) == small_plan.placement
    assert "NaN" not in (tmp_path / "plan.json").read_text()


def test_it_draws_the_search_space(small_plan, tmp_path):
    pytest.importorskip("matplotlib")
    small_plan.plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
    tpot, reasons = grids(small_plan)
    assert (np.isnan(tpot) ^ np.isnan(reasons)).all()
    assert tpot[small_plan.n_attention - 1, small_plan.n_experts - 1] == small_plan.tpot_ms
    with pytest.raises(JanusError, match=r"\.png"):
        small_plan.plot(tmp_path / "plan.txt")


def test_infeasible_is_a_value(olmoe, small_cluster, skewed, tmp_path):
    p = plan(olmoe, small_cluster, trace=skewed(16, 64), **{**ARGS, "slo": 0.5})
    assert not p.feasible
    assert p.binding == "slo"
    assert not p.disaggregate
    assert "binding constraint is slo" in p.verdict
    assert (p.gpus, p.throughput, p.placement) == (0, 0.0, None)
    assert np.isnan(p.tpot_ms)
    assert "rejected by slo" in p.explain("4A5E")
    with pytest.raises(JanusError, match="infeasible"):
        p.topology  # noqa: B018
    p.save(tmp_path / "p.json")
    pytest.importorskip("matplotlib")
    p.plot(tmp_path / "p.svg")


def test_each_constraint_can_bind(olmoe, small_cluster, skewed):
    def binding(**changed):
        return plan(olmoe, small_cluster, trace=skewed(16, 64), **{**ARGS, **changed}).binding

    assert binding(slots=8) == "expert_slots"  # 5 * 8 < 64
    assert binding(context=2_000_000) == "attention_memory"
    assert binding(max_batch=1, demand=50_000) == "max_batch"
    flood = {"prefill": "attention", "input_tokens": 1e6, "output_tokens": 1}
    assert binding(**flood) == "prefill"


def test_a_fixed_batch_takes_the_place_of_the_demand(olmoe, small_cluster, skewed):
    args = {k: v for k, v in ARGS.items() if k != "demand"}
    p = plan(olmoe, small_cluster, trace=skewed(16, 64), batch=64, **args)
    assert p.batch == 64
    assert p.tpot_ms == judge(p.problem, p.n_attention, p.n_experts).tpot_ms or p.tpot_ms == pytest.approx(
        judge(p.problem, p.n_attention, p.n_experts).tpot_ms
    )


def test_headroom_and_prefill_ask_for_more(olmoe, small_cluster, skewed, small_plan):
    more = {**ARGS, "max_attention": 6, "max_experts": 8}
    p = plan(olmoe, small_cluster, trace=skewed(16, 64), **more, headroom=2)
    assert p.throughput >= 6000
    q = plan(
        olmoe, small_cluster, trace=skewed(16, 64), **more, prefill="attention", input_tokens=300, output_tokens=100
    )
    assert "prefill is counted" in str(q)
    same = next(c for c in q.candidates if c.name == small_plan.pick.name)
    assert same.tpot_ms > small_plan.tpot_ms


def test_the_colocated_result_is_an_optimum_of_its_kind(small_plan):
    c, p = small_plan.colocated, small_plan.problem
    assert c.throughput >= 3000 * (1 - 1e-9)
    assert c.tpot_ms <= 20
    assert c.width * c.slots >= 64
    table = p.table.extended([(c.width, c.slots)])
    assert colocated_step(p, table, c.width, c.slots, c.batch).tpot == pytest.approx(c.tpot_ms)
    assert c.batch >= p.demand / c.copies * c.tpot_ms / 1e3 - 1e-6


def test_colocated_shared_experts_hide_behind_the_exchange_only(skewed):
    """On one GPU there is no exchange, hence nothing to hide behind; on two at most its time is hidden."""
    args = {"demand": 500, "slo": 100, "context": 400, "max_attention": 1, "max_experts": 2, "max_batch": 256}
    p = plan("deepseek-v2-lite", Cluster("h100-sxm"), trace=skewed(26, 64), **args)
    table = p.problem.table.extended([(1, 64), (2, 40)])
    assert colocated_step(p.problem, table, 1, 64, 8).overlap == 0
    two = colocated_step(p.problem, table, 2, 40, 8)
    assert 0 < two.overlap <= two.comm
    assert two.tpot == pytest.approx(two.attention + two.moe + two.comm + two.other - two.overlap)


def test_a_model_that_fits_one_gpu_is_not_disaggregated(olmoe, skewed):
    p = plan(olmoe, Cluster("h100-sxm"), trace=skewed(16, 64), **{**ARGS, "demand": 500, "slo": 100})
    assert p.colocated.gpus == 1
    assert p.gpus >= 2
    assert not p.disaggregate
    assert p.verdict.startswith("Do not disaggregate")


def test_a_slo_object_is_taken(olmoe, small_cluster, skewed):
    p = plan(olmoe, small_cluster, trace=skewed(1, 64), **{**ARGS, "slo": Slo(20, percentile=95)})
    assert p.slo.percentile == 95
    assert p.placement.uniform  # one row of counts: one map for every layer


def test_progress_is_reported(olmoe, small_cluster, skewed):
    seen = []
    plan(olmoe, small_cluster, trace=skewed(16, 64), **ARGS, progress=lambda *what: seen.append(what))
    assert seen[-1][0] == seen[-1][1] == len(seen)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"demand": None}, "demand"),
        ({"batch": 4}, "one of them"),
        ({"demand": -1}, "demand"),
        ({"demand": float("nan")}, "demand"),
        ({"demand": "many"}, "demand"),
        ({"context": 0}, "context"),
        ({"headroom": 0.5}, "headroom"),
        ({"max_attention": 0}, "max_attention"),
        ({"max_experts": 2.5}, "max_experts"),
        ({"max_batch": True}, "max_batch"),
        ({"slots": 0}, "slots"),
        ({"slots": 1000}, "slots"),
        ({"slo": 0}, "tpot_ms"),
        ({"solver": "magic", "method": "milp"}, "HiGHS"),
        ({"method": "guess"}, "exhaustive"),
        ({"prefill": "somewhere"}, "elsewhere"),
        ({"prefill": "attention"}, "input_tokens"),
        ({"prefill": "attention", "input_tokens": 10}, "output_tokens"),
        ({"placing": "magic"}, "janus"),
        ({"balance": "magic"}, "exact"),
        ({"balance": "cost"}, "counts activated experts"),
        ({"ballance": "exact"}, "ballance"),
        ({"demand": None, "batch": 3, "prefill": "attention"}, "demand"),
    ],
)
def test_nonsense_is_refused(changed, words, olmoe, small_cluster, skewed):
    with pytest.raises(JanusError, match=words):
        plan(olmoe, small_cluster, trace=skewed(16, 64), **{**ARGS, **changed})


def test_the_wrong_trace_and_too_small_a_card_are_refused(olmoe, small_cluster, skewed):
    with pytest.raises(JanusError, match="num_experts=64, top_k=8"):
        plan(olmoe, small_cluster, trace=RoutingTrace(np.zeros((4, 16, 2), int), 32), **ARGS)
    tiny = Cluster(Hardware("tiny", 2**26, 1e12, 1e14, 1e14, 1e11))
    with pytest.raises(JanusError, match="expert_dtype"):
        plan(olmoe, tiny, trace=skewed(16, 64), **ARGS)


def test_planning_needs_neither_torch_nor_triton():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['triton'] = None\n"
        "import janus.scale\n"
        "from janus.scale import plan, Cluster, Hardware\n"
        "p = plan('olmoe-1b-7b', Cluster(Hardware('t', 6*2**30, 1e12, 2e14, 4e14, 2e11)), demand=100, slo=50,\n"
        "         trace=[list(range(1, 65))], context=100, max_attention=2, max_experts=3, max_batch=16)\n"
        "assert p.feasible and not ({'torch', 'triton', 'pulp', 'matplotlib', 'rich'} & set(\n"
        "    m for m in sys.modules if sys.modules[m])), 'heavy module loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_shipped_names_reach_plan(small_cluster):
    assert ModelSpec.from_config("olmoe-1b-7b").experts == 64


def test_a_plan_that_cannot_be_written_is_told_with_its_path(small_plan, tmp_path):
    with pytest.raises(JanusError, match=r"scale\.save.*no-folder"):
        small_plan.save(tmp_path / "no-folder" / "plan.json")
