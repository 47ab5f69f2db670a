"""The mixed-integer program against the exhaustive search, its bounds, its limits."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.scale import Cluster, Hardware, LatencyModel, plan
from janus.scale.search import milp as milp_module
from janus.scale.search.milp import Limits, Master, solve
from janus.scale.search.solve import evaluate, pick, search
from janus.scale.search.solvers import minimise, solver_name

pytest.importorskip("pulp")


def priced(problem, prices, gpus=(None, None)):
    """The problem on every pair of GPUs of other speeds at these prices."""
    base = problem.latency.cluster
    clusters = [
        Cluster(
            replace(
                base.gpu, name=f"gpu{i}", usd_per_hour=usd, memory_bytes_per_s=1e12 * (i + 1), bf16_flops=2e14 / (i + 1)
            ),
            gpus=many,
        )
        for i, (usd, many) in enumerate(zip(prices, gpus, strict=True))
    ]
    model = problem.latency.model
    return tuple(
        replace(problem, latency=LatencyModel.roofline(model, a, expert_cluster=e)) for a in clusters for e in clusters
    )


def key(c, objective):
    return c and (round(c.cost(objective), 9), c.gpus, round(c.tpot_ms, 9))


@settings(max_examples=8)
@given(
    demand=st.floats(50, 20_000),
    slo=st.floats(3, 60),
    context=st.floats(10, 6000),
    percentile=st.sampled_from([50.0, 99.0]),
    objective=st.sampled_from(["gpus", "usd"]),
    prices=st.tuples(st.floats(0.5, 8), st.floats(0.5, 8)),
    gpus=st.sampled_from([(None, None), (5, None), (3, 4)]),
    solver=st.sampled_from(["HiGHS", "CBC"]),
)
def test_it_finds_what_the_search_finds(small_plan, demand, slo, context, percentile, objective, prices, gpus, solver):
    p = replace(small_plan.problem, demand=demand, slo_ms=slo, context=context, percentile=percentile, context_cv=0.6)
    problems = priced(replace(p, objective=objective), prices, gpus)
    want = pick((c for q in problems for c in search(q)), objective)
    seen, got, proof = solve(problems, Limits(solver))
    assert key(got, objective) == key(want, objective)
    assert proof.startswith("optimal")
    assert got is None or got in seen


def test_a_program_that_promises_to_the_last_pair_what_none_keeps(small_plan):
    """Times from below allow what the exact ones just miss: the search ends when there are no dearer pairs."""
    p = replace(small_plan.problem, demand=None, batch=60, max_attention=2, max_experts=4)
    fastest = min(c.tail_ms for c in search(replace(p, slo_ms=1e9)) if not c.rejected)
    p = replace(p, slo_ms=0.999 * fastest)
    assert Master((p,)).solve(6, 6, "HiGHS", None) is not None
    assert solve((p,), Limits())[1] is None


def test_a_fixed_batch_too(small_plan):
    p = replace(small_plan.problem, demand=None, batch=60, slo_ms=14.0)
    assert solve((p,), Limits())[1] == pick(search(p))


def test_it_evaluates_fewer_pairs(small_plan):
    p = replace(small_plan.problem, max_attention=16, max_experts=8)
    seen, got, proof = solve((p,), Limits())
    assert len(seen) < len(search(p)) / 2
    assert got == pick(search(p))
    assert f"{len(seen)} of 128 pairs" in proof


def test_the_relaxation_never_forbids_what_is_feasible(small_plan):
    """Every feasible pair's cost can be reached in the master: it is a lower bound."""
    p = replace(small_plan.problem, demand=9000.0, context_cv=0.6, percentile=99.0)
    feasible = {c.gpus for c in search(p) if not c.rejected}
    master = Master((p,))
    assert feasible
    for gpus in feasible:
        assert master.solve(gpus, gpus, "HiGHS", None) == pytest.approx(gpus)


def test_the_relaxation_forbids_most_of_what_is_not(small_plan):
    p = replace(small_plan.problem, slo_ms=0.5)
    assert Master((p,)).solve(0, float("inf"), "HiGHS", None) is None


def test_infeasible_is_told_with_every_pair_s_reason(small_plan):
    p = replace(small_plan.problem, slo_ms=0.5)
    seen, got, proof = solve((p,), Limits())
    assert got is None
    assert len(seen) == p.max_attention * p.max_experts
    assert "every pair" in proof


def test_at_the_time_limit_the_incumbent_is_kept(small_plan, monkeypatch):
    ticks = itertools.chain([0.0], itertools.repeat(100.0))
    monkeypatch.setattr(milp_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))  # its own clock alone
    _, got, proof = solve((small_plan.problem,), Limits("auto", 1.0))
    assert got is not None
    assert not evaluate(small_plan.problem, got.n_a, got.n_e).rejected
    assert proof.startswith("time limit: best so far; nothing costs less than 0 gpus")


@pytest.mark.parametrize("feasible", [True, False])
def test_ctrl_c_keeps_the_incumbent(small_plan, monkeypatch, feasible):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(milp_module, "minimise", interrupted)
    problems = (small_plan.problem if feasible else replace(small_plan.problem, slo_ms=0.5),)
    if feasible:
        assert solve(problems, Limits())[2].startswith("interrupted: best so far")
    else:
        with pytest.raises(KeyboardInterrupt):
            solve(problems, Limits())


def test_plan_by_both_methods(olmoe, small_cluster, small_plan, skewed):
    args = {"demand": 3000, "slo": small_plan.slo, "context_cv": 0.0, "context": 400, "trace": skewed(16, 64)}
    p = plan(olmoe, small_cluster, **args, max_attention=6, max_experts=8, max_batch=512, method="milp", solver="CBC")
    assert (p.pick, p.placement) == (small_plan.pick, small_plan.placement)
    assert "CBC" in str(p)
    unseen = next(c for c in small_plan.candidates if c.name not in {s.name for s in p.candidates})
    assert p.explain(unseen.name) == small_plan.explain(unseen.name)  # evaluated when asked


def test_types_of_gpu_and_their_price(olmoe, skewed):
    fast = Hardware("fast", 6 * 2**30, 2e12, 2e14, 4e14, 2e11, 4, 200, usd_per_hour=8.0)
    slow = replace(fast, name="slow", memory_bytes_per_s=1e12, usd_per_hour=1.0)
    args = {"demand": 3000, "slo": 20, "context": 400, "trace": skewed(1, 64), "max_attention": 4, "max_experts": 6}
    clusters = [Cluster(fast), Cluster(slow)]
    by = {m: plan(olmoe, clusters, **args, max_batch=256, objective="usd", method=m) for m in ("exhaustive", "milp")}
    for p in by.values():
        assert p.pick.kinds == ("slow", "slow")
        assert p.usd_per_hour == p.gpus * 1.0
        assert p.colocated.kind == "slow"
        assert "$/h" in p.verdict
        lines = p.explain("1A3E").splitlines()
        assert len(lines) == 4
        assert all(line.startswith("1A3E on ") for line in lines)
    assert by["milp"].pick == by["exhaustive"].pick
    only = plan(olmoe, Cluster(fast), expert_cluster=Cluster(slow), **args, max_batch=256)
    assert only.pick.kinds == ("fast", "slow")
    assert only.to_dict()["expert_hardware"] == "slow"


def test_a_cluster_with_too_few_gpus_is_the_binding_constraint(olmoe, small_cluster, skewed):
    few = replace(small_cluster, gpus=3)
    p = plan(olmoe, few, demand=3000, slo=20, context=400, trace=skewed(1, 64), max_attention=4, max_experts=6)
    assert not p.feasible
    assert p.binding == "cluster_gpus"
    assert "the cluster has 3" in p.explain("1A3E")


@pytest.mark.parametrize("method", ["exhaustive", "milp"])
def test_nonsense_about_types_and_prices_is_refused(olmoe, small_cluster, skewed, method):
    args = {"demand": 3000, "slo": 20, "context": 400, "trace": skewed(1, 64), "method": method}
    with pytest.raises(JanusError, match="toy has none"):
        plan(olmoe, small_cluster, **args, objective="usd")
    for wrong, words in [
        ({"cluster": []}, "at least one"),
        ({"cluster": [small_cluster, small_cluster]}, "once"),
        ({"cluster": "h100-sxm"}, "Cluster"),
        ({"expert_cluster": 5}, "expert_cluster"),
        ({"objective": "watts"}, "usd"),
        ({"context_cv": -1}, "context_cv"),
        ({"headroom": (1, 2, 3)}, "headroom"),
        ({"headroom": (1.0, 0.5)}, "headroom"),
        ({"time_limit_s": 0}, "time_limit_s"),
        ({"solver": "magic", "method": "milp"}, "CBC"),
    ]:
        merged = {"cluster": small_cluster, **args, **wrong}
        cluster = merged.pop("cluster")
        with pytest.raises(JanusError, match=words):
            plan(olmoe, cluster, **merged)


def test_headroom_is_for_the_rate_and_the_lengths(olmoe, small_cluster, skewed):
    args = {"slo": 20, "trace": skewed(1, 64), "max_attention": 3, "max_experts": 4, "max_batch": 256}
    roomy = plan(olmoe, small_cluster, demand=2000, context=400, headroom=(1.5, 2.0), **args)
    same = plan(olmoe, small_cluster, demand=3000, context=800, **args)
    assert roomy.pick == same.pick
    assert (roomy.demand, roomy.to_dict()["headroom"]) == (2000, {"rate": 1.5, "length": 2.0})


def test_without_pulp_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr("janus.scale.search.solvers.find_spec", lambda name: None)
    with pytest.raises(JanusError, match="exhaustive"):
        solver_name("HiGHS")


@pytest.mark.parametrize("solver", ["HiGHS", "CBC"])
def test_a_solver_tells_a_value_from_none(solver):
    import pulp

    for at_most, want in ((3, 2.0), (1, None)):
        program = pulp.LpProblem("p", pulp.LpMinimize)
        x = program.add_variable("x", lowBound=0, cat="Integer")
        program += x
        program += x >= 1.5
        program += x <= at_most
        assert minimise(program, solver, 10.0) == want


def test_the_memory_of_both_pools_is_told_and_fits(small_plan):
    memory = small_plan.memory
    for pool in memory.values():
        assert sum(v for name, v in pool.items() if name != "usable") <= pool["usable"]
    p = small_plan
    assert memory["experts"]["weights"] == p.problem.slots * np.prod([16, p.problem.latency.model.expert_bytes])
