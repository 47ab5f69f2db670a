"""Which kernel times which part, on which card, and what the model says about it."""

import re

import pytest

from janus import JanusError
from janus.scale import Cluster, Hardware, LatencyModel, ModelSpec
from janus.scale.kernels.fitted import KernelSet, ratios
from janus.scale.kernels.tables import Tables
from janus.scale.timing.latency import Activated, Efficiency

V3 = {"name": "deepseek-v3", "kv_dtype": "fp8"}


class Fixed:
    def at(self, n_e, B):
        return Activated(16.0, 32.0)


@pytest.fixture(scope="module")
def kernels(made_up_tables):
    return KernelSet.fit(made_up_tables)


def model_of(config, **fields):
    return ModelSpec.from_config(config, **fields)


@pytest.fixture(scope="module")
def v3(kernels):
    return LatencyModel.of_kernels(kernels, model_of("deepseek-v3", kv_dtype="fp8"), Cluster("h200-sxm"))


def test_measured_shapes_take_what_was_measured(v3):
    # 16 even experts with 32 tokens: 128 tokens on 32 ranks is 8 with 32; 16 and 32: 32 tokens on 8 ranks would be 32 and 32
    gate = v3.weights_us(v3.model.router_params, 64, "bf16")
    assert v3.moe_layer_us(Activated(16, 16), 64) == pytest.approx(20 + 12 * 16 + gate, rel=0.02)
    assert v3.attention_layer_us(8, 4096) == pytest.approx(30 + 64 + 8 * 4096 * 576 / 3e6 + 8 / 5, rel=0.01)
    assert v3.sources(8, 8, 64, 4096, Fixed())["attention"] == "measured"
    assert v3.sources(8, 8, 64, 3000, Fixed())["attention"] == "interpolated"
    assert v3.sources(8, 8, 64, 30_000, Fixed())["attention"] == "roofline"
    assert v3.sources(8, 8, 64, 3000, Fixed())["moe"] == "interpolated"


def test_provenance_names_kernel_card_and_error(v3):
    said = v3.provenance
    assert re.match(r"interpolated: fa \(mla_module\) on h200-sxm, \d+ % off on unseen rows", said["attention"])
    assert re.match(r"interpolated: deepep \(moe_decode\) on h200-sxm, \d+ % off", said["moe"])
    assert said["comm"].startswith("roofline: links fitted to DeepEP on h200-sxm")
    assert said["other"].startswith("roofline: datasheet of h200-sxm, default")


def test_the_price_of_a_card_changes_no_time(kernels, v3):
    priced = Cluster(Hardware.preset("h200-sxm", usd_per_hour=3.5))
    again = LatencyModel.of_kernels(kernels, v3.model, priced)
    assert again.provenance == v3.provenance
    assert again.tpot(2, 8, 64, 2000, Fixed()) == v3.tpot(2, 8, 64, 2000, Fixed())


def test_a_step_adds_the_fitted_parts_up(v3):
    step = v3.tpot(2, 8, 64, 2000, Fixed())
    assert step.moe == pytest.approx(58 * v3.moe_layer_us(Activated(16, 32), 64) / 1e3)
    shared = v3.attention_side_us(32, 2000)[1]
    assert step.attention == pytest.approx((61 * v3.attention_layer_us(32, 2000) + 58 * shared) / 1e3)


def test_another_attention_takes_the_kernel_and_the_roofline_of_its_projections(kernels):
    latency = LatencyModel.of_kernels(kernels, model_of("deepseek-v2"), Cluster("h200-sxm"))
    bare = LatencyModel.roofline(latency.model, latency.cluster)
    assert "mla_decode" in latency.provenance["attention"]
    start = kernels.attention(latency.model, latency.cluster.gpu).kernel.coefficients["fixed_us"]
    projections = bare.weights_us(latency.model.attention_params, 8, "bf16")
    measured = 12 + 8 * 4096 * 1152 / 4e6
    want = Efficiency().attention_us - start + projections + measured
    assert latency.attention_layer_us(8, 4096) == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("config", ["qwen3-30b-a3b", "gpt-oss-20b", "mixtral-8x7b", "deepseek-v3.2"])
def test_what_no_kernel_covers_stays_the_roofline(kernels, config):
    """Grouped-query and sparse attention were not measured; bf16 and mxfp4 experts neither."""
    latency = LatencyModel.of_kernels(kernels, model_of(config, expert_dtype="bf16"), Cluster("h200-sxm"))
    bare = LatencyModel.roofline(latency.model, latency.cluster)
    assert latency.attention_layer_us(8, 4096) == bare.attention_layer_us(8, 4096)
    assert latency.moe_layer_us(Activated(4, 8), 64) == bare.moe_layer_us(Activated(4, 8), 64)
    assert latency.provenance["moe"].startswith("roofline: datasheet")


def test_another_shape_of_the_same_dtype_takes_the_coefficients(kernels):
    latency = LatencyModel.of_kernels(kernels, model_of("qwen3-30b-a3b", expert_dtype="fp8"), Cluster("h200-sxm"))
    assert latency.provenance["moe"] == "roofline: coefficients of deepep on h200-sxm at another shape (7168 x 2048)"
    c = kernels.moe(latency.model, latency.cluster.gpu).kernel.coefficients
    read = 20 * latency.model.expert_bytes / c["memory_tb_per_s"] / 1e6
    gate = latency.weights_us(latency.model.router_params, 64, "bf16")
    assert latency.moe_layer_us(Activated(20, 20), 64) == pytest.approx(c["fixed_us"] + read + gate, rel=0.02)
    assert latency.sources(2, 8, 64, 2000, Fixed())["moe"] == "roofline"


def test_another_card_scales_by_peaks_and_says_so(kernels):
    h200, h100 = (
        LatencyModel.of_kernels(kernels, model_of("deepseek-v3", kv_dtype="fp8"), Cluster(card))
        for card in ("h200-sxm", "h100-sxm")
    )
    for part in ("attention", "moe"):
        assert h100.provenance[part].startswith("roofline: scaled from h200-sxm")
    assert set(h100.sources(2, 8, 64, 2000, Fixed()).values()) == {"roofline"}
    slope = [lat.moe_layer_us(Activated(64, 64), 1) - lat.moe_layer_us(Activated(32, 64), 1) for lat in (h200, h100)]
    assert slope[1] / slope[0] == pytest.approx(4.8 / 3.35, rel=0.05)


def test_each_pool_is_scaled_for_its_own_card(kernels):
    model = model_of("deepseek-v3", kv_dtype="fp8")
    mixed = LatencyModel.of_kernels(kernels, model, Cluster("h100-sxm"), Cluster("h200-sxm"))
    assert mixed.provenance["attention"].startswith("roofline: scaled")
    assert mixed.provenance["moe"].startswith("interpolated")


def test_an_exchange_among_measured_peers_takes_what_was_measured(v3, kernels):
    """Eight GPUs of one node: 7 messages of about nothing take the fixed time of a phase, 10 us, twice."""
    near = v3.cost.link("in_node", 0)
    assert 7e6 * near.alpha == pytest.approx(10, rel=0.1)
    # the far rows of 14,336 bytes: 8 choices at (1 - 1/N) of 2 us per token, the other direction half of it
    far = v3.cost.link("between_nodes", 1)
    assert 1e6 * far.beta * 8 * 14336 == pytest.approx(2, rel=0.2)
    assert v3.comm_floor_us == pytest.approx(2 * 22, rel=0.1)
    assert v3.tpot(1, 1, 1, 100, Fixed()).comm == pytest.approx(58 * v3.comm_floor_us / 1e3)


def test_a_calibrated_exchange_is_kept(made_up_tables):
    cluster, model = Cluster("h200-sxm"), model_of("deepseek-v3")
    own = LatencyModel.roofline(model, cluster).cost
    latency = LatencyModel.fit(made_up_tables, model=model, cluster=cluster, cost=own)
    assert (latency.cost, latency.comm_floor_us) == (own, 0)
    assert "DeepEP" not in latency.provenance["comm"]


def test_a_card_without_a_preset_has_to_be_named(made_up_tables):
    unknown = Tables(**{**vars(made_up_tables), "device": "Foo 9000"})
    with pytest.raises(JanusError, match="Foo 9000") as caught:
        KernelSet.fit(unknown)
    assert caught.value.code == "latency.device"
    assert KernelSet.fit(unknown, "h100-sxm").hardware.name == "h100-sxm"


def test_too_little_to_fit_is_refused(made_up_tables):
    few = Tables(moe_decode=made_up_tables.moe_decode[:3], device="NVIDIA H200")
    with pytest.raises(JanusError, match="too few"):
        KernelSet.fit(few)


def test_collectives_are_answered_for_measured_numbers_of_gpus(kernels):
    assert kernels.collective("all_reduce", 8, 2**20).us == pytest.approx(10 + 2**20 / 2e5)
    assert kernels.collective("all_reduce", 8, 3e6).us == pytest.approx(25, rel=0.05)
    for op, gpus, size in (("all_reduce", 3, 1e6), ("alltoall", 8, 1e6), ("all_reduce", 8, 0)):
        with pytest.raises(JanusError, match=r"latency\.collective"):
            kernels.collective(op, gpus, size)
    with pytest.raises(JanusError, match="must be one of"):
        kernels.collective("send", 8, 1e6)


def test_ratios_of_a_card_to_itself_are_one():
    gpu = Cluster("h200-sxm").gpu
    assert set(ratios(gpu, gpu, "fp8").values()) == {1.0}
    assert ratios(gpu, Cluster("b200-sxm").gpu, "bf16")["compute"] == pytest.approx(2250 / 989)


def test_the_recorded_tables_time_deepseek_v3(shared):
    """Reference facts computed from the tables: 30.7 us + 11.04 us per activated expert; attention of one request 92 us."""
    model = model_of("deepseek-v3", kv_dtype="fp8")
    latency = LatencyModel.fit(shared / "data" / "kernel_perf", model=model, cluster=Cluster("h200-sxm"))
    for experts in (8, 16, 32):
        want = 30.7 + 11.04 * experts
        assert latency.moe_layer_us(Activated(experts, 4 * experts), 1) == pytest.approx(want, rel=0.06)
    assert latency.attention_layer_us(1, 1) == pytest.approx(92, rel=0.05)
