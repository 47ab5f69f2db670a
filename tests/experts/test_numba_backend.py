"""compute="numba": equal to a float64 reference in every layout and dtype, and to itself in any company."""

import entries
import pytest
import torch
from entries import LAYOUTS, error, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.experts.slots import ExpertSlots

TOLERANCES = {  # float32: sums of at most 100 terms; halves: the family's own roundings between the products
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-2,
}


def _slots(name="gate and up", H=24, F=20, E=6, dtype=torch.float32, **options):
    return entries.slots(entries.layout(H, F, **LAYOUTS[name]), E, dtype, **({"compute": "numba"} | options))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_the_reference_in_every_layout(name, dtype):
    for H, F in ((24, 20), (72, 33), (130, 77)):  # rows of whole vectors, and with rests of every kind of tile
        slots = _slots(name, H, F, dtype=dtype)
        for T, K in ((1, 1), (7, 3), (40, 6)):
            x, ids, weights = entries.batch(T, K, 6, H, dtype)
            y = slots(x, ids, weights)
            assert (y.dtype, y.shape) == (dtype, x.shape)
            assert error(y, plain(slots, x, ids, weights)) < TOLERANCES[dtype]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_token_has_the_same_bits_alone_and_in_any_batch_placement_and_number_of_threads(name):
    slots, x, ids, weights = _slots(name, 72, 33), *entries.batch(21, 4, 6, 72)
    want = slots(x, ids, weights)
    for t in range(len(x)):
        assert torch.equal(slots(x[t : t + 1], ids[t : t + 1], weights[t : t + 1])[0], want[t])
    order = [3, -1, 0, 5, 1, 4, 2, -1]
    elsewhere = ExpertSlots(slots.layout, order, dtype=slots.dtype, compute="numba")
    for e in range(6):
        elsewhere.fill(order.index(e), slots.weights(e))
    moved = torch.where(ids >= 0, torch.tensor([order.index(e) for e in range(6)])[ids], -1)
    assert torch.equal(elsewhere(x, moved, weights), want)
    threads = torch.get_num_threads()
    try:
        for many in (1, 3):
            torch.set_num_threads(many)
            assert torch.equal(slots(x, ids, weights), want)
    finally:
        torch.set_num_threads(threads)


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_any_size_equals_the_reference(T, K, H, F, E):
    slots = _slots("gate and up", H, F, E)
    x, ids, weights = entries.batch(T, min(K, E), E, H, seed=T)
    assert error(slots(x, ids, weights), plain(slots, x, ids, weights)) < TOLERANCES[torch.float32]


def test_an_activation_we_do_not_know_is_run_by_the_module():
    slots = _slots()
    slots.layout.template._apply_gate = lambda hidden: torch.nn.functional.softplus(hidden[..., :20]) * hidden[..., 20:]
    assert not slots.engine("numba").batch_invariant
    x, ids, weights = entries.batch(9, 3, 6, 24)
    assert error(slots(x, ids, weights), plain(slots, x, ids, weights)) < 1e-5


def test_arguments_of_other_kinds_give_the_same():
    slots, x, ids, weights = _slots(), *entries.batch(9, 3, 6, 24)
    want = slots(x, ids, weights)
    assert torch.equal(slots(x, ids.int(), weights), want)
    assert torch.equal(slots(x, ids.t().contiguous().t(), weights.t().contiguous().t()), want)
    assert torch.equal(slots(torch.stack([x, x], 1)[:, 0], ids, weights.double()), want)
    nothing = torch.full_like(ids, -1)
    assert torch.equal(slots(x, nothing, weights), torch.zeros_like(x))


def test_what_is_not_a_number_stays_in_its_token():
    for dtype in TOLERANCES:
        slots, x, ids, weights = _slots(dtype=dtype), *entries.batch(5, 2, 6, 24, dtype)
        ids = ids.clamp(min=0)
        want = slots(x, ids, weights)
        x[2, 3] = float("nan")
        y = slots(x, ids, weights)
        assert y[2].isnan().all()
        assert torch.equal(y[[0, 1, 3, 4]], want[[0, 1, 3, 4]])


def test_weights_changed_in_place_and_slots_refilled_are_seen():
    slots, x, ids, weights = _slots(), *entries.batch(5, 2, 6, 24)
    ids = ids.clamp(min=0)
    with torch.no_grad():
        slots.down_proj.mul_(2)
    assert error(slots(x, ids, weights), plain(slots, x, ids, weights)) < 1e-5
    slots.fill(0, slots.weights(1))
    assert torch.equal(slots(x, torch.zeros_like(ids), weights), slots(x, torch.ones_like(ids), weights))


def test_other_types_of_weights_are_refused_by_name_and_left_to_eager_by_auto():
    assert _slots(dtype=torch.float64, compute="auto").compute == "eager"
    slots = _slots(H=8, dtype=torch.float64)
    with pytest.raises(JanusError, match="float64, which is none of float32") as refusal:
        slots(torch.zeros(1, 8), torch.zeros(1, 1).long(), torch.ones(1, 1))
    assert refusal.value.code == "experts.compute"


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_in_8_bits_give_what_they_stand_for(name, format):
    for H, F, dtype in ((24, 20, torch.float32), (300, 270, torch.float32), (72, 33, torch.bfloat16)):
        slots = _slots(name, H, F, dtype=dtype, quantize=format)
        x, ids, weights = entries.batch(9, 3, 6, H, dtype)
        y = slots(x, ids, weights)
        # the reference dequantizes too: to the compute dtype, which in bfloat16 rounds once more
        assert error(y, plain(slots, x, ids, weights)) < TOLERANCES[dtype]
        want = torch.cat([slots(x[t : t + 1], ids[t : t + 1], weights[t : t + 1]) for t in range(len(x))])
        assert torch.equal(y, want)


def test_slots_that_change_their_dtype_are_run_in_the_new_one():
    slots, x, ids, weights = _slots(), *entries.batch(5, 2, 6, 24)
    want = slots(x, ids, weights)
    y = slots.to(torch.bfloat16)(x.bfloat16(), ids, weights)
    assert y.dtype == torch.bfloat16
    assert 0 < error(y, want.double()) < 5e-2  # the weights are rounded too


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_workspace_announced_is_what_a_call_allocates(dtype, monkeypatch):
    slots, taken = _slots(dtype=dtype), []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: taken.append(empty(*a, **kw)) or taken[-1])
    for T, K in ((1, 1), (40, 6)):
        taken.clear()
        slots(*entries.batch(T, K, 6, 24, dtype))
        out, work = taken
        assert (out.shape, work.nbytes) == ((T, 24), slots.engine("numba").needed(T, K))
