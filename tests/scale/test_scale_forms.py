"""The forms by hand, their growth, and what happens on another card."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.scale.kernels.forms import FORMS, smooth_max

MOE = {"experts": 10.0, "tokens": 1.0, "expert_bytes": 44e6, "expert_params": 44e6, "hidden": 7000.0}
MLA = {"batch": 64.0, "context": 1000.0, "heads": 128.0, "kv_bytes": 1152.0, "head_flops": 2176.0}
MODULE = MLA | {"params": 187e6, "weight_bytes": 187e6}
DEEPEP = {"tokens": 64.0, "top_k": 8.0, "row_bytes": 14336.0, "all_experts": 256.0, "nodes": 4.0}
EXAMPLES = {
    "moe": MOE, "mla_decode": MLA, "mla_module": MODULE, "deepep_node": DEEPEP, "deepep_nodes": DEEPEP,
    "collective": {"bytes": 1e6}, "decode": MLA | {"token_flops": 32768.0},
}  # fmt: skip


def test_ten_experts_by_hand():
    c = {"fixed_us": 20.0, "memory_tb_per_s": 4.0, "compute_tflops": 400.0, "rows_tb_per_s": 0.1}
    # 440 MB at 4 TB/s: 110 us; one token's 88 MFLOP at 400 TFLOP/s is 0.22 us beside it; its row 0.07 us
    assert FORMS["moe"].us(c, MOE) == pytest.approx(20 + 110 + 0.07, abs=1e-6)
    # a million tokens: 220,000 us of FLOPs and 70,000 us of rows
    assert FORMS["moe"].us(c, MOE | {"tokens": 1e6}) == pytest.approx(20 + 220_000 + 70_000)


def test_mla_by_hand():
    c = {"fixed_us": 10.0, "memory_tb_per_s": 1.152, "compute_tflops": 1e9, "query_ns": 1.0, "token_ns": 2.0}
    # 64,000 tokens of 1152 bytes: 64 us; queries 64 * 144 ns; 1000 tokens of 2 ns
    assert FORMS["mla_decode"].us(c, MLA) == pytest.approx(10 + 64 + 9.216 + 2)
    few = MLA | {"heads": 1.0, "kv_bytes": 1e-9}  # a tile of 16 heads is computed anyway: 64,000 * 16 * 2176 FLOPs
    assert FORMS["mla_decode"].us(c | {"compute_tflops": 1.0}, few) == pytest.approx(10 + 2228.224 + 1.088 + 2)


def test_any_cache_by_hand():
    c = {"fixed_us": 10.0, "memory_tb_per_s": 1.0, "compute_tflops": 100.0}
    x = {"batch": 4.0, "context": 1000.0, "kv_bytes": 4096.0, "token_flops": 1.0}  # 16.4 MB at 1 TB/s
    assert FORMS["decode"].us(c, x) == pytest.approx(10 + 16.384)
    assert FORMS["decode"].us(c, x | {"token_flops": 1e9}) == pytest.approx(10 + 40_000)


def test_a_module_by_hand():
    c = {"fixed_us": 30.0, "memory_tb_per_s": 1.0, "compute_tflops": 1e9, "core_tflops": 1e9}
    assert FORMS["mla_module"].us(c, MODULE) == pytest.approx(30 + 187 + 64_000 * 1152 / 1e6)


def test_deepep_by_hand():
    # 512 rows of 14,336 bytes: 7.34 MB, at 100 GB/s 73.4 us; three quarters leave the node, at 10 GB/s 550.5 us
    c = {"fixed_us": 8.0, "expert_ns": 10.0, "link_gb_per_s": 100.0, "crowd_us": 4.0, "node_us": 3.0}
    assert FORMS["deepep_node"].us(c, DEEPEP) == pytest.approx(8 + 2.56 + 73.40032 + 1)
    far = FORMS["deepep_nodes"].us(c | {"network_gb_per_s": 10.0}, DEEPEP)
    assert far == pytest.approx(8 + 2 * 3 + 550.5024, rel=1e-3)


def test_a_collective_by_hand():
    c = {"fixed_us": 5.0, "low_gb_per_s": 10.0, "switch_us": 20.0, "high_gb_per_s": 1000.0}
    assert FORMS["collective"].us(c, {"bytes": 1e4}) == pytest.approx(6, rel=1e-6)  # 1 us at 10 GB/s
    assert FORMS["collective"].us(c, {"bytes": 1e8}) == pytest.approx(125, rel=1e-6)  # 20 us, then 100 us


@pytest.mark.parametrize("name", FORMS)
def test_times_grow_with_the_work_and_fall_with_the_peaks(name):
    form, x = FORMS[name], EXAMPLES[name]
    now = form.us(form.start, x)
    for feature in form.coordinates:
        if feature not in (
            "skew",
            "all_experts",
        ):  # an uneven draw costs by its loads; the same tokens on more experts are less crowded
            assert form.us(form.start, x | {feature: 2 * x[feature]}) >= now
    for coefficient in form.scales_with:
        assert form.us(form.start | {coefficient: 2 * form.start[coefficient]}, x) <= now


@pytest.mark.parametrize("name", FORMS)
def test_arrays_and_numbers_agree(name):
    form, x = FORMS[name], EXAMPLES[name]
    assert set(form.coordinates) - {"skew"} <= set(form.features) <= set(x)
    many = form.us(form.start, {k: np.array([v, 3 * v]) for k, v in x.items()})
    each = [form.us(form.start, {k: f * v for k, v in x.items()}) for f in (1, 3)]
    assert many == pytest.approx(each)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.sampled_from([2, 3, 4]))
def test_a_smooth_maximum_lies_between_the_larger_and_the_sum(a, b, p):
    assert max(a, b) * (1 - 1e-9) <= smooth_max(a, b, p) <= (a + b) * (1 + 1e-9)
    assert (1 - 1e-9) / (1 / a + 1 / b) <= smooth_max(a, b, -p) <= min(a, b) * (1 + 1e-9)
