"""Slots in 8 bits: what they stand for is what they compute, and what moves or casts a module leaves the bytes alone."""

import copy

import pytest
import tiny
import torch
from torch import nn

from janus import JanusError, JanusMoELayer, Placement, convert
from janus.experts.layout import ExpertLayout
from janus.experts.quantized import FORMATS, dequantize, quantize
from janus.experts.slots import ExpertSlots, slice_expert
from janus.experts.storage import SCALE, encode


class Plain(nn.Module):
    """Experts in the common layout, with or without biases, either way round; odd sizes."""

    def __init__(self, experts=4, hidden=72, inner=200, *, transposed=False, bias=False, dtype=torch.float32):
        super().__init__()
        self.num_experts, self.is_transposed, self.has_bias = experts, transposed, bias
        g = torch.Generator().manual_seed(1)
        for name, (outs, ins) in {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}.items():
            w = torch.randn(experts, outs, ins, generator=g) / ins**0.5
            self.register_parameter(name, nn.Parameter((w.mT.contiguous() if transposed else w).to(dtype)))
            if bias:
                b = torch.randn(experts, outs, generator=g)
                self.register_parameter(f"{name}_bias", nn.Parameter(b.to(dtype)))
        self.requires_grad_(False)

    def act_fn(self, x):
        return nn.functional.silu(x)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        y = torch.zeros_like(hidden_states)
        layout = ExpertLayout.of(self)
        for t in range(len(y)):
            for e, w in zip(top_k_index[t].tolist(), top_k_weights[t], strict=True):
                y[t] += w * layout.run(slice_expert(self, e), hidden_states[t : t + 1])[0]
        return y


LAYOUTS = {
    "plain": dict(),
    "transposed": dict(transposed=True),
    "biases": dict(bias=True),
    "transposed with biases": dict(transposed=True, bias=True),
    "one expert": dict(experts=1, hidden=8, inner=8),
    "whole blocks": dict(hidden=128, inner=256),
}


def _batch(experts, hidden, tokens=9, top_k=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(experts, (tokens, top_k), generator=g)
    return torch.randn(tokens, hidden, generator=g).to(dtype), ids, torch.rand(tokens, top_k, generator=g)


def _dequantized(experts: Plain, name: str) -> Plain:
    """The same module with every matrix replaced by what its quantized form stands for."""
    made = copy.deepcopy(experts)
    for matrix in (made.gate_up_proj, made.down_proj):
        out_in = matrix.data.mT if made.is_transposed else matrix.data
        back = dequantize(*quantize(out_in, name), name, matrix.dtype)
        matrix.data = back.mT if made.is_transposed else back
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_quantized_slots_compute_what_a_module_of_the_dequantized_weights_computes(name, layout):
    experts = Plain(**LAYOUTS[layout])
    slots = ExpertSlots.from_module(experts, range(experts.num_experts), quantize=name, compute="eager")
    hidden = slots.layout.hidden_size
    x, ids, weights = _batch(experts.num_experts, hidden)
    like = ExpertSlots.from_module(_dequantized(experts, name), range(experts.num_experts), compute="eager")
    assert torch.equal(slots(x, ids, weights), like(x, ids, weights))
    slots.verify()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_parameters_scales_and_bytes(name, layout):
    experts, format = Plain(**LAYOUTS[layout]), FORMATS[name]
    slots = ExpertSlots.from_module(experts, [0, -1, 0], quantize=name)
    for matrix in ("gate_up_proj", "down_proj"):
        stored, scales = slots.get_parameter(matrix), slots.get_parameter(matrix + SCALE)
        _, *whole = experts.get_parameter(matrix).shape
        assert (tuple(stored.shape), stored.dtype) == ((3, *whole), format.dtype)
        out_in = tuple(whole[::-1] if experts.is_transposed else whole)  # scales are [out, in] either way
        assert (tuple(scales.shape), scales.dtype) == ((3, *format.scale_shape(out_in)), torch.float32)
    assert slots.nbytes == sum(t.nbytes for t in slots.state_dict().values())
    plain = sum(p.nbytes for p in experts.parameters()) / experts.num_experts
    # Of float32: a quarter and the scales; biases stay, and one block of 8 inputs has a scale like a whole one.
    assert slots.nbytes / 3 < (0.28 if slots.layout.hidden_size > 8 else 0.38) * plain
    assert slots.dtype == torch.float32
    assert not any(p.requires_grad for p in slots.parameters())


CASTS = {
    "to(bfloat16)": lambda m: m.to(torch.bfloat16),
    "bfloat16()": lambda m: m.bfloat16(),
    "half()": lambda m: m.half(),
    "double()": lambda m: m.double(),
    "to(device, dtype)": lambda m: m.to("cpu", torch.bfloat16),
    "of the parent": lambda m: nn.Sequential(m).to(torch.bfloat16)[0],
    "twice": lambda m: m.half().to(torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_cast_changes_the_compute_dtype_and_no_stored_byte(name, cast):
    experts = Plain(bias=True)
    slots = ExpertSlots.from_module(experts, range(4), quantize=name)
    before = {k: v.clone() for k, v in slots.state_dict().items()}
    dtype = {"half()": torch.float16, "double()": torch.float64}.get(cast, torch.bfloat16)
    slots = CASTS[cast](slots)
    after = slots.state_dict()
    assert slots.dtype == dtype
    for key, was in before.items():
        if key.endswith("_bias"):
            assert after[key].dtype == dtype
        else:
            assert after[key].dtype == was.dtype
            assert torch.equal(after[key].view(torch.uint8), was.view(torch.uint8))
    assert {w.dtype for w in slots.weights(2).values()} == {dtype}
    x, ids, weights = _batch(4, 72, dtype=dtype)
    assert slots(x, ids, weights).dtype == dtype
    slots.verify()


@pytest.mark.parametrize("name", FORMATS)
def test_all_of_it_moves_copies_and_saves(name):
    slots = ExpertSlots.from_module(Plain(bias=True), range(4), quantize=name)
    want = {k: v.dtype for k, v in slots.state_dict().items()}
    moved = copy.deepcopy(slots).to("meta", torch.bfloat16)
    assert all(t.is_meta for t in (*moved.parameters(), *moved.buffers()))
    assert moved.dtype == torch.bfloat16
    emptied = moved.to_empty(device="cpu")
    assert emptied.device.type == "cpu"
    emptied.float().load_state_dict(slots.state_dict())
    assert {k: v.dtype for k, v in emptied.state_dict().items()} == want
    emptied.rank_S.copy_(slots.rank_S)
    x, ids, weights = _batch(4, 72)
    assert torch.equal(emptied(x, ids, weights), slots(x, ids, weights))


def test_plain_slots_follow_a_cast_as_before():
    slots = ExpertSlots.from_module(Plain(), [1, 0]).to(torch.bfloat16)
    assert {p.dtype for p in slots.parameters()} == {torch.bfloat16} == {slots.dtype}
    assert set(slots.state_dict()) == {"gate_up_proj", "down_proj"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_bytes_and_scales_are_taken_over_as_they_come(name, layout):
    experts = Plain(**LAYOUTS[layout])
    slots = ExpertSlots.from_module(experts, [0], quantize=name)
    stored = {key: p[0].clone() for key, p in slots.named_parameters()}
    stored["down_proj_scale"] *= 1.7  # a scale that quantizing would not choose
    slots.fill(0, stored)
    assert all(
        torch.equal(p[0].view(torch.uint8), stored[key].view(torch.uint8)) for key, p in slots.named_parameters()
    )
    plain = ExpertSlots(slots.layout, [0], dtype=torch.float32)
    plain.fill(0, stored)  # slots without a format take what the bytes stand for
    assert all(torch.equal(w, plain.weights(0)[key]) for key, w in slots.weights(0).items())
    other = next(f for f in FORMATS if f != name)
    crossed = encode(stored, slots.layout, FORMATS[other])
    want = encode(plain.weights(0), slots.layout, FORMATS[other])
    assert all(torch.equal(crossed[key].view(torch.uint8), want[key].view(torch.uint8)) for key in want)


def _message(call, code="experts.quantize") -> str:
    with pytest.raises(JanusError) as error:
        call()
    assert error.value.code == code
    return error.value.message


def test_wrong_weights_and_formats_are_refused():
    experts = Plain()
    slots = ExpertSlots.from_module(experts, [0], quantize="fp8")
    stored = {key: p[0] for key, p in slots.named_parameters()}
    lone = {key: part for key, part in stored.items() if key != "down_proj_scale"}
    for target in (slots, ExpertSlots(slots.layout, [0], dtype=torch.float32)):
        assert "without down_proj_scale" in _message(lambda target=target: target.fill(0, lone))
    assert "per block" in _message(lambda: slots.fill(0, stored | {"down_proj_scale": torch.ones(1, 1)}))
    for make in (
        lambda: ExpertSlots(slots.layout, [0], dtype=torch.float32, quantize="int4"),
        lambda: JanusMoELayer(experts, quantize="int4"),
    ):
        assert "one of 'int8', 'fp8'" in _message(make)
    with torch.no_grad():
        experts.down_proj[2, 1, 1] = torch.nan
    assert "must be finite" in _message(lambda: JanusMoELayer(experts, quantize="int8"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_of_replicas_and_empty_slots_stays_close_to_the_module(name):
    experts = Plain(experts=16, hidden=64, inner=48)
    placement = Placement([[*range(8), 15, -1], [*range(8, 16), 0, -1]], 16)
    layer = JanusMoELayer(experts, placement, quantize=name)
    x, ids, weights = _batch(16, 64, tokens=30, top_k=3)
    got, want = layer(x, ids.sort().values, weights), experts(x, ids.sort().values, weights)
    # Errors of the weights are independent, so they add up as the weights do: relative to the output, about the
    # relative error of a weight: half a step of 127, or 2**-4 at most, 2**-5.7 on average.
    worst = float((got - want).abs().max() / want.abs().max())
    assert worst < {"int8": 1.2e-2, "fp8": 6e-2}[name]
    changed = experts.down_proj.detach().clone()
    with torch.no_grad():
        experts.down_proj.zero_()
    assert torch.equal(layer(x, ids.sort().values, weights), got)  # nothing is shared with the module
    assert changed.any()


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_model_is_converted_and_one_layer_held_twice_at_most(name, monkeypatch):
    model = tiny.build("mixtral")
    ids = torch.arange(3, 60).reshape(3, 19)
    held, most = sum(p.nbytes for p in model.parameters()), 0

    def watched(self, slot, weights, fill=ExpertSlots.fill):
        nonlocal most
        most = max(most, sum(p.nbytes for p in model.parameters()) + self.nbytes)
        fill(self, slot, weights)

    monkeypatch.setattr(ExpertSlots, "fill", watched)
    with torch.inference_mode():
        want = model(ids).logits
        layer_bytes = sum(p.nbytes for p in model.model.layers[0].mlp.experts.parameters())
        convert(model, quantize=name)
        got = model(ids).logits
    assert most <= held + 0.3 * layer_bytes  # what is quantized, beside the module it comes from
    layers = [m for m in model.modules() if isinstance(m, JanusMoELayer)]
    assert {layer.slots.format.name for layer in layers} == {name}
    assert sum(p.nbytes for p in model.parameters()) < held - 0.7 * layer_bytes * len(layers)
    assert float((got - want).norm() / want.norm()) < {"int8": 0.05, "fp8": 0.3}[name]
    before = model.to(torch.bfloat16)(ids).logits  # the layer computes in the model's new dtype
    assert before.dtype == torch.bfloat16
    assert torch.isfinite(before).all()


def test_a_refused_format_leaves_the_model_alone():
    model = tiny.build("mixtral")
    before = [type(m) for m in model.modules()]
    _message(lambda: convert(model, quantize="int4"))
    assert [type(m) for m in model.modules()] == before


def test_gradients_of_the_input_flow_through_dequantized_weights():
    slots = ExpertSlots.from_module(Plain(), range(4), quantize="int8")
    x, ids, weights = _batch(4, 72)
    x.requires_grad_(True)
    slots.engine("eager")(x, ids, weights).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
