"""Chosen experts on a real GPU: values, graphs, streams, and that a call neither waits nor grows. Layer 3 (GPU)."""

import entries
import pytest
import torch
from entries import GPT_OSS, LIMITS

from janus import JanusError
from janus.experts.device import TritonEngine
from janus.experts.workspace import Workspace

pytestmark = pytest.mark.gpu
S, K, H, F = 12, 4, 384, 136


def made(dtype=torch.bfloat16, *, quantize=None, **layout):
    return entries.slots(entries.layout(H, F, **layout), S, dtype, quantize=quantize, device="cuda")


def drawn(T, dtype=torch.bfloat16, seed=0):
    return entries.batch(T, K, S, H, dtype, seed=seed, device="cuda")


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("T", [1, 9, 70])
def test_values_are_those_of_float64(T, dtype):
    out, given = made(dtype), drawn(T, dtype)
    assert out.compute == "triton"
    assert entries.error(out(*given), entries.plain(out, *given)) <= LIMITS[dtype]


@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("layout", [{}, {"act": GPT_OSS, "bias": True, "transposed": True}], ids=["plain", "gpt-oss"])
def test_quantized_values_are_those_of_float64(form, layout):
    if form == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    out, given = made(quantize=form, **layout), drawn(9)
    assert entries.error(out(*given), entries.plain(out, *given)) <= 2e-2


@pytest.mark.parametrize("T", [1, 16, 40, 200])
def test_a_call_can_be_captured_and_replayed_on_new_ids(T):
    out, (x, ids, weights) = made(), drawn(T)
    out(x, ids, weights)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = out(x, ids, weights)
    for seed in range(10):
        for tensor, new in zip((x, ids, weights), drawn(T, seed=seed), strict=True):
            tensor.copy_(new)
        graph.replay()
        assert torch.equal(kept, out(x, ids, weights))


def test_a_thousand_runs_give_the_same_bits():
    out, given = made(), drawn(16)
    first = out(*given)
    differing = sum(int((out(*given) != first).any()) for _ in range(1000))
    assert differing == 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch calls it a prototype
@pytest.mark.parametrize("T", [1, 40, 200])
def test_a_call_waits_for_nothing_and_allocates_its_result_alone(T):
    out, given = made(), drawn(T)
    out(*given)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        out(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before + 1


def test_work_goes_to_the_current_stream_and_streams_wait_for_each_other():
    out, (x, ids, weights), stream = made(), drawn(40), torch.cuda.Stream()
    want = out(x.flip(0), ids, weights)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # tens of milliseconds before the tokens change
        x.copy_(x.flip(0).clone())
        got = out(x, ids, weights)
    here = out(*drawn(40, seed=1))  # the same workspace, from another stream
    torch.cuda.synchronize()
    assert torch.equal(got, want)
    assert torch.equal(here, out(*drawn(40, seed=1)))


def test_a_capture_that_would_need_more_workspace_is_refused(monkeypatch):
    out, given = made(), drawn(40)
    want = out(*given)
    engine = TritonEngine(out)
    engine._workspace = Workspace(out.device)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(JanusError, match="run one batch of this size before"):
            engine(*given)
    engine.reserve(40, K)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = engine(*given)
    held = engine._workspace._block.data_ptr()
    engine.reserve(4000, K)  # a larger block; the graph's stays where it is
    assert engine._workspace._block.data_ptr() != held
    graph.replay()
    assert torch.equal(kept, want)
