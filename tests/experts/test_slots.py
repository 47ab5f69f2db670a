"""Slots compute what the family's own eager forward computes, bit for bit, under any placement."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.experts.layout import ExpertLayout
from janus.experts.slots import ExpertSlots


def _experts(family: str = "mixtral"):
    model = tiny.build(family)
    model.set_experts_implementation("eager")
    return next(m for name, m in model.named_modules() if name.endswith("experts") and hasattr(m, "gate_up_proj"))


EXPERTS = _experts()


def _batch(tokens: int, top_k: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    ids = (
        torch.stack([torch.randperm(16, generator=g)[:top_k] for _ in range(tokens)])
        if tokens
        else torch.empty(0, top_k).long()
    )
    return torch.randn(tokens, 64, generator=g), ids, torch.rand(tokens, top_k, generator=g)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bit_equal_to_the_eager_forward(family):
    experts = _experts(family)
    slots = ExpertSlots.from_module(experts, range(16), compute="eager")
    x, ids, weights = _batch(40, 3)
    assert torch.equal(slots(x, ids, weights), experts(x, ids, weights))


@given(st.permutations(list(range(16))), st.integers(0, 9), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_bit_equal_whatever_slot_an_expert_sits_in(order, tokens, top_k, empty):
    slots = ExpertSlots.from_module(EXPERTS, [*order, *[-1] * empty], compute="eager")
    x, ids, weights = _batch(tokens, top_k)
    slot_of = torch.tensor(order).argsort()
    assert torch.equal(slots(x, slot_of[ids], weights), EXPERTS(x, ids, weights))


def test_parts_of_several_instances_add_up_and_absent_choices_count_nothing():
    x, ids, weights = _batch(30, 3)
    total = torch.zeros_like(x)
    for g in range(4):
        part = ExpertSlots.from_module(EXPERTS, range(4 * g, 4 * g + 4))
        local = torch.where((ids >= 4 * g) & (ids < 4 * g + 4), ids - 4 * g, -1)
        total += part(x, local, weights)
    # Four partial sums instead of one: same terms, other order; float32 rounding of a sum of 3 terms.
    torch.testing.assert_close(total, EXPERTS(x, ids, weights), rtol=1e-5, atol=1e-5)
    nothing = ExpertSlots.from_module(EXPERTS, [0])(x, torch.full_like(ids, -1), weights)
    assert torch.equal(nothing, torch.zeros_like(x))


def test_slots_in_model_order_share_the_weights_and_others_copy_them():
    shared = ExpertSlots.from_module(EXPERTS, range(16))
    assert shared.gate_up_proj.data_ptr() == EXPERTS.gate_up_proj.data_ptr()
    copied = ExpertSlots.from_module(EXPERTS, [1, 0])
    assert copied.gate_up_proj.data_ptr() != EXPERTS.gate_up_proj.data_ptr()
    assert torch.equal(copied.gate_up_proj[0], EXPERTS.gate_up_proj[1])


def test_verify_refuses_an_activation_we_do_not_know():
    slots = ExpertSlots.from_module(EXPERTS, range(16))
    slots.verify()
    slots.layout.template._apply_gate = lambda hidden: hidden.chunk(2, dim=-1)[0]
    with pytest.raises(JanusError, match="relative difference") as error:
        slots.verify()
    assert error.value.code == "model.mismatch"


def test_unknown_parameters_are_refused():
    experts = _experts()
    experts.register_parameter("norm", torch.nn.Parameter(torch.ones(16, 64)))
    with pytest.raises(JanusError, match="this expert layout is not supported"):
        ExpertLayout.of(experts)
