"""What fits, by hand; and what prompts cost, by hand."""

import pytest

from janus.scale import Cluster, Efficiency, Hardware, LatencyModel, ModelSpec
from janus.scale.search.memory import attention_capacity, expert_slots, gate_bytes, request_bytes, slot_bytes
from janus.scale.timing.prefill import Prefill


@pytest.fixture(scope="module")
def v2():
    return ModelSpec.from_config("deepseek-v2")


def card(gigabytes, use=1.0):
    return Cluster(Hardware("card", gigabytes * 1e9, 1e12, 1e14, 2e14, 1e11), memory_use=use)


def test_a_slot_is_one_expert_of_every_layer(v2):
    assert slot_bytes(v2) == 59 * 3 * 5120 * 1536 * 2


def test_the_paper_s_27_slots_on_80_gb(v2):
    assert expert_slots(v2, Cluster("h100-sxm"), 16384) == 27


def test_slots_fill_what_routers_and_buffers_leave(v2):
    fixed = 59 * 160 * 5120 * 2 + 100 * 5120 * 6
    assert gate_bytes(v2, 100) == fixed
    for wanted in (1, 3, 20):
        need = (fixed + wanted * slot_bytes(v2)) / 1e9
        assert expert_slots(v2, card(need * (1 + 1e-9)), 100) == wanted
        assert expert_slots(v2, card(need * (1 - 1e-9)), 100) == wanted - 1


def test_never_more_slots_than_experts(v2):
    assert expert_slots(v2, card(10_000), 100) == 160


def test_a_request_is_its_cache_its_logits_and_its_rows(v2):
    assert request_bytes(v2, 1000) == 60 * 1000 * 576 * 2 + 4 * 102400 + 16 * 5120


def test_requests_fill_what_the_weights_leave(v2):
    weights, each = v2.attention_side_bytes, request_bytes(v2, 500)
    exact = (weights + 10.5 * each) / 1e9
    assert attention_capacity(v2, card(exact), 500) == 10
    assert attention_capacity(v2, card(2 * exact, use=0.5), 500) == 10
    assert attention_capacity(v2, card(exact), 500, held_bytes=each) == 9
    assert attention_capacity(v2, card(weights / 1e9), 500) == 0
    assert attention_capacity(v2, card(1), 500) == 0


def test_weights_of_the_attention_side_by_hand(v2):
    per_layer = 5120 * 1536 + 1536 + 1536 * 128 * 192 + 5120 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 5120
    assert v2.attention_params == per_layer
    inside = 60 * per_layer + 3 * 5120 * 12288 + 59 * 3 * 5120 * 3072
    assert v2.attention_side_bytes == 2 * (inside + 2 * 102400 * 5120)


def test_prompts_by_hand(v2):
    """100 prompt tokens/s of length 200 at 100 TFLOP/s and full efficiency on one GPU of each kind."""
    latency = LatencyModel.roofline(v2, card(80), efficiency=Efficiency(compute=1.0))
    side = 60 * v2.attention_params + 3 * 5120 * 12288 + 59 * 3 * 5120 * 3072
    # every layer, half the prompt, 128 heads: scores of 128 and 64 with the position, values of 128
    scores = 60 * 100 * 2 * 128 * (192 + 128)
    experts = 59 * 6 * 3 * 5120 * 1536
    one = 100 * (2 * side + scores + 2 * experts) / 1e14
    prompts = Prefill(100, 200)
    assert prompts.share(latency, 1, 1) == pytest.approx(one)
    assert prompts.share(latency, 2, 2) == pytest.approx(one / 2)
    assert Prefill(200, 200).share(latency, 1, 1) == pytest.approx(2 * one)
    assert Prefill(100, 400).share(latency, 1, 1) > one
