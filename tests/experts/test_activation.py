"""Formulas are recognised by what they compute; what is none of them is told so."""

import dataclasses
import itertools
import warnings

import entries
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLExperts
from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts

from janus.experts.activation import KINDS, Activation, recognise
from janus.experts.layout import ExpertLayout


class Written(nn.Module):
    """A module whose gate is a plain function."""

    def __init__(self, gate, **numbers):
        super().__init__()
        self._apply_gate = self.act_fn = gate
        for name, value in numbers.items():
            setattr(self, name, value)


def found(gate, *, width=16, gated=True, **numbers):
    made = entries.layout(8, width, Activation("silu", gated))
    return recognise(dataclasses.replace(made, template=Written(gate, **numbers)))


EVERY = [
    *(Activation(kind, gated) for kind in KINDS for gated in (False, True)),
    *(Activation("silu", clamp=clamp, limit=limit) for clamp in ("before", "after") for limit in (0.5, 3.0, 7.0)),
    *(Activation("gelu", clamp="before", limit=10.0, interleaved=i, shift=s) for i, s in itertools.product((False, True), (0.0, 1.0))),
    Activation("silu", alpha=1.702),
    Activation("silu", alpha=0.8, clamp="before", limit=7.0, shift=1.0, interleaved=True),
]  # fmt: skip


@pytest.mark.parametrize("act", EVERY, ids=str)
@pytest.mark.parametrize("width", [3, 700])
def test_every_formula_is_told_from_every_other(act, width):
    assert found(act.apply, width=width, gated=act.gated, cap=act.limit, slope=act.alpha, other=3, flag=True) == act


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("silu", "silu"), ("gelu", "gelu"), ("gelu_python", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_new", "gelu_tanh"), ("relu", "relu"), ("relu2", "relu2"), ("linear", "identity"), ("swish", "silu"),
    ],
)  # fmt: skip
def test_activations_of_transformers(name, kind):
    act = ACT2FN[name]
    assert found(act, gated=False) == Activation(kind, gated=False)
    assert found(lambda x: act(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]) == Activation(kind)


def test_the_sigmoids_approximation_of_gelu():
    assert found(ACT2FN["quick_gelu"], gated=False) == Activation("silu", gated=False, alpha=1.702)


@pytest.mark.parametrize("name", ["gelu_10", "mish", "leaky_relu", "tanh", "sigmoid", "relu6", "laplace", "xielu"])
def test_what_is_none_of_them(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        act = ACT2FN[name]
    assert found(act, gated=False) is None


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x[..., :16] * x[..., 16:].flip(-1),  # mixes columns
        lambda x: F.silu(x[..., 16:]) * x[..., :16],  # up before gate
        lambda x: F.silu(x[..., :16]) * (x[..., 16:] + 0.5),
        lambda x: F.silu(x[..., :16]).clamp(max=5000.0) * x[..., 16:],  # a limit nowhere among its numbers
        lambda x: F.silu(x[..., :16]) + x[..., 16:],
        lambda x: F.silu(x[..., :16]),  # the right width, no up
        lambda x: x,  # too wide
        lambda x: x.undefined,
        lambda x: (F.silu(x[..., :16]) * x[..., 16:]).to("meta"),
        lambda x: F.silu(x[..., :16]) * x[..., 16:] * (1 + 1e-4),
    ],
)
def test_near_misses(gate):
    assert found(gate) is None


def _experts(cls, config, **fields):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = config(hidden_size=16, intermediate_size=12, **fields)
    made._experts_implementation = "eager"
    return made, cls


def test_families_with_limits():
    config, cls = _experts(GptOssExperts, transformers.GptOssConfig, num_local_experts=2)
    act = recognise(ExpertLayout.of(cls(config)))
    assert act == Activation("silu", interleaved=True, alpha=1.702, clamp="before", limit=7.0, shift=1.0)
    clamped = Activation("silu", clamp="after", limit=5.0)
    gate = Step3p7Experts._apply_gate
    module = Written(None, limit=5.0)
    module.act_fn = F.silu
    assert found(lambda x: gate(module, x), limit=5.0) == clamped
    gate = MiniMaxM3VLExperts._apply_gate
    module = Written(None, swiglu_limit=3.0, swiglu_alpha=1.5)
    assert found(lambda x: gate(module, x), swiglu_limit=3.0, swiglu_alpha=1.5) == Activation(
        "silu", alpha=1.5, clamp="before", limit=3.0, shift=1.0
    )


def test_numbers_of_parts_of_the_module_count_too():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.ceiling = 4.0

        def forward(self, x):
            return F.silu(x).clamp(max=self.ceiling)

    part = Part()
    module = Written(lambda x: part(x[..., :16]) * x[..., 16:].clamp(-4, 4))
    module.part = part
    made = dataclasses.replace(entries.layout(8, 16), template=module)
    assert recognise(made) == Activation("silu", clamp="after", limit=4.0)


@settings(max_examples=20)
@given(st.sampled_from(EVERY), st.integers(1, 5), st.integers(1, 7))
def test_apply_is_the_formula_column_by_column(act, N, width):
    hidden = torch.randn(N, width * (1 + act.gated), generator=torch.Generator().manual_seed(N * width)) * 9
    got = act.apply(hidden)
    for n, f in itertools.product(range(N), range(width)):
        at = (2 * f, 2 * f + 1) if act.interleaved else (f, width + f)
        pair = hidden[n, list(at)] if act.gated else hidden[n, f : f + 1]
        alone = dataclasses.replace(act, interleaved=False).apply(pair[None])
        torch.testing.assert_close(alone[0, 0], got[n, f])


def test_apply_keeps_the_type():
    assert entries.GPT_OSS.apply(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
