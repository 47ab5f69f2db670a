"""JanusMoELayer and convert: same numbers as what they replace; every wrong call named."""

import pytest
import tiny
import torch

from janus import JanusError, JanusMoELayer, Placement, convert
from janus.sched import RooflineCost

REPLICATED = Placement([[0, 1, 2, 3, 4, 5, 15], [6, 7, 8, 9, 10, 11, 0], [12, 13, 14, 15, 1, 2, 3]], 16)


@pytest.mark.parametrize("placement", [None, REPLICATED], ids=["one-instance", "replicas"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_converted_model_gives_the_same_logits_bit_for_bit(family, placement):
    model = tiny.build(family)
    model.set_experts_implementation("eager")
    ids = torch.arange(3, 60).reshape(3, 19)
    with torch.inference_mode():
        want = model(ids).logits
        assert convert(model, placement, compute="eager") is model
        assert torch.equal(model(ids).logits, want)
    layers = [m for m in model.modules() if isinstance(m, JanusMoELayer)]
    assert len(layers) == 3 - (family not in ("mixtral", "olmoe"))
    seen = [layer.assignment(torch.arange(12).reshape(4, 3)) for layer in layers]
    assert all(a.a_max >= a.lower_bound > 0 for a in seen)


def test_a_model_is_converted_once():
    model = convert(tiny.build("mixtral"))
    assert _code(lambda: convert(model)) == "model.converted"


@pytest.mark.parametrize("method", ["greedy", "tokens", "random", "round_robin"])
def test_the_balancing_method_moves_work_but_not_results(method):
    model = tiny.build("olmoe")
    model.set_experts_implementation("eager")
    experts = model.model.layers[0].mlp.experts
    layer = JanusMoELayer.from_module(experts, REPLICATED, balance=method, compute="eager")
    x, ids = torch.randn(11, 64), torch.stack([torch.randperm(16)[:3] for _ in range(11)])
    weights = torch.rand(11, 3)
    out = layer(x, ids, weights)
    if method in ("random", "round_robin", "tokens"):  # may split an expert's tokens over replicas: other rounding
        torch.testing.assert_close(out, experts(x, ids, weights), rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(out, experts(x, ids, weights))


def test_the_cost_method_moves_tokens_but_not_results():
    model = tiny.build("olmoe")
    model.set_experts_implementation("eager")
    experts = model.model.layers[0].mlp.experts
    layer = JanusMoELayer.from_module(experts, REPLICATED, balance="cost", cost=RooflineCost(1.0, 0.5))
    x, ids, weights = torch.randn(40, 64), torch.zeros(40, 1).long(), torch.rand(40, 1)
    torch.testing.assert_close(layer(x, ids, weights), experts(x, ids, weights), rtol=1e-5, atol=1e-5)
    assert layer.assignment(ids).physical_ids.unique().tolist() == [0, 13]  # the hot expert on both its instances
    for make in (convert, lambda m, **kw: JanusMoELayer(m.model.layers[0].mlp.experts, **kw)):
        for wrong in ({"balance": "cost"}, {"cost": RooflineCost(1, 1)}):
            assert _code(lambda make=make, wrong=wrong: make(model, **wrong)) == "sched.cost"
    convert(model, REPLICATED, balance="cost", cost=RooflineCost(1.0, 0.5))
    assert {m.method for m in model.modules() if isinstance(m, JanusMoELayer)} == {"cost"}


def _code(call) -> str:
    with pytest.raises(JanusError) as error:
        call()
    return error.value.code


def test_wrong_calls():
    experts = tiny.build("mixtral").model.layers[0].mlp.experts
    layer = JanusMoELayer(experts)
    x, ids, weights = torch.randn(4, 64), torch.zeros(4, 2).long(), torch.ones(4, 2)
    assert _code(lambda: layer(x[None], ids, weights)) == "layer.shape"
    assert _code(lambda: layer(x, ids[:3], weights)) == "layer.shape"
    assert _code(lambda: layer(x, ids, weights[:, :1])) == "layer.shape"
    assert _code(lambda: layer(torch.randn(4, 63), ids, weights)) == "layer.shape"
    assert _code(lambda: layer(x.tolist(), ids, weights)) == "layer.shape"
    assert _code(lambda: layer(x, ids.tolist(), weights)) == "layer.shape"
    assert _code(lambda: JanusMoELayer(experts, balance="fairly")) == "sched.method"
    assert _code(lambda: JanusMoELayer(experts, backend="abacus")) == "sched.backend"
    assert _code(lambda: JanusMoELayer(experts, Placement.contiguous(8, 2))) == "placement.experts"
    assert _code(lambda: JanusMoELayer(experts, "2A4E")) == "placement.type"


def test_weights_are_shared_with_the_module_where_the_slots_hold_its_order():
    experts = tiny.build("mixtral").model.layers[0].mlp.experts
    shared, copied = JanusMoELayer(experts), JanusMoELayer(experts, REPLICATED)
    x, ids, weights = torch.randn(4, 64), torch.zeros(4, 2).long(), torch.ones(4, 2)
    before = copied(x, ids, weights)
    with torch.no_grad():
        experts.down_proj.mul_(2)
    torch.testing.assert_close(shared(x, ids, weights), experts(x, ids, weights), rtol=1e-5, atol=1e-5)
    assert torch.equal(copied(x, ids, weights), before)


def test_a_layer_moves_as_a_whole_and_keeps_one_map_per_layer_with_empty_slots():
    model = tiny.build("qwen3_moe")  # MoE layers 0 and 2
    model.set_experts_implementation("eager")
    ids = torch.arange(3, 60).reshape(3, 19)
    maps = [[[*range(8), -1], [-1, *range(8, 16)]], [[15, -1, *range(7)], [*range(7, 15), 0]]]
    with torch.inference_mode():
        want = model(ids).logits
        convert(model, Placement(maps, 16, layer_ids=[0, 2]), compute="eager")
        assert torch.equal(model(ids).logits, want)
    slots = model.model.layers[0].mlp.experts.slots
    assert set(slots.state_dict()) == {"gate_up_proj", "down_proj"}
    moved = slots.to("meta", torch.bfloat16)
    assert all(t.is_meta for t in (*moved.parameters(), *moved.buffers(), moved.rank_S))
    assert moved.dtype == torch.bfloat16


def test_no_tokens():
    layer = JanusMoELayer(tiny.build("mixtral").model.layers[0].mlp.experts)
    assert layer(torch.empty(0, 64), torch.empty(0, 2).long(), torch.empty(0, 2)).shape == (0, 64)


def test_a_refused_conversion_leaves_the_model_alone():
    model = tiny.build("mixtral")
    before = [type(m) for m in model.modules()]
    assert _code(lambda: convert(model, Placement.contiguous(8, 2))) == "placement.experts"
    three_maps_for_two = Placement(REPLICATED.slots.repeat(2, axis=0), 16)
    assert _code(lambda: convert(model, three_maps_for_two)) == "placement.layers"
    assert _code(lambda: convert(model, balance="fairly")) == "sched.method"
    assert _code(lambda: convert(model, backend="abacus")) == "sched.backend"
    model.model.layers[2].mlp.experts._apply_gate = lambda hidden: hidden.chunk(2, dim=-1)[0]
    model.model.layers[2].mlp.experts.forward = lambda x, ids, weights: x
    assert _code(lambda: convert(model)) == "model.mismatch"  # of the last layer: the first two stay too
    assert [type(m) for m in model.modules()] == before


@pytest.mark.parametrize("make", [convert, JanusMoELayer])
def test_what_is_no_module_is_refused(make):
    with pytest.raises(JanusError, match=r"model\.module"):
        make("a/folder")
