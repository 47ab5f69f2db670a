"""JanusMoELayer under torch.compile, inference_mode, autocast, threads, copies; and what a call costs the host."""

import copy
import io
import pickle
import shutil
import sys
import threading

import pytest
import tiny
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from janus import JanusError, JanusMoELayer, Placement, convert
from janus.sched.tables import LayerTables

REPLICATED = Placement([[0, 1, 2, 3, 4, 5, 15], [6, 7, 8, 9, 10, 11, 0], [12, 13, 14, 15, 1, 2, 3]], 16)
BACKENDS = ["eager", "aot_eager"]


def _experts():
    model = tiny.build("olmoe", num_hidden_layers=1)
    model.set_experts_implementation("eager")
    return model.model.layers[0].mlp.experts.requires_grad_(False)


EXPERTS = _experts()


def _batch(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(16, generator=g)[:3] for _ in range(tokens)])
    return torch.randn(tokens, 64, generator=g), ids, torch.rand(tokens, 3, generator=g)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _refused(call) -> str:
    with pytest.raises(JanusError) as error:
        call()
    return error.value.code


@pytest.mark.parametrize("placement", [None, REPLICATED], ids=["one-instance", "replicas"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_layer_is_one_graph_with_the_same_numbers(backend, placement):
    counter = CompileCounterWithBackend(backend)
    run = torch.compile(JanusMoELayer(EXPERTS, placement), fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for tokens in (4, 2, 7):
        batch = _batch(tokens)
        assert torch.equal(run(*batch), EXPERTS(*batch))
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1
    with torch.inference_mode():
        assert torch.equal(run(*batch), EXPERTS(*batch))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ and there is no g++ here")
@pytest.mark.filterwarnings("ignore")  # inductor's own imports warn; what is tested are the numbers
def test_inductor_takes_the_layer_too():
    run = torch.compile(JanusMoELayer(EXPERTS, REPLICATED), fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for tokens in (3, 6):
            batch = _batch(tokens)
            assert torch.equal(run(*batch), EXPERTS(*batch))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_converted_model_compiles_without_a_break(backend):
    model = tiny.build("olmoe", num_hidden_layers=2 if backend == "eager" else 1)
    model.set_experts_implementation("eager")
    counter, frames = CompileCounterWithBackend(backend), []
    with torch.inference_mode():
        batches = [torch.arange(3, 3 + 2 * n).reshape(2, n) for n in (5, 7, 4)]
        want = [model(ids, use_cache=False).logits for ids in batches]
        run = torch.compile(convert(model, REPLICATED), fullgraph=True, dynamic=True, backend=counter)
        for ids, logits in zip(batches, want, strict=True):
            assert torch.equal(run(ids, use_cache=False).logits, logits)
            frames.append(counter.frame_count)
    assert len(set(frames)) == 1


def test_blocks_compiled_one_by_one_serve_their_own_weights():
    model = convert(tiny.build("olmoe"))
    layers = [m for m in model.modules() if isinstance(m, JanusMoELayer)]
    with torch.no_grad():
        batch = _batch(3)
        want = [layer(*batch) for layer in layers]
        for layer in layers:
            layer.compile(fullgraph=True, backend="eager")
        assert all(torch.equal(layer(*batch), y) for layer, y in zip(layers, want, strict=True))
    assert not torch.equal(want[0], want[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_call_is_refused_for_the_same_reasons(backend):
    run = torch.compile(JanusMoELayer(EXPERTS), fullgraph=True, backend=backend)
    x, ids, weights = _batch(4)
    assert _refused(lambda: run(x, ids + 16, weights)) == "sched.range"
    assert _refused(lambda: run(x.double(), ids, weights)) == "layer.dtype"
    assert _refused(lambda: run(x, ids[:3], weights)) == "layer.shape"
    assert _refused(lambda: run(x.clone().requires_grad_(), ids, weights)) == "layer.grad"
    assert torch.equal(run(x, ids, weights), EXPERTS(x, ids, weights))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_layer_made_or_called_in_any_mode_gives_the_same(mode):
    batch = _batch(5)
    for placement in (None, REPLICATED):
        with mode():
            layer = JanusMoELayer(EXPERTS, placement)
            assert torch.equal(layer(*batch), EXPERTS(*batch))
        assert torch.equal(layer(*batch), EXPERTS(*batch))


@pytest.mark.parametrize("weights_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden_in", [torch.float32, torch.bfloat16])
def test_autocast_does_what_it_does_to_the_eager_forward(hidden_in, weights_in):
    experts = copy.deepcopy(EXPERTS).to(weights_in)
    layer = JanusMoELayer(experts)
    x, ids, weights = _batch(6)
    x = x.to(hidden_in)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = experts(x, ids, weights)
        got = layer(x, ids, weights)
        assert got.dtype == want.dtype == hidden_in
        assert torch.equal(got, want)
        for backend in BACKENDS:
            assert torch.equal(torch.compile(layer, fullgraph=True, backend=backend)(x, ids, weights), want)


def test_under_autocast_a_fused_way_computes_in_the_dtype_of_the_weights_as_grouped_mm_does():
    layer = JanusMoELayer(copy.deepcopy(EXPERTS).to(torch.bfloat16))
    layer.slots._chosen[layer.slots.device] = "fused"
    seen = []
    layer.slots._engines["fused"] = lambda x, ids, weights: seen.append(x.dtype) or x
    x, ids, weights = _batch(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x, ids, weights).dtype == torch.float32
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("placement", [None, REPLICATED], ids=["one-instance", "replicas"])
def test_copies_and_pickles_are_layers_of_their_own(placement):
    layer, batch = JanusMoELayer(copy.deepcopy(EXPERTS), placement), _batch(5)
    want, file = layer(*batch), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    assert len({m._handle.key for m in (layer, *others)}) == 4
    with torch.no_grad():
        layer.slots.down_proj.zero_()
    for other in others:
        assert torch.equal(other(*batch), want)
        assert torch.equal(torch.compile(other, fullgraph=True, backend="eager")(*batch), want)
    assert not layer(*batch).any()


def test_threads_that_share_a_layer_do_not_spoil_each_other():
    layer = JanusMoELayer(EXPERTS, REPLICATED)
    batches = [_batch(tokens, seed) for seed, tokens in enumerate((3, 11, 6, 24))]
    want = [EXPERTS(*batch) for batch in batches]
    wrong, started = [], threading.Barrier(len(batches))

    def serve(i: int) -> None:
        started.wait()
        for _ in range(60):
            if not torch.equal(layer(*batches[i]), want[i]):
                wrong.append(i)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # switch as often as can be
    try:
        threads = [threading.Thread(target=serve, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_a_refused_call_leaves_the_layer_ready_for_the_next():
    layer = JanusMoELayer(EXPERTS, REPLICATED)
    x, ids, weights = _batch(4)
    assert _refused(lambda: layer(x, ids + 16, weights)) == "sched.range"
    assert torch.equal(layer(x, ids, weights), EXPERTS(x, ids, weights))


def test_a_compiled_layer_follows_a_change_of_its_weights_and_placement():
    experts = copy.deepcopy(EXPERTS)
    layer, (x, ids, weights) = JanusMoELayer(experts), _batch(5)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    before = run(x, ids, weights)
    with torch.no_grad():
        experts.down_proj.mul_(2)  # shared with the layer
    assert torch.equal(run(x, ids, weights), 2 * before)
    moved = Placement([list(range(15, -1, -1))], 16)
    layer.slots, layer.placement = JanusMoELayer(experts, moved).slots, moved
    assert torch.equal(run(x, ids, weights), 2 * before)
    assert layer.assignment(ids).physical_ids.tolist() == (15 - ids).tolist()


@pytest.mark.parametrize(("placement", "most"), [(None, 40), (REPLICATED, 60)], ids=["one-instance", "replicas"])
def test_a_call_costs_the_host_few_steps(placement, most, monkeypatch):
    # Python calls, because times on a shared machine say little; 28 and 49 where the engine itself makes none.
    layer, batch, calls = JanusMoELayer(EXPERTS, placement), _batch(8), []
    layer.slots._engines[layer.compute] = lambda x, ids, weights: x
    layer(*batch)
    monkeypatch.setattr(LayerTables, "build", None)  # no tables are made again
    sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_qualname) if event == "call" else None)
    try:
        layer(*batch)
    finally:
        sys.setprofile(None)
    assert len(calls) <= most, calls


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do_gives_zeros_as_the_eager_forward_does(shape):
    tokens = shape[0]
    x, ids, weights = torch.randn(tokens, 64), torch.empty(shape).long(), torch.empty(shape)
    for placement in (None, REPLICATED):
        layer = JanusMoELayer(EXPERTS, placement)
        assert torch.equal(layer(x, ids, weights), EXPERTS(x, ids, weights))
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x, ids, weights), torch.zeros_like(x))


def test_not_a_number_passes_through_as_in_transformers():
    layer, (x, ids, weights) = JanusMoELayer(EXPERTS, REPLICATED), _batch(4)
    x[1, 5], weights[2, 0] = float("nan"), float("inf")
    torch.testing.assert_close(layer(x, ids, weights), EXPERTS(x, ids, weights), equal_nan=True, rtol=0, atol=0)


def test_memory_in_any_order_gives_the_same():
    layer, (x, ids, weights) = JanusMoELayer(EXPERTS, REPLICATED), _batch(5)
    odd = [torch.stack([t, t], dim=-1)[..., 0] for t in (x, ids, weights)]
    column = [t.t().contiguous().t() for t in (x, ids, weights)]
    for call in (odd, column):
        assert not any(t.is_contiguous() for t in call)
        assert torch.equal(layer(*call), EXPERTS(x, ids, weights))
