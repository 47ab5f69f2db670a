"""The opaque operation: one graph, whatever T; the layer is looked up when the graph runs; what cannot be is refused."""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from janus import JanusError
from janus.experts import op
from janus.experts.op import Handle, traced


class Sums(nn.Module):
    """Stands for a layer: hidden states times the sum of weights, times a scale that may be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.handle, self.seen = Handle(self), []

    def run(self, hidden, topk_ids, topk_weights):
        self.seen.append((len(hidden), torch.is_autocast_enabled("cpu")))
        return hidden * topk_weights.sum(1, keepdim=True) * self.scale

    def forward(self, hidden, topk_ids, topk_weights):
        return traced(self, self.handle.key, hidden, topk_ids, topk_weights)


def _batch(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(tokens, 4), torch.zeros(tokens, 2).long(), torch.rand(tokens, 2)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(layer: nn.Module, backend: str, **options):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(layer, fullgraph=True, backend=counter, **options), counter


def _refused(call) -> str:
    with pytest.raises(JanusError) as error:
        call()
    return error.value.code


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_for_every_number_of_tokens(backend):
    layer, frames = Sums(), []
    run, counter = compiled(layer, backend, dynamic=True)
    for tokens in (5, 2, 9):
        hidden, ids, weights = _batch(tokens)
        assert torch.equal(run(hidden, ids, weights), layer.run(hidden, ids, weights))
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1
    assert [tokens for tokens, _ in layer.seen] == [5, 5, 2, 2, 9, 9]


def test_a_marked_dimension_is_as_good():
    layer = Sums()
    run, counter = compiled(layer, "eager")
    for tokens in (5, 2, 9):
        batch = _batch(tokens)
        for value in batch:
            torch._dynamo.mark_dynamic(value, 0)
        assert torch.equal(run(*batch), layer.run(*batch))
    assert counter.frame_count == 1


def test_the_operation_is_what_it_says_to_torch():
    layer = Sums()
    call = (*_batch(3), layer.handle.key, None, False)
    torch.library.opcheck(torch.ops.janus.experts.default, call, test_utils=("test_schema", "test_faketensor"))


def test_a_graph_sees_the_weights_of_the_moment_it_runs():
    layer, batch = Sums(), _batch(3)
    run, counter = compiled(layer, "aot_eager")
    before, frames = run(*batch), counter.frame_count
    layer.scale.mul_(2)
    assert torch.equal(run(*batch), 2 * before)
    layer.run = lambda hidden, ids, weights: torch.zeros_like(hidden)  # as exchanged as can be
    assert torch.equal(run(*batch), torch.zeros(3, 4))
    assert counter.frame_count == frames


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_call_that_needs_a_gradient_is_refused(backend):
    layer = Sums()
    run, _ = compiled(layer, backend)
    hidden, ids, weights = _batch(3)
    for call in ((hidden.clone().requires_grad_(), ids, weights), (hidden, ids, weights.clone().requires_grad_())):
        assert _refused(lambda call=call: run(*call)) == "layer.grad"
        with torch.no_grad():
            assert not run(*call).requires_grad
    layer.scale.requires_grad_()
    assert _refused(lambda: run(hidden, ids, weights)) == "layer.grad"
    with torch.inference_mode():
        assert run(hidden, ids, weights).shape == (3, 4)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_autocast_of_the_caller_reaches_the_layer(backend):
    layer = Sums()
    run, _ = compiled(layer, backend)
    run(*_batch(2))
    with torch.autocast("cpu", torch.bfloat16):
        run(*_batch(2))
    assert [on for _, on in layer.seen] == [False, True]


def test_a_layer_is_not_kept_alive_and_its_key_is_refused_afterwards():
    layer = Sums()
    key, gone = layer.handle.key, weakref.ref(layer)
    assert torch.ops.janus.experts(*_batch(2), key, None, False).shape == (2, 4)
    del layer
    gc.collect()
    assert gone() is None
    assert _refused(lambda: torch.ops.janus.experts(*_batch(2), key, None, False)) == "layer.gone"
    assert key not in op._LAYERS


def test_no_two_layers_share_a_key():
    layers = [Sums() for _ in range(5)]
    keys = [layer.handle.key for layer in layers]
    assert len(set(keys)) == 5
    assert min(keys) > 1  # torch.compile specialises on 0 and 1
    assert all(isinstance(layer.handle.lock, type(threading.Lock())) for layer in layers)


def test_errors_of_the_layer_come_through_a_graph_unchanged():
    layer = Sums()
    run, _ = compiled(layer, "aot_eager")
    run(*_batch(2))

    def refuse(*call):
        raise JanusError("sched.range", "one id is too large")

    layer.run = refuse
    assert _refused(lambda: run(*_batch(2))) == "sched.range"
