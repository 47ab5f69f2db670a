"""State dicts of layers that are quantized, replaced or one instance of several: the experts decide, not the slots."""

import pytest
import torch

from janus import JanusError, JanusMoELayer, Placement

E, H, W = 6, 10, 7
OLD = Placement([[0, 1, 2, 3], [4, 5, 0, 1]], num_experts=E)
NEW = Placement([[0, 1, 3, 2], [5, 4, 1, 2]], num_experts=E)


def _weights(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(E, *shape, generator=g) for shape in ((W, H), (W, H), (H, W))]


def _batch():
    g = torch.Generator().manual_seed(9)
    return torch.randn(8, H, generator=g), torch.randint(E, (8, 3), generator=g), torch.rand(8, 3, generator=g)


def _source(e):
    gate, up, down = _weights()
    return {"gate_up_proj": torch.cat([gate, up], 1)[e], "down_proj": down[e]}


def _same(left, right):
    torch.testing.assert_close(left(*_batch()), right(*_batch()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "int8", "fp8"])
@pytest.mark.parametrize("into", [OLD, NEW, None])
def test_a_replaced_layer_is_read_under_any_placement(quantize, into):
    layer = JanusMoELayer.from_tensors(*_weights(), OLD, quantize=quantize, staging=6)
    with layer.replacing(NEW):
        pass
    state = layer.state_dict()
    assert {len(t) for t in state.values()} == {E}
    other = JanusMoELayer.from_tensors(*_weights(1), into, quantize=quantize, compute=layer.compute)
    other.load_state_dict(state)
    _same(other, layer)
    layer.load_state_dict(other.state_dict())
    _same(other, layer)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_replaced_instance_is_read_by_a_fresh_one(quantize):
    for instance in range(2):
        layer = JanusMoELayer.from_tensors(*_weights(), OLD, instance=instance, quantize=quantize, staging=4)
        with layer.replacing(NEW, _source):
            pass
        other = JanusMoELayer.from_tensors(*_weights(1), NEW, instance=instance, quantize=quantize)
        other.load_state_dict(layer.state_dict())
        _same(other, layer)


def test_a_layer_that_is_being_replaced_reads_no_state():
    layer = JanusMoELayer.from_tensors(*_weights(), OLD, quantize="int8", staging=6)
    layer.begin_replace(NEW)
    with pytest.raises(JanusError) as error:
        layer.load_state_dict(layer.state_dict())
    assert error.value.code == "layer.busy"


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_as_many_rows_as_there_are_slots_are_not_taken_for_experts(quantize):
    layer = JanusMoELayer.from_tensors(*_weights(), OLD, quantize=quantize)
    state = {name: torch.cat([t, t[:2]]) for name, t in layer.state_dict().items()}
    assert {len(t) for t in state.values()} == {layer.slots.num_slots}
    with pytest.raises(RuntimeError, match=r"size mismatch.*each of the 6 experts"):
        layer.load_state_dict(state)
