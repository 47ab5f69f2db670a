"""Whole steps by hand with round numbers, and what must hold of every step."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.comm.cost import CostModel
from janus.scale import Cluster, Efficiency, Hardware, LatencyModel, ModelSpec
from janus.scale.model import AttentionSpec
from janus.scale.search.colocated import _capacity, _exchange_s, colocated_step
from janus.scale.timing.exchange import ExchangeCost
from janus.scale.timing.latency import Activated

# H = 1000: attention 4 million parameters, an expert 0.3, the shared one 0.6, a dense layer 6, head and embedding 5 each
TOY = ModelSpec(
    name="toy", layers=3, moe_layers=2, hidden=1000, experts=8, top_k=2, expert_width=100, shared_width=200, dense_width=2000,
    vocab=5000, attention=AttentionSpec("mha", heads=10, kv_heads=10, head_dim=100, v_head_dim=100),
)  # fmt: skip
# 1 GB/s of memory and 1 TFLOP/s: a byte is a nanosecond, and no product of fewer than 1000 rows is bound by arithmetic
CARD = Hardware("card", 1e9, 1e9, 1e12, 2e12, 1e9, 4, 8)
SLOW_LINKS = CostModel({"in_node": 1e-6, "between_nodes": 1e-3}, {"in_node": 1e-9, "between_nodes": 1e-6})
FIXED = Efficiency(memory=1.0, compute=1.0, attention_us=1000, moe_us=2000, dense_us=3000, step_us=4000)


class Constant:
    def at(self, n_e, B, slots=None):
        return Activated(3.0, 5.0)


def toy(**changed):
    model = replace(TOY, **changed)
    return LatencyModel.roofline(
        model, Cluster(CARD, memory_use=1.0), efficiency=FIXED, cost=ExchangeCost(SLOW_LINKS, 4)
    )


def test_a_step_by_hand_in_milliseconds():
    step = toy().tpot(2, 4, 10, 500, Constant())
    # attention, per layer: 1 fixed + 8 MB of weights + 5 requests of 500 tokens of 4 kB; shared, per MoE layer: 3 + 1.2 MB
    assert step.attention == pytest.approx(3 * (1 + 8 + 10) + 2 * (3 + 1.2))
    # 2 fixed + 3 experts of 0.6 MB + the gate's 16 kB
    assert step.moe == pytest.approx(2 * (2 + 1.8 + 0.016))
    # each of two attention instances sends its 5 rows of 2 kB once across in 1 + 10 ms, and the two receivers pass them
    # to three neighbours, 3 messages and 15 rows in 33 us; all of it again back. Four messages each (direct) take 44 ms,
    # both instances' 10 rows through one port (gather) 21 ms, and a second message for half the rows costs another 1 ms.
    assert step.comm == pytest.approx(2 * 2 * (11 + 0.033))
    # step 4, one dense layer 3 + 12 MB, the head 10 MB, four passes over 5 rows of 20 kB of logits
    assert step.other == pytest.approx(4 + 3 + 12 + 10 + 0.4)
    assert step.overlap == pytest.approx(2 * 4.2)
    assert step.tpot == pytest.approx(57 + 8.4 + 7.632 + step.comm + 29.4 - 8.4)


def test_a_colocated_step_by_hand(small_plan):
    problem = replace(small_plan.problem, latency=toy(), context=500.0, max_batch=10)
    alone = colocated_step(problem, Constant(), 1, 8, 5)
    assert (alone.comm, alone.overlap) == (0, 0)
    assert alone.tpot == pytest.approx(57 + 8.4 + 7.632 + 29.4)
    # four GPUs of one node, 8 requests, 2 on each: 15/16 of... 1 - (3/4)^2 = 7/16 of 2 rows go to each of 3 neighbours
    four = colocated_step(problem, Constant(), 4, 2, 8)
    assert four.comm == pytest.approx(2 * 2 * (3 * 1e-3 + 3 * 2 * 7 / 16 * 2e-3))
    assert four.attention == pytest.approx(3 * (1 + 8 + 4) + 8.4)
    assert four.overlap == pytest.approx(four.comm)  # shorter than the shared experts


def test_room_of_a_colocated_gpu_by_hand(small_plan):
    problem = replace(small_plan.problem, latency=toy(), context=500.0, max_batch=10)
    side = 2 * (3 * 4_000_000 + 6_000_000 + 2 * 600_000 + 10_000_000)
    gates, slot = 2 * 8000 * 2 + 10 * 6000, 2 * 600_000
    request = 3 * 500 * 4000 + 20_000 + 16_000
    assert _capacity(problem, 1, 8) == (10**9 - side - gates - 8 * slot) // request
    assert _capacity(problem, 4, 2) == 4 * ((10**9 - side - gates - 2 * slot) // request)


@pytest.mark.parametrize(
    ("kind", "bytes_each"), [("fp32", 4), ("bf16", 2), ("fp8", 1), ("int8", 1), ("mxfp4", 0.53125), ("nvfp4", 0.5625)]
)
def test_dtypes_set_what_is_read(kind, bytes_each):
    assert toy(expert_dtype=kind).moe_layer_us(Activated(3, 5), 1) == pytest.approx(2000 + 16 + 900 * bytes_each)
    attention = toy(dense_dtype=kind).attention_layer_us(1, 0)
    assert attention == pytest.approx(1000 + 4000 * bytes_each)
    cache = toy(kv_dtype=kind).attention_layer_us(1, 500) - toy().attention_layer_us(1, 0)
    assert cache == pytest.approx(500 * 2 * bytes_each)


def test_only_fp8_is_multiplied_faster():
    tokens = 1e6  # 2 * 300,000 * 1e6 FLOPs: 0.6 s at 1 TFLOP/s
    times = {k: toy(expert_dtype=k).moe_layer_us(Activated(3, tokens), 1) - 2016 for k in ("bf16", "fp8", "mxfp4")}
    assert times == {"bf16": pytest.approx(6e5), "fp8": pytest.approx(3e5), "mxfp4": pytest.approx(6e5)}


def test_the_indexer_reads_and_scores_every_cached_token():
    """DeepSeek-V3.2, past its 2048 tokens: each further one costs 132 bytes, or 2 * 64 * 128 FLOPs in fp8."""
    model = ModelSpec.from_config("deepseek-v3.2")
    for card, each_us in ((CARD, 132 / 1e9), (replace(CARD, memory_bytes_per_s=1e15), 2 * 64 * 128 / 2e12)):
        latency = LatencyModel.roofline(model, Cluster(card), efficiency=FIXED)
        more = latency.attention_layer_us(3, 50_000) - latency.attention_layer_us(3, 10_000)
        assert more == pytest.approx(3 * 40_000 * each_us * 1e6)


@settings(max_examples=60, deadline=None)
@given(
    faster=st.sampled_from(["memory_bytes_per_s", "bf16_flops", "fp8_flops", "link_bytes_per_s", "inter_node_gbps"]),
    factor=st.floats(1, 10),
    name=st.sampled_from(["deepseek-v2-lite", "gpt-oss-20b", "deepseek-v3.2", "qwen3-30b-a3b"]),
    pools=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    B=st.integers(1, 3000),
    context=st.floats(1, 1e5),
)
def test_better_hardware_is_never_slower_and_more_work_never_faster(faster, factor, name, pools, B, context):
    model, card = ModelSpec.from_config(name), Hardware("card", 8e10, 2e12, 3e14, 6e14, 3e11, 4, 200)
    better = replace(card, **{faster: getattr(card, faster) * factor})
    latency = LatencyModel.roofline(model, Cluster(card))
    now = latency.tpot(*pools, B, context, Constant()).tpot
    assert LatencyModel.roofline(model, Cluster(better)).tpot(*pools, B, context, Constant()).tpot <= now * (1 + 1e-12)
    rows = 16 * pools[0]  # a row on every piece of every instance; a single one can also make pieces more even
    for more in (latency.tpot(*pools, B + rows, context, Constant()), latency.tpot(*pools, B, 2 * context, Constant())):
        assert more.tpot >= now * (1 - 1e-12)
    assert all(part >= 0 for part in vars(latency.tpot(*pools, B, context, Constant())).values())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 300), st.integers(1, 5))
def test_an_exchange_never_beats_the_bytes_that_must_arrive(n_a, n_e, B, size):
    """Every expert instance receives every row that is not its own node's, over one port or through its neighbours."""
    cost = ExchangeCost(CostModel({"in_node": 0, "between_nodes": 0}, {"in_node": 1e-12, "between_nodes": 1e-9}), size)
    width = min(size, n_e)  # the ports of one expert node share the rows that cross
    assert cost.layer_s(n_a, n_e, B, 100) >= 2 * B * 100 * 1e-9 / width * (1 - 1e-9)
    rows = 16 * n_a  # see above
    assert cost.layer_s(n_a, n_e, B + rows, 100) >= cost.layer_s(n_a, n_e, B, 100) * (1 - 1e-12)
    assert cost.layer_s(n_a, n_e, B, 200) == pytest.approx(2 * cost.layer_s(n_a, n_e, B, 100))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 32), st.integers(1, 400), st.integers(1, 8))
def test_a_colocated_exchange_grows_with_the_batch_and_stops_at_every_token_everywhere(small_plan, width, B, node):
    latency = LatencyModel.roofline(TOY, Cluster(CARD), cost=ExchangeCost(SLOW_LINKS, node))
    problem = replace(small_plan.problem, latency=latency)
    now = _exchange_s(problem, width, B)
    assert now <= _exchange_s(problem, width, B + 1)
    assert (now == 0) == (width == 1)
    b, peers = -(-B // width), width - 1
    near, far = latency.cost.link("in_node", 2000), latency.cost.link("between_nodes", 2000)
    assert now <= 2 * max(near.time(peers, peers * b), far.time(peers, peers * b))
