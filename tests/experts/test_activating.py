"""The compiled activation: every formula, as torch computes it in float64, with the same bits wherever a number lies."""

import itertools
import math

import numpy as np
import pytest
import torch

from janus.experts.activation import KINDS, Activation
from janus.experts.cpu.activating import activate
from janus.experts.cpu.jobs import JOB

ACTIVATIONS = [
    *(Activation(kind) for kind in KINDS),
    *(Activation(kind, gated=False) for kind in KINDS),
    Activation("silu", interleaved=True, alpha=1.702, clamp="before", limit=7.0, shift=1.0),
    Activation("silu", clamp="after", limit=3.0),
    Activation("gelu", interleaved=True, clamp="before", limit=2.5),
]


def _run(act, up, results="float32"):
    width = up.shape[1] // (2 if act.gated else 1)
    out = torch.full((len(up), width), torch.nan, dtype=getattr(torch, results))
    job = np.zeros(1, JOB)
    told = {"items": len(up), "block_rows": 1, "rows": len(up), "n": width, "x": up.data_ptr(), "out": out.data_ptr()}
    for field, value in (told | {"x_stride": 4 * up.stride(0), "out_stride": out[0].nbytes}).items():
        job[field] = value
    activate(act, results).ctypes(job.ctypes.data)
    return out


def _numbers(rows, columns):
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=g) * 4


@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_every_formula_is_that_of_torch(act):
    up = _numbers(50, 74)
    got, want = _run(act, up), act.apply(up.double())
    # float32 operations in another order and an exponential good to 2e-7, relative to the size of a row's numbers
    assert float((got - want).abs().max() / want.abs().max()) < 1e-6


@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_a_row_has_the_same_bits_alone_and_among_many(act):
    for width in (1, 7, 37):
        up = _numbers(300, width * (2 if act.gated else 1))
        whole = _run(act, up)
        for row in (0, 1, 150, 299):
            assert torch.equal(_run(act, up[row : row + 1]), whole[row : row + 1])


def test_far_numbers_and_those_that_are_none():
    far = torch.tensor([0.0, -0.0, 1e-30, 90.0, -90.0, 1e4, -1e4, 3e38, -3e38, math.inf, -math.inf, math.nan])
    for kind in KINDS:
        got, want = _run(Activation(kind, gated=False), far[None])[0], Activation(kind, gated=False).apply(far.double())
        assert torch.equal(got.isnan(), want.float().isnan()), kind
        real = ~got.isnan() & want.float().isfinite()
        torch.testing.assert_close(got[real].double(), want[real], rtol=1e-6, atol=1e-30)


def test_formulas_have_code_of_their_own():
    up = _numbers(3, 8)
    results = [_run(act, up) for act in ACTIVATIONS if act.gated]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(results, 2))


def test_halves_are_rounded_as_torch_does():
    up = _numbers(9, 26)
    assert torch.equal(_run(Activation("silu"), up, "bfloat16"), _run(Activation("silu"), up).bfloat16())
