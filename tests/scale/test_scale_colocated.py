"""The colocated optimum against a search that tries every width, slot count, number of copies and batch."""

import pytest

from janus.comm.cost import CostModel
from janus.scale import Cluster, Hardware, ModelSpec, plan
from janus.scale.search.colocated import _exchange_s, _pairs, colocated_optimum
from janus.scale.search.memory import gate_bytes, request_bytes, slot_bytes
from janus.scale.timing.exchange import ExchangeCost
from janus.types import Slo

ARGS = {
    "slo": Slo(25, percentile=50),
    "context_cv": 0.0,
    "context": 400,
    "max_attention": 3,
    "max_experts": 4,
    "max_batch": 64,
    "placing": "eplb",
}


def plain_step_ms(problem, table, width, slots, B):
    """One step in plain sums: every GPU holds ceil(B / width) requests and `slots` experts."""
    lat, m = problem.latency, problem.latency.model
    b = -(-B // width)
    exchange = _exchange_s(problem, width, B) * 1e6
    total = lat.efficiency.step_us + lat.weights_us(m.vocab * m.hidden, b, "bf16")
    total += lat.op_us(lat.efficiency.sampling_passes * 4 * b * m.vocab, 0, "bf16")
    for layer in range(m.layers):
        total += lat.attention_layer_us(b, problem.context)
        if layer < m.dense_layers:
            total += lat.efficiency.dense_us + lat.weights_us(m.dense_params, b, m.dense_dtype)
            continue
        shared = 0.0
        if m.shared_width:
            shared = lat.efficiency.dense_us + lat.weights_us(m.shared_params, b, m.dense_dtype)
        total += lat.moe_layer_us(table.at(width, B, slots), B) + max(exchange, shared)
    return total / 1e3


def room(problem, width, slots):
    m, cluster = problem.latency.model, problem.latency.cluster
    held = m.attention_side_bytes + slots * slot_bytes(m) + gate_bytes(m, problem.max_batch)
    each = max(0, int((cluster.usable_bytes - held) // request_bytes(m, problem.context)))
    return min(problem.max_batch, width * each)


def brute_force(problem, table):
    """(GPUs, TPOT) of every deployment that serves the demand within the SLO, the smallest first."""
    found = []
    for width, slots in _pairs(problem):
        most = room(problem, width, slots)
        table = table.extended([(width, slots)]) if most else table
        for copies in range(1, 7 // width + 1):
            for B in range(1, most + 1):
                tpot = plain_step_ms(problem, table, width, slots, B)
                if tpot > problem.slo_ms:
                    break
                if problem.demand / copies * tpot / 1e3 <= B:
                    found.append((width * copies, tpot))
                    break
    return min(found, default=None)


@pytest.mark.parametrize("demand", [100, 1500, 4000, 100_000])
@pytest.mark.parametrize(("name", "gigabytes"), [("olmoe-1b-7b", 6), ("deepseek-v2-lite", 24)])
def test_it_is_the_optimum(name, gigabytes, demand, skewed):
    model = ModelSpec.from_config(name)
    cluster = Cluster(Hardware("toy", gigabytes * 2**30, 1e12, 2e14, 4e14, 2e11, 2, 200))
    p = plan(model, cluster, demand=demand, trace=skewed(1, 64), **ARGS)
    want = brute_force(p.problem, p.problem.table)
    if want is None:
        assert p.colocated is None
    else:
        assert (p.colocated.gpus, p.colocated.tpot_ms) == (want[0], pytest.approx(want[1], rel=1e-9))


def test_both_cases_of_the_optimum_are_met(skewed):
    """The grid above holds a served demand and one that nothing serves; else half of it would prove nothing."""
    cluster = Cluster(Hardware("toy", 6 * 2**30, 1e12, 2e14, 4e14, 2e11, 2, 200))
    served = [
        plan("olmoe-1b-7b", cluster, demand=d, trace=skewed(1, 64), **ARGS).colocated is not None
        for d in (100, 100_000)
    ]
    assert served == [True, False]


def test_the_slot_counts_hold_every_expert(small_plan):
    pairs = _pairs(small_plan.problem)
    assert all(width * slots >= 64 for width, slots in pairs)
    assert {width for width, _ in pairs} == set(range(1, 15))  # 6 + 8 GPUs at most


def test_the_exchange_by_hand(small_plan):
    """Four GPUs of one node, no latency, a byte a second: b tokens go to 3 others with probability 1 - (3/4)^8 each."""
    from dataclasses import replace

    free = CostModel({"in_node": 0, "between_nodes": 0}, {"in_node": 1e-9, "between_nodes": 1e-6})
    problem = small_plan.problem
    latency = type(problem.latency)(
        problem.latency.model, problem.latency.cluster, problem.latency.efficiency, ExchangeCost(free, 4)
    )
    problem = replace(problem, latency=latency)
    row = 2 * 2048 * 1e-9
    assert _exchange_s(problem, 1, 8) == 0
    assert _exchange_s(problem, 4, 8) == pytest.approx(2 * 2 * row * 3 * (1 - 0.75**8))
    # two nodes: once across to the other node (needed with probability 1 - (1/2)^8), then in the node
    across = 2 * 2048 * 1e-6 * (1 - 0.5**8)
    inside = row * 8 * (1 - (7 / 8) ** 8)
    assert _exchange_s(problem, 8, 8) == pytest.approx(2 * (across + inside))


def test_messages_cost_by_the_peer(small_plan):
    from dataclasses import replace

    slow = CostModel({"in_node": 1e-3, "between_nodes": 1}, {"in_node": 0, "between_nodes": 0})
    old = small_plan.problem.latency
    latency = type(old)(old.model, old.cluster, old.efficiency, ExchangeCost(slow, 4))
    problem = replace(small_plan.problem, latency=latency)
    assert _exchange_s(problem, 4, 400) == pytest.approx(2 * 3e-3)
    assert _exchange_s(problem, 8, 400) == pytest.approx(2 * (1 + 3e-3))  # one other node, then three neighbours


def test_copies_share_the_demand(skewed):
    """Twice the demand never needs more than twice the GPUs."""
    cluster = Cluster(Hardware("toy", 6 * 2**30, 1e12, 2e14, 4e14, 2e11, 2, 200))
    args = {**ARGS, "max_attention": 8, "max_experts": 8}
    one, two = (plan("olmoe-1b-7b", cluster, demand=d, trace=skewed(1, 64), **args).colocated for d in (1500, 3000))
    assert two.gpus <= 2 * one.gpus
    assert two.throughput >= 3000 * (1 - 1e-9)


def test_a_fixed_batch_is_shared_too(skewed):
    cluster = Cluster(Hardware("toy", 6 * 2**30, 1e12, 2e14, 4e14, 2e11, 2, 200))
    p = plan("olmoe-1b-7b", cluster, batch=40, trace=skewed(1, 64), **ARGS)
    c = p.colocated
    assert c.batch * c.copies >= 40 > (c.batch - 1) * c.copies
    again, table = colocated_optimum(p.problem, p.problem.table)
    assert again == c
    assert (c.width, c.slots) in table.rows


def test_the_gpu_alone_in_a_part_filled_node_is_the_busiest(small_plan):
    """Five GPUs on nodes of four: the fifth trades with four far peers whichever way rows travel."""
    from dataclasses import replace

    slow = CostModel({"in_node": 1e-3, "between_nodes": 1}, {"in_node": 0, "between_nodes": 0})
    old = small_plan.problem.latency
    latency = type(old)(old.model, old.cluster, old.efficiency, ExchangeCost(slow, 4))
    problem = replace(small_plan.problem, latency=latency)
    assert _exchange_s(problem, 5, 400) == pytest.approx(2 * 4)
