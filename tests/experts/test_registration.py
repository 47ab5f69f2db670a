"""experts_implementation="janus": the model's own parameters, wherever they go and whatever becomes of them."""

import copy
import gc
import subprocess
import sys

import pytest
import tiny
import torch
from torch import nn

import janus.experts
from janus import JanusError
from janus.experts.registration import _MADE, experts_forward, slots_of

IDS = torch.arange(3, 60).reshape(3, 19)


@pytest.fixture(autouse=True)
def registered():
    janus.experts.register()


def _model(**overrides):
    model = tiny.build("mixtral", num_hidden_layers=2, **overrides)
    model.set_experts_implementation("eager")
    return model


def _switched(model, name="janus"):
    model.set_experts_implementation(name)
    return model


def _experts(model, layer=0):
    return model.model.layers[layer].mlp.experts


def test_importing_the_part_imports_no_transformers():
    code = "import sys, janus.experts as e; e.register; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_model_that_is_switched_gives_the_same_logits():
    model = _model()
    with torch.no_grad():
        want = model(IDS).logits
        torch.testing.assert_close(_switched(model)(IDS).logits, want, rtol=1e-4, atol=1e-4)
    assert _experts(model) in _MADE  # it was this way that ran
    assert _experts(model, 1) in _MADE


def test_a_model_that_is_loaded_with_the_name(tmp_path):
    from transformers import AutoModelForCausalLM

    tiny.save("olmoe", tmp_path)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation=n) for n in ("eager", "janus")]
    with torch.no_grad():
        plain, ours = (model(IDS).logits for model in models)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert models[1].model.layers[0].mlp.experts in _MADE


def test_weights_are_the_models_own():
    experts = _experts(_model())
    slots = slots_of(experts)
    assert slots_of(experts) is slots
    assert all(slots.get_parameter(name) is p for name, p in experts.named_parameters())


def _pair(experts, x, ids, weights):
    """Janus and the family's own way on the same call."""
    with torch.no_grad():
        return experts_forward(experts, x, ids, weights), experts(x, ids, weights)


def _call(dtype=torch.float32):
    ids = torch.stack([torch.randperm(16)[:3] for _ in range(11)])
    return torch.randn(11, 64, dtype=dtype), ids, torch.rand(11, 3, dtype=dtype)


def _double_in_place(experts):
    with torch.no_grad():
        experts.down_proj.mul_(2)


def _assign_anew(experts):
    experts.down_proj = nn.Parameter(torch.randn_like(experts.down_proj))


def _other_memory(experts):
    experts.down_proj.data = torch.randn_like(experts.down_proj)


@pytest.mark.parametrize("change", [_double_in_place, _assign_anew, _other_memory])
def test_a_change_of_weights_is_followed(change):
    experts, call = _experts(_model()), _call()
    before, _ = _pair(experts, *call)
    change(experts)
    ours, theirs = _pair(experts, *call)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, before)


def test_weights_that_were_assigned_anew_are_not_kept_alive():
    experts, call = _experts(_model()), _call()
    old = slots_of(experts)
    _assign_anew(experts)
    _pair(experts, *call)
    assert _MADE[experts].slots is not old


def test_gradients_under_autocast_are_those_of_the_eager_forward():
    experts, (x, ids, weights) = _experts(_model()).bfloat16(), _call()
    grads = []
    for run in (slots_of(experts), experts):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            run(given, ids, weights).sum().backward()
        grads.append((given.grad, *(p.grad.clone() for p in experts.parameters())))
        experts.zero_grad()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*grads, strict=True))


def test_a_model_that_is_cast_is_followed():
    experts = _experts(_model())
    _pair(experts, *_call())
    experts.to(torch.float64)
    slots = slots_of(experts)
    assert slots.dtype == torch.float64
    ours, theirs = _pair(experts, *_call(torch.float64))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_copy_of_a_model_computes_with_its_own_weights():
    model = _switched(_model())
    with torch.no_grad():
        want = model(IDS).logits
        other = copy.deepcopy(model)
        _double_in_place(_experts(other))
        assert torch.equal(model(IDS).logits, want)
        assert not torch.allclose(other(IDS).logits, want)


def test_nothing_is_kept_of_a_model_that_is_gone():
    model = _switched(_model())
    with torch.no_grad():
        model(IDS)
    gone = len(_MADE)
    del model
    gc.collect()
    assert len(_MADE) <= gone - 2


def test_training_reaches_the_models_parameters_and_its_routers():
    grads = []
    for name in ("eager", "janus"):
        model = _switched(_model(), name)
        model(IDS).logits.square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert any("experts" in name for name in grads[0])
    for name, want in grads[0].items():
        torch.testing.assert_close(grads[1][name], want, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


def test_experts_that_other_ranks_hold_count_as_nothing():
    experts = _experts(_model())
    x, ids, weights = _call()
    elsewhere = ids % 3 == 0
    ours, _ = _pair(experts, x, ids.masked_fill(elsewhere, 16), weights)
    _, want = _pair(experts, x, ids, weights.masked_fill(elsewhere, 0))
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(_pair(experts, x, torch.full_like(ids, 16), weights)[0], torch.zeros_like(x))


@torch.no_grad()
def test_negative_and_unsigned_ids():
    experts = _experts(_model())
    x, ids, weights = _call()
    for elsewhere in (ids - 16, (ids + 16).to(torch.uint8)):
        assert torch.equal(experts_forward(experts, x, elsewhere, weights), torch.zeros_like(x))
    want = experts_forward(experts, x, ids, weights)
    assert torch.equal(experts_forward(experts, x, ids.to(torch.uint8), weights), want)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (lambda x, ids, weights: (x[:, :-1], ids, weights), "layer.shape"),
        (lambda x, ids, weights: (x[:-1], ids, weights), "layer.shape"),
        (lambda x, ids, weights: (x, ids, weights[:, :1]), "layer.shape"),
        (lambda x, ids, weights: (x.double(), ids, weights), "layer.dtype"),
        (lambda x, ids, weights: (x, ids.float(), weights), "layer.dtype"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_runs(wrong, code):
    experts = _experts(_switched(_model()))
    with pytest.raises(JanusError) as error, torch.no_grad():
        experts(*wrong(*_call()))
    assert error.value.code == code


def test_experts_of_an_unknown_layout_are_refused_at_the_first_forward():
    model = _switched(_model())
    _experts(model).another = nn.Parameter(torch.zeros(16, 1))
    with pytest.raises(JanusError, match="another") as error, torch.no_grad():
        model(IDS)
    assert error.value.code == "model.experts"


@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_a_compiled_model_has_no_graph_break_after_one_call_by_hand():
    experts, call = _experts(_switched(_model())), _call()
    with torch.no_grad():
        want = experts(*call)
        assert torch.equal(torch.compile(experts, backend="eager", fullgraph=True)(*call), want)
        _double_in_place(experts)
        changed = experts(*call)
        assert torch.equal(torch.compile(experts, backend="eager", fullgraph=True)(*call), changed)
    assert not torch.allclose(changed, want)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_right_at_its_first_call_and_in_training():
    experts, call = _experts(_switched(_model())), _call()
    compiled = torch.compile(experts, backend="eager")
    out = compiled(*call)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), _pair(experts, *call)[0], rtol=1e-5, atol=1e-5)
    assert float(experts.down_proj.grad.abs().max()) > 0


def test_what_a_compiled_graph_calls_is_made_anew_for_a_copy(tmp_path):
    experts, call = _experts(_switched(_model())), _call()
    with torch.no_grad():
        experts(*call)
        other = copy.deepcopy(experts)
        assert not other._janus_opaque.belongs_to(other)
        other(*call)
    assert other._janus_opaque.belongs_to(other)
    assert other._janus_opaque.handle.key != experts._janus_opaque.handle.key
    torch.save(experts, tmp_path / "experts.pt")
    kept = experts._janus_opaque
    del experts, other
    gc.collect()
    with pytest.raises(JanusError) as error:
        kept.run(*call)
    assert error.value.code == "layer.gone"
