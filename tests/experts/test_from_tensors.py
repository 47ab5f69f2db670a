"""A layer from a user's own tensors: three are enough, what does not fit is refused before anything runs."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from janus import JanusError, JanusMoELayer, Placement
from janus.experts.activation import CURVES
from janus.experts.own_tensors import TensorExperts

E, H, W = 6, 10, 7  # W: width of an expert


def _tensors(gate=True, biases=False, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"gate_proj": (E, W, H), "up_proj": (E, W, H), "down_proj": (E, H, W)}
    shapes |= {"gate_bias": (E, W), "up_bias": (E, W), "down_bias": (E, H)} if biases else {}
    made = {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}
    return made if gate else {name: None if "gate" in name else t for name, t in made.items()}


def _batch(tokens, top_k, dtype=torch.float32, seed=1):
    g = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, E, generator=g).argsort(1)[:, :top_k]
    return torch.randn(tokens, H, generator=g).to(dtype), ids, torch.rand(tokens, top_k, generator=g).to(dtype)


def _plain(t, act, x, ids, weights):
    """Token by token in float64."""
    t = {name: None if v is None else v.double() for name, v in t.items()}
    out = torch.zeros(len(x), H, dtype=torch.float64)
    for i, k in ((i, k) for i in range(len(x)) for k in range(ids.shape[1])):
        e, token = int(ids[i, k]), x[i].double()

        def linear(name, v, e=e):
            bias = t.get(f"{name}_bias")
            return t[f"{name}_proj"][e] @ v + (0 if bias is None else bias[e])

        up = linear("up", token)
        hidden = act(up) if t["gate_proj"] is None else act(linear("gate", token)) * up
        out[i] += float(weights[i, k]) * linear("down", hidden)
    return out


def _assert_near(got, want, bar=1e-5):
    assert got.shape == want.shape
    assert float((got.double() - want).abs().max()) <= bar * max(float(want.abs().max()), 1e-9)


@pytest.mark.parametrize("compute", ["auto", "eager"])
@pytest.mark.parametrize("activation", CURVES)
@given(st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, E), st.booleans())
@settings(max_examples=6, deadline=None)
def test_as_computed_token_by_token(compute, activation, gate, biases, tokens, top_k, replicas):
    t, batch = _tensors(gate, biases), _batch(tokens, top_k)
    placement = Placement([[0, 1, 2, 3], [3, 4, 5, 0]], E) if replicas else None
    layer = JanusMoELayer.from_tensors(**t, placement=placement, activation=activation, compute=compute)
    with torch.inference_mode():
        _assert_near(layer(*batch), _plain(t, CURVES[activation], *batch))


def test_three_tensors_are_enough():
    t, batch = _tensors(), _batch(5, 2)
    _assert_near(JanusMoELayer.from_tensors(*t.values())(*batch), _plain(t, F.silu, *batch))


def test_bfloat16():
    t, batch = _tensors(dtype=torch.bfloat16), _batch(5, 2, torch.bfloat16)
    out = JanusMoELayer.from_tensors(**t)(*batch)
    assert out.dtype == torch.bfloat16
    _assert_near(out, _plain(t, F.silu, *batch), 2e-2)


@pytest.mark.parametrize("given_", ["up_bias", "gate_bias", "down_bias"])
def test_one_bias_alone(given_):
    t = {name: v for name, v in _tensors(biases=True).items() if "bias" not in name or name == given_}
    batch = _batch(5, 2)
    _assert_near(JanusMoELayer.from_tensors(**t)(*batch), _plain(t, F.silu, *batch))


def test_any_callable_activates():
    t, batch = _tensors(), _batch(5, 2)
    act = nn.Softplus(beta=2.0)
    _assert_near(JanusMoELayer.from_tensors(**t, activation=act)(*batch), _plain(t, act, *batch))


def test_an_activation_with_weights_moves_with_the_layer():
    layer = JanusMoELayer.from_tensors(**_tensors(), activation=nn.PReLU())
    assert "act_fn.weight" in layer.state_dict()
    assert {p.dtype for p in layer.to(torch.bfloat16).parameters()} == {torch.bfloat16}


class _Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


def test_an_activation_that_changed_since_the_first_call_is_followed():
    t, batch, act = _tensors(), _batch(5, 2), _Swish()
    layer = JanusMoELayer.from_tensors(**t, activation=act)
    _assert_near(layer(*batch), _plain(t, F.silu, *batch))
    act.slope.fill_(2.0)
    _assert_near(layer(*batch), _plain(t, lambda x: x * torch.sigmoid(2.0 * x), *batch))


@pytest.mark.parametrize("activation", CURVES)
def test_layers_of_every_activation_are_pickled(activation):
    layer = JanusMoELayer.from_tensors(**_tensors(), activation=activation)
    batch = _batch(5, 2)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(*batch), layer(*batch))


@pytest.mark.parametrize("which", ["up_proj", "down_proj"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_strided_are_left_to_eager(which, dtype):
    t, batch = _tensors(gate=False, dtype=dtype), _batch(5, 2, dtype)
    t[which] = t[which].mT.contiguous().mT
    layer = JanusMoELayer.from_tensors(**t)
    assert layer.compute == "eager"
    _assert_near(layer(*batch), _plain(t, F.silu, *batch), 1e-5 if dtype == torch.float32 else 2e-2)
    with pytest.raises(JanusError, match=f"{which} are strided; make them contiguous"):
        JanusMoELayer.from_tensors(**t, compute="numba")


def test_fused_gate_and_up_are_shared_and_give_the_same():
    t, batch = _tensors(biases=True), _batch(5, 3)
    both = torch.cat([t["gate_proj"], t["up_proj"]], 1)
    bias = torch.cat([t["gate_bias"], t["up_bias"]], 1)
    down = {name: t[name] for name in ("down_proj", "down_bias")}
    fused = JanusMoELayer.from_tensors(None, both, **down, up_bias=bias, fused=True)
    assert torch.equal(fused(*batch), JanusMoELayer.from_tensors(**t)(*batch))
    assert fused.slots.gate_up_proj.data_ptr() == both.data_ptr()
    assert fused.slots.down_proj.data_ptr() == t["down_proj"].data_ptr()


def test_the_module_holds_a_users_parameters_themselves():
    down = nn.Parameter(torch.randn(E, H, W))
    experts = TensorExperts(None, torch.randn(E, W, H), down, activation="relu2")
    assert experts.down_proj is down
    assert not experts.up_proj.requires_grad


def _code(*args, **kwargs):
    with pytest.raises(JanusError) as error:
        JanusMoELayer.from_tensors(*args, **kwargs)
    return error.value.code, error.value.message


def _wrong(name, value):
    return _tensors(biases=True) | {name: value}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (_wrong("up_proj", torch.zeros(E, H, W)), "needed are up_proj (6, 7, 10)"),
        (_wrong("gate_proj", torch.zeros(E - 1, W, H)), "needed are gate_proj (6, 7, 10)"),
        (_wrong("down_proj", torch.zeros(E, H)), "down_proj is [E, H, F]"),
        (_wrong("down_proj", torch.zeros(0, H, W)), "none of them zero"),
        (_wrong("gate_bias", torch.zeros(E, H)), "gate_bias (6, 7)"),
        (_wrong("gate_proj", None), "gate_bias needs gate_proj"),
        (_wrong("up_proj", [[1.0]]), "up_proj must be torch tensors"),
        (_wrong("up_proj", None), "up_proj must be torch tensors"),
        (_wrong("up_proj", torch.zeros(E, W, H, dtype=torch.bfloat16)), "one floating dtype"),
        ({name: t.long() for name, t in _tensors().items()}, "one floating dtype"),
        (_wrong("up_proj", torch.zeros(E, W, H, device="meta")), "one device"),
        (_tensors() | {"fused": True}, "gate_proj and gate_bias are None"),
        (_tensors(gate=False) | {"fused": True}, "needed are up_proj (6, 14, 10)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_received(tensors, words):
    code, message = _code(**tensors)
    assert code == "model.tensors"
    assert words in message


def test_unknown_activations_are_refused_by_name():
    for wrong in ("swish", 3, None):
        code, message = _code(**_tensors(), activation=wrong)
        assert code == "model.activation"
        assert "'gelu_tanh'" in message


def test_an_activation_of_another_width_is_refused_at_once():
    code, message = _code(**_tensors(), activation=lambda x: x[:, :3])
    assert code == "model.activation"
    assert "[N, 3]" in message


def test_options_of_the_constructor_are_passed_on():
    assert _code(**_tensors(), balance="fairly")[0] == "sched.method"
    assert _code(**_tensors(), compute="by hand")[0] == "experts.compute"
    assert JanusMoELayer.from_tensors(**_tensors(), balance="greedy").method == "greedy"
