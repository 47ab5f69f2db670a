"""Measuring: on the CPU for real with a tiny model, and its arithmetic on a clock of our own."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from janus import JanusError
from janus.scale import Cluster, Hardware, LatencyModel, ModelSpec
from janus.scale.kernels import measuring
from janus.scale.model import AttentionSpec
from janus.scale.timing.latency import Activated

TINY = ModelSpec(
    name="tiny", layers=2, moe_layers=2, hidden=32, experts=8, top_k=2, expert_width=16, shared_width=0, dense_width=0,
    vocab=64, attention=AttentionSpec("gqa", heads=4, kv_heads=2, head_dim=8, v_head_dim=8),
)  # fmt: skip
MLA = AttentionSpec("mla", heads=4, kv_heads=1, head_dim=8, v_head_dim=8, rope_dim=4, kv_rank=16)
CARD = Hardware("card", 1e9, 1e12, 1e14, 1e14, 1e10, 8, 100)


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    monkeypatch.setattr(measuring, "CONTEXTS", (16, 64, 128))
    monkeypatch.setattr(measuring, "BATCHES", (1, 2, 4))
    monkeypatch.setattr(measuring, "CPU_BYTES", 2**22)
    monkeypatch.setattr(measuring, "MOST", 5)  # so that budgets of a busy machine's size are not used up


class Fixed:
    def at(self, n_e, B):
        return Activated(3.0, 6.0)


@pytest.mark.parametrize("model", [TINY, replace(TINY, attention=MLA)], ids=["gqa", "mla"])
def test_this_machine_is_measured_and_says_so(model, tmp_path):
    told = []
    latency = LatencyModel.measure(model, Cluster(CARD), device="cpu", budget_s=60.0, progress=told.append)
    assert 0 < latency.efficiency.memory <= 1
    assert 0 < latency.efficiency.compute <= 1
    assert latency.efficiency.attention_us == pytest.approx(4 * latency.efficiency.dense_us)  # 12 and 3 launches
    assert "scaled dot product on the CPU, torch" in latency.provenance["attention"]
    assert "bmm on the CPU, torch" in latency.provenance["moe"]
    assert "measured on the CPU" in latency.provenance["other"]
    assert latency.sources(1, 1, 2, 40, Fixed()) == {
        "attention": "interpolated", "moe": "interpolated", "comm": "roofline", "other": "roofline",
    }  # fmt: skip
    assert told
    assert all(0 <= share <= 1 for share in told)
    latency.save(tmp_path / "l.json")
    step = LatencyModel.load(tmp_path / "l.json").tpot(1, 1, 2, 40, Fixed())
    assert step == latency.tpot(1, 1, 2, 40, Fixed())
    assert step.tpot > 0


@pytest.mark.parametrize("fields", [{"expert_dtype": "fp8"}, {"kv_dtype": "fp8"}])
def test_what_torch_cannot_run_keeps_the_roofline_with_measured_shares(fields):
    model = replace(TINY, **fields)
    latency = LatencyModel.measure(model, Cluster(CARD), device="cpu", budget_s=60.0)
    part = "moe" if "expert_dtype" in fields else "attention"
    assert latency.provenance[part].startswith("roofline: shares of card's peaks and launches measured on the CPU")


def test_a_budget_of_nothing_still_gives_a_model():
    latency = LatencyModel.measure(TINY, Cluster(CARD), device="cpu", budget_s=1e-6)
    assert latency.kernels.kernels == ()
    assert latency.provenance["moe"].startswith("roofline: shares")


def test_the_budget_is_kept_about():
    started = time.monotonic()
    LatencyModel.measure(TINY, Cluster(CARD), device="cpu", budget_s=1.0)
    assert time.monotonic() - started < 10  # a shared machine; the least repetitions take their time


def bench_of(us):
    """A device on which everything takes `us`."""
    return SimpleNamespace(
        torch=SimpleNamespace(uint8=None, zeros=lambda *a, **k: None, empty_like=lambda x: None),
        device=SimpleNamespace(type="cpu"), bytes=4e9, median_us=lambda call: us, filled=lambda *shape: None,
    )  # fmt: skip


def test_rates_by_hand():
    # 1 GB copied in 1 ms: read once, written once; 2 * 512^3 FLOPs in 1 ms; 20 launches in 1 ms
    assert measuring._bytes_per_s(bench_of(1000)) == pytest.approx(2 * 1e9 / 1e-3)
    assert measuring._flops(bench_of(1000)) == pytest.approx(2 * 512**3 / 1e-3)
    assert measuring._launch_us(bench_of(1000)) == pytest.approx(50)


def test_the_median_of_repetitions_counts(monkeypatch):
    bench = measuring.Bench.on("cpu", 1.0, None)
    times = iter([5.0, 1.0, 900.0, 2.0, 3.0] * 20)
    monkeypatch.setattr(bench, "_once_us", lambda call: next(times))
    assert bench.median_us(lambda: None, share=1.0) == 3.0


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "", 3, None, "meta"])
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(JanusError) as caught:
        LatencyModel.measure(TINY, Cluster(CARD), device=device, budget_s=1)
    assert caught.value.code == "latency.measure"


def test_without_torch_the_remedy_is_named(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(measuring.importlib, "import_module", absent)
    with pytest.raises(JanusError, match="pip install torch"):
        LatencyModel.measure(TINY, Cluster(CARD), budget_s=1)


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "long"])
def test_a_budget_must_be_seconds(budget):
    with pytest.raises(JanusError, match="budget_s"):
        LatencyModel.measure(TINY, Cluster(CARD), device="cpu", budget_s=budget)


@pytest.mark.gpu
def test_a_gpu_is_measured_within_its_peaks():
    latency = LatencyModel.measure(TINY, Cluster("h100-sxm"), device="cuda", budget_s=5)
    assert 0.01 < latency.efficiency.memory <= 1
    assert "torch" in latency.provenance["other"]
