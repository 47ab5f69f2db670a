"""The master's times are never longer than real ones, for every kind of latency model; pools drawing on one stock."""

from dataclasses import replace

import numpy as np
import pytest

from janus.comm.cost import CostModel
from janus.scale import Cluster, Hardware, LatencyModel, plan
from janus.scale.kernels.fitted import KernelSet
from janus.scale.search import milp as milp_module
from janus.scale.search.milp import Limits, Master, solve
from janus.scale.search.solve import pick, search
from janus.scale.timing.exchange import ExchangeCost
from janus.scale.timing.scaled import ScaledLatencyModel, StepTerms

pytest.importorskip("pulp")


def card(name, **fields):
    return Hardware(name, 6 * 2**30, 1e12, 2e14, 4e14, 2e11, 4, **({"inter_node_gbps": 200} | fields))


def models(latency, tables):
    """Of each kind, one, for fp8 experts, which the tables hold."""
    model, cluster = replace(latency.model, expert_dtype="fp8"), latency.cluster
    latency = LatencyModel.roofline(model, cluster)
    kernels = KernelSet.fit(tables)
    routes = CostModel(factors={"direct": [[1, 0.01], [1000, 3.0]], "gather": [[1, 0.2]]})
    return {
        "roofline": latency,
        "scaled": ScaledLatencyModel(latency, StepTerms(1.7, 2.0, 0.5)),
        "fitted": LatencyModel.of_kernels(kernels, model, cluster),
        "scaled fit": ScaledLatencyModel(LatencyModel.of_kernels(kernels, model, cluster), StepTerms(0.6)),
        "factors": LatencyModel.roofline(model, cluster, cost=ExchangeCost(routes, 4)),
        "phases": LatencyModel.roofline(model, cluster, cost=ExchangeCost(CostModel(round_s=1e-6), 4)),
    }


KINDS = ["roofline", "scaled", "fitted", "scaled fit", "factors", "phases"]


@pytest.mark.parametrize("kind", KINDS)
def test_times_of_the_master_are_from_below(kind, small_plan, made_up_tables):
    p = small_plan.problem
    p = replace(p, latency=models(p.latency, made_up_tables)[kind], max_batch=300, slo_ms=1e4)
    p = replace(p, percentile=99.0, context_cv=0.6)
    master, steps = Master((p,)), p.steps
    pools = [(1, 3), (2, 4), (5, 8)]
    for k, (first, end) in enumerate(zip(master.levels, master.levels[1:], strict=False)):
        for B in range(first, min(end, p.max_batch + 1)):
            for n_a, n_e in pools:
                ask = np.array([n_a]), np.array([n_e]), np.array([B])
                i, j = master.x.index((p.kinds[0], n_a)), master.y.index((p.kinds[1], n_e))
                below = np.array([master.mean_x[i, k], master.tail_x[i, k]]) + master.time_y[j, k]
                real = np.array([steps.mean_ms(*ask)[0], steps.tail_ms(*ask, 99.0)[0]]) / master.unit_ms
                assert (below <= real + 1e-12).all(), (B, n_a, n_e)


@pytest.mark.parametrize("kind", KINDS)
def test_both_methods_agree_under_every_latency_model(kind, small_plan, made_up_tables):
    p = replace(small_plan.problem, max_attention=3, max_experts=5, max_batch=128, percentile=99.0, context_cv=0.6)
    p = replace(p, latency=models(p.latency, made_up_tables)[kind])
    for demand in (400.0, 2500.0):
        for slo in (8.0, 20.0):
            q = replace(p, demand=demand, slo_ms=slo)
            got, want = solve((q,), Limits())[1], pick(search(q))
            assert got == want


def test_a_pool_may_have_a_faster_network_with_another_partner(small_plan):
    """The crossing of a pool is bounded by the best pair it is in, not by the first."""
    clusters = [Cluster(card("slow", inter_node_gbps=0.02)), Cluster(card("fast", inter_node_gbps=400))]
    model = small_plan.problem.latency.model
    problems = tuple(
        replace(small_plan.problem, latency=LatencyModel.roofline(model, a, e)) for a in clusters for e in clusters
    )
    got, want = solve(problems, Limits())[1], pick(c for p in problems for c in search(p))
    assert want.kinds == ("fast", "fast")
    master = Master(problems)
    assert master.solve(want.gpus, want.gpus, "HiGHS", None) == pytest.approx(want.gpus)
    assert got == want


@pytest.mark.parametrize("method", ["exhaustive", "milp"])
def test_pools_of_one_card_in_two_stocks_draw_on_their_own(method, olmoe, skewed, monkeypatch):
    monkeypatch.setattr(milp_module, "_warm_start", lambda state: None)  # the program has to find it
    ask = {"demand": 3000, "slo": 20, "context": 400, "trace": skewed(1, 64), "max_attention": 4, "max_experts": 6}
    mine, theirs = Cluster(card("toy"), gpus=1), Cluster(card("toy"), gpus=3)
    both = plan(olmoe, mine, expert_cluster=theirs, max_batch=256, method=method, **ask)
    one = plan(olmoe, theirs, max_batch=256, method=method, **ask)
    assert (both.n_attention, both.n_experts) == (1, 3)
    assert method == "exhaustive" or "every pair" not in both.proof
    assert one.binding == "cluster_gpus"


def test_a_program_solved_a_little_too_high_loses_no_pair(small_plan, monkeypatch):
    """Solvers answer within a tolerance: pairs that cost a hair less than the answer are looked at too."""
    real = milp_module.minimise

    def high(*args):
        found = real(*args)
        return None if found is None else found + 5e-7

    monkeypatch.setattr(milp_module, "minimise", high)
    monkeypatch.setattr(milp_module, "_warm_start", lambda state: None)
    _, got, proof = solve((small_plan.problem,), Limits())
    assert got == small_plan.pick
    assert "every pair" not in proof  # which is the last resort
