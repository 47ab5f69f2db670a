"""The formats of 8 bits: what is stored is the nearest there is, block by block, and every wrong call is named."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.experts.quantized import FORMATS, LARGEST, SMALLEST_SCALE, Format, dequantize, named, quantize

# Sizes below, at and beside one block of either format, and one that holds several.
SHAPES = [(1, 1), (3, 5), (1, 128), (128, 128), (129, 127), (130, 257), (256, 384), (2, 3, 4, 131), (0, 7), (7, 0)]


def _random(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _codes(format: Format) -> torch.Tensor:
    """Every value a byte of the format can hold, in float64; integers beside -128, which is not used."""
    if format.dtype == torch.int8:
        return torch.arange(-127, 128).double()
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    return values[values.isfinite()].unique()


def reference(weight: torch.Tensor, format: Format):
    """Scales and distances to the nearest stored value, block by block in float64."""
    (bo, bi), (outs, ins) = format.block, weight.shape
    scales = torch.empty(math.ceil(outs / bo), math.ceil(ins / bi))
    distance = torch.empty(weight.shape, dtype=torch.float64)
    for i in range(len(scales)):
        for j in range(len(scales[i])):
            at = (slice(bo * i, bo * i + bo), slice(bi * j, bi * j + bi))
            scales[i, j] = max(float(weight[at].abs().max() / format.largest), SMALLEST_SCALE)
            candidates = _codes(format) * scales[i, j].double()
            distance[at] = (weight[at].double()[..., None] - candidates).abs().amin(-1)
    return scales, distance


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) == 2 and math.prod(shape)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_weight_becomes_the_nearest_there_is_in_its_block(name, shape):
    weight, format = _random(shape), FORMATS[name]
    stored, scales = quantize(weight, name)
    want_scales, distance = reference(weight, format)
    assert torch.equal(scales, want_scales)
    error = (dequantize(stored, scales, name).double() - weight).abs()
    # The quotient and the product are rounded to float32: 2**-24 of the weight each, on top of the nearest code.
    assert (error <= distance + 2.0**-22 * weight.abs()).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_shapes_and_dtypes(name, shape):
    stored, scales = quantize(_random(shape, dtype=torch.bfloat16), name)
    assert (stored.shape, stored.dtype) == (shape, FORMATS[name].dtype)
    assert (tuple(scales.shape), scales.dtype) == (FORMATS[name].scale_shape(shape), torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        got = dequantize(stored, scales, name, dtype)
        assert (got.shape, got.dtype) == (shape, dtype)
        assert torch.equal(got, dequantize(stored, scales, name).to(dtype))


def bound(weight, scales, name):
    format = FORMATS[name]
    spread = scales.repeat_interleave(format.block[0], -2).repeat_interleave(format.block[1], -1)
    per_weight = spread[..., : weight.shape[-2], : weight.shape[-1]].double()
    return torch.maximum(format.relative * weight.abs().double(), format.floor * per_weight) * (1 + 1e-4)


@given(
    outs=st.integers(1, 140), ins=st.integers(1, 270), seed=st.integers(0, 99), exponent=st.integers(-130, 120),
    heavy=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), name=st.sampled_from(sorted(FORMATS)),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_error_is_within_the_bound_the_format_states(outs, ins, seed, exponent, heavy, dtype, name):
    weight = _random((outs, ins), seed)
    weight = weight**5 if heavy else weight  # most weights far below the largest of their block
    weight = (weight * 2.0**exponent).clamp(-LARGEST, LARGEST).to(dtype)
    stored, scales = quantize(weight, name)
    error = (dequantize(stored, scales, name, torch.float64) - weight.double()).abs()
    assert (error <= bound(weight, scales, name)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_zeros_and_of_the_smallest_numbers_come_back(name):
    weight = torch.zeros(256, 256)
    weight[130, 5] = 3.0
    weight[0, 200] = 1e-40  # subnormal: its block's scale must not be
    stored, scales = quantize(weight, name)
    back = dequantize(stored, scales, name)
    assert back[130, 5] == 3.0
    assert (scales >= SMALLEST_SCALE).all()
    assert torch.count_nonzero(back) <= 2
    assert (quantize(-weight, name)[1] == scales).all()


@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_of_a_block_is_kept_and_scaling_a_block_by_two_changes_its_scale_alone(name):
    weight = _random((128, 256))
    stored, scales = quantize(weight, name)
    back = dequantize(stored, scales, name)
    top = weight.abs().flatten().argmax()
    torch.testing.assert_close(back.flatten()[top], weight.flatten()[top], rtol=2e-7, atol=0)
    again, doubled = quantize(weight * 2, name)
    assert torch.equal(again.view(torch.uint8), stored.view(torch.uint8))
    assert torch.equal(doubled, scales * 2)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_bits_each_time_whatever_the_memory_order_and_what_stands_beside(name):
    weight = _random((2, 130, 200))
    stored, scales = quantize(weight, name)
    for same in (weight.clone(), weight.mT.contiguous().mT, weight[:1].expand(2, -1, -1)):
        again, scales_again = quantize(same, name)
        assert torch.equal(again[0].view(torch.uint8), stored[0].view(torch.uint8))
        assert torch.equal(scales_again[0], scales[0])
    before = weight.clone()
    quantize(weight, name)
    assert torch.equal(weight, before)


def test_ties_go_to_the_even_neighbour():
    stored, scales = quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]), "int8")
    assert (stored.tolist(), scales.tolist()) == ([[127, 0, 2, 2, 0, -2]], [[1.0]])
    stored, scales = quantize(torch.tensor([[448.0, 17.0, 19.0, -17.0]]), "fp8")  # step 2 between 16 and 32
    assert (stored.float().tolist(), scales.tolist()) == ([[448.0, 16.0, 20.0, -16.0]], [[1.0]])


def test_bytes_per_weight():
    for name, want in {"int8": 1.03125, "fp8": 1.000244140625}.items():
        stored, scales = quantize(torch.ones(256, 256), name)
        assert (stored.nbytes + scales.nbytes) / stored.numel() == want == FORMATS[name].bytes_per_weight


def _message(call) -> str:
    with pytest.raises(JanusError) as error:
        call()
    assert error.value.code == "experts.quantize"
    return error.value.message


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 2.0**127 * 1.5])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_that_are_not_finite_are_refused(name, bad):
    weight = torch.ones(140, 140)
    weight[139, 139] = bad
    assert "must be finite" in _message(lambda: quantize(weight, name))
    assert "must be finite" in _message(lambda: quantize(torch.full((1, 1), 1e300, dtype=torch.float64), name))


def test_wrong_calls():
    good = torch.ones(4, 4)
    assert "one of 'int8', 'fp8'; got 'int4'" in _message(lambda: quantize(good, "int4"))
    assert "got 8" in _message(lambda: named(8))
    for weight in (good.to(torch.int8), good.to(torch.float8_e4m3fn), good[0]):
        assert "float matrices" in _message(lambda weight=weight: quantize(weight, "int8"))
    stored, scales = quantize(good, "fp8")
    assert "block of (1, 128)" in _message(lambda: dequantize(stored, scales, "int8"))
    assert "[1, 2]" in _message(lambda: dequantize(stored, scales.expand(1, 2), "fp8"))
    assert "torch.float64" in _message(lambda: dequantize(stored, scales.double(), "fp8"))
    assert "[4]" in _message(lambda: dequantize(stored[0], scales, "fp8"))
