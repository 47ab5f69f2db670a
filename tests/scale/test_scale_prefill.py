"""Prompts' share of the time: the terms that a plain model does not have."""

import pytest

from janus.scale import Cluster, Efficiency, Hardware, LatencyModel, ModelSpec
from janus.scale.timing.prefill import Prefill


def share(name, length, n_a=1, n_e=1, **changed):
    """Of 1000 prompt tokens/s at 100 TFLOP/s bf16, 200 fp8, all of it reached."""
    cluster = Cluster(Hardware("card", 80e9, 1e12, 1e14, 2e14, 1e11))
    model = ModelSpec.from_config(name, **changed)
    return Prefill(1000, length).share(
        LatencyModel.roofline(model, cluster, efficiency=Efficiency(compute=1.0)), n_a, n_e
    )


def test_scores_of_mla_are_as_wide_as_its_heads():
    """A token more of mean prompt is half a position more in each of 60 layers: 128 heads, 128 + 64 wide keys, 128 values."""
    more = share("deepseek-v2", 3000) - share("deepseek-v2", 1000)
    assert more == pytest.approx(1000 * 60 * 1000 * 2 * 128 * (192 + 128) / 1e14)


def test_a_window_ends_the_growth_in_its_layers():
    """gpt-oss: 18 of 36 layers see 128 tokens at most; 64 heads of 64."""
    more = share("gpt-oss-120b", 3000) - share("gpt-oss-120b", 1000)
    assert more == pytest.approx(1000 * 18 * 1000 * 4 * 64 * 64 / 1e14)


def test_sparse_attention_ends_it_in_all():
    assert share("deepseek-v3.2", 10_000) == share("deepseek-v3.2", 100_000)
    assert share("deepseek-v3.2", 1000) < share("deepseek-v3.2", 2000)


def test_each_pool_pays_its_own_part():
    a, e = share("olmoe-1b-7b", 100, 1, 10**9), share("olmoe-1b-7b", 100, 10**9, 1)
    assert e == pytest.approx(1000 * 2 * 16 * 8 * 3 * 2048 * 1024 / 1e14, rel=1e-6)
    assert share("olmoe-1b-7b", 100, 3, 5) == pytest.approx(a / 3 + e / 5, rel=1e-6)


def test_fp8_experts_take_half_the_time():
    bf16, fp8 = (share("olmoe-1b-7b", 100, 10**9, 1, expert_dtype=kind) for kind in ("bf16", "fp8"))
    assert bf16 == pytest.approx(2 * fp8, rel=1e-5)
