"""Gradients: those of the model undivided, or a refusal; state dicts that either side loads."""

import pytest
import tiny
import torch
import transformers

from janus import JanusError, JanusMoELayer, Placement, convert
from janus.experts.slots import ExpertSlots

REPLICATED = Placement([[*range(9)], [*range(9, 16), 0, 1]], 16)
ALL_AT_16 = Placement.contiguous(16, 1)


def _experts(family: str = "mixtral", dtype=torch.float32, **sizes):
    model = tiny.build(family, **sizes).to(dtype)
    model.set_experts_implementation("eager")
    return next(m for name, m in model.named_modules() if name.endswith("experts") and hasattr(m, "gate_up_proj"))


def _batch(tokens: int = 11, top_k: int = 3, dtype=torch.float32, hidden: int = 64, experts: int = 16):
    g = torch.Generator().manual_seed(3)
    ids = torch.stack([torch.randperm(experts, generator=g)[:top_k] for _ in range(tokens)])
    x = torch.randn(tokens, hidden, generator=g, dtype=dtype)
    return x.requires_grad_(), ids, torch.rand(tokens, top_k, generator=g, dtype=dtype).requires_grad_()


def _code(call) -> str:
    with pytest.raises(JanusError) as error:
        call()
    return error.value.code


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_parameters_stay_the_modules_own_and_get_its_gradients(family):
    experts = _experts(family)
    layer = JanusMoELayer(experts)
    assert all(layer.slots.get_parameter(name) is p for name, p in experts.named_parameters())
    x, ids, weights = _batch()
    inputs = [x, weights, *experts.parameters()]
    want = torch.autograd.grad(experts(x, ids, weights).square().sum(), inputs)
    got = torch.autograd.grad(layer(x, ids, weights).square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_gradients_agree_with_differences_in_float64():
    sizes = dict(hidden_size=6, intermediate_size=5, num_local_experts=4, num_attention_heads=1, num_key_value_heads=1)
    experts = _experts("mixtral", torch.float64, head_dim=6, **sizes)
    layer = JanusMoELayer(experts)
    x, ids, weights = _batch(3, 2, torch.float64, 6, 4)
    names = [name for name, _ in layer.slots.named_parameters()]

    def run(x, weights, *parameters):
        named = {f"slots.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(layer, named, (x, ids, weights))

    assert torch.autograd.gradcheck(run, (x, weights, *layer.slots.parameters()), atol=1e-6)


def test_a_step_of_an_optimizer_made_before_the_conversion_trains_the_converted_model():
    ids = torch.arange(3, 40)[None]
    losses = []
    for converted in (False, True):
        model = tiny.build("qwen3_moe").train()
        model.set_experts_implementation("eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        if converted:
            convert(model)
        for _ in range(2):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]


def test_hidden_states_have_gradients_through_frozen_replicas():
    experts = _experts().requires_grad_(False)
    layer = JanusMoELayer(experts, REPLICATED).train()
    x, ids, weights = _batch()
    want = torch.autograd.grad(experts(x, ids, weights).sum(), [x, weights])
    got = torch.autograd.grad(layer(x, ids, weights).sum(), [x, weights])
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    "options",
    [dict(placement=REPLICATED), dict(staging=2), dict(placement=Placement.contiguous(16, 2), instance=1)],
    ids=["replicas", "staging", "one instance"],
)
def test_weights_in_other_slots_are_frozen_copies_that_refuse_to_be_trained(options):
    experts = _experts()
    layer = JanusMoELayer(experts, **options)
    x, ids, weights = _batch()
    assert not any(p.requires_grad for p in layer.parameters())
    layer(x, ids, weights)  # in eval mode, as the module was
    assert _code(lambda: layer.train()(x, ids, weights)) == "layer.grad"
    with torch.no_grad():
        layer(x, ids, weights)
    layer.eval().requires_grad_(True)
    assert _code(lambda: layer(x, ids, weights)) == "layer.grad"
    with torch.inference_mode():
        layer(x.detach(), ids, weights.detach())


def test_a_way_without_a_backward_refuses_where_a_gradient_is_asked_for():
    slots = ExpertSlots.from_module(_experts().requires_grad_(False), range(16))
    now = slots.device, slots.dtype
    slots._engines["fused", *now] = lambda x, _slots, _weights: torch.full_like(x, 7.0)
    slots._chosen[now] = "fused"
    x, ids, weights = _batch()
    slots.asked = "auto"  # the fused way where no gradient is asked for, else plain torch
    assert float(slots(x.detach(), ids, weights.detach()).max()) == 7.0
    assert slots(x, ids, weights).requires_grad
    assert slots(x.detach(), ids, weights).requires_grad
    slots.asked = "fused"
    for call in ((x, ids, weights.detach()), (x.detach(), ids, weights)):
        assert _code(lambda call=call: slots(*call)) == "layer.grad"
    with torch.no_grad():
        assert float(slots(x, ids, weights).max()) == 7.0
    slots.requires_grad_(True)
    assert _code(lambda: slots(x.detach(), ids, weights.detach())) == "layer.grad"


@pytest.mark.parametrize("placement", [None, REPLICATED], ids=["one-instance", "replicas"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_a_converted_model_is_saved_as_the_model_it_was(family, placement, tmp_path):
    model = tiny.build(family)
    model.set_experts_implementation("eager")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ids = torch.arange(3, 60).reshape(3, 19)
    with torch.inference_mode():
        want = model(ids).logits
    convert(model, placement)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval()
    with torch.inference_mode():
        assert torch.equal(back(ids).logits, want)


@pytest.mark.parametrize(
    "options", [{}, dict(placement=REPLICATED), dict(staging=3)], ids=["shared", "replicas", "staging"]
)
def test_weights_of_the_unconverted_model_are_loaded_into_the_converted_one(options):
    other, model = tiny.build("mixtral", seed=1), tiny.build("mixtral")
    other.set_experts_implementation("eager")
    ids = torch.arange(3, 60).reshape(3, 19)
    convert(model, **options, compute="eager")
    loaded = model.load_state_dict(other.state_dict())
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, other(ids).logits)


def test_a_layer_of_one_instance_keeps_the_names_of_its_slots():
    layer = JanusMoELayer(_experts(), Placement.contiguous(16, 2), instance=1)
    state = layer.state_dict()
    assert {name: len(t) for name, t in state.items()} == {"slots.gate_up_proj": 8, "slots.down_proj": 8}
    other = {name: t + 1 for name, t in state.items()}
    layer.load_state_dict(other)
    assert all(torch.equal(t, other[name]) for name, t in layer.state_dict().items())


def test_weights_of_another_number_of_experts_are_refused_by_torch():
    layer = JanusMoELayer(_experts(), REPLICATED)
    wrong = {name: t[:15] for name, t in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(wrong)
