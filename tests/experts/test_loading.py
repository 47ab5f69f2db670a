"""Slots filled from a folder, a live model or a function: the same bits as from the module, and only what differs read."""

import copy
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from janus import JanusError, JanusMoELayer, Placement
from janus.experts.checkpoint import Checkpoint
from janus.experts.layout import ExpertLayout
from janus.experts.loading import OwnExperts, opened
from janus.experts.slots import ExpertSlots, slice_expert
from janus.experts.view import View, find_moves, wanted

OLD = Placement([[0, 1, 2, 3, 4, 5, 15], [6, 7, 8, 9, 10, 11, 0], [12, 13, 14, 15, 1, 2, 3]], 16)
NEW = Placement([[0, 1, 2, 3, 4, 5, 9], [6, 7, 8, 9, 10, 11, 12], [12, 13, 14, 15, 1, 8, -1]], 16)
# the way that has the bits of the module
_layer, _from_folder = (partial(make, compute="eager") for make in (JanusMoELayer, JanusMoELayer.from_checkpoint))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tiny.save("mixtral", tmp_path_factory.mktemp("mixtral") / "model")
    return folder, _eager(tiny.build("mixtral"))


@pytest.fixture
def folder(tmp_path):
    return tiny.save("mixtral", tmp_path / "model")


def _eager(model):
    model.set_experts_implementation("eager")
    return model


def _experts(model, layer: int = 0):
    return model.model.layers[layer].mlp.experts


def _batch(seed: int = 0, tokens: int = 13):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(16, generator=g)[:3] for _ in range(tokens)])
    return torch.randn(tokens, 64, generator=g), ids, torch.rand(tokens, 3, generator=g)


def _code(call) -> str:
    with pytest.raises(JanusError) as error:
        call()
    return error.value.code


def _recorded(experts):
    """A function e -> weights, and the list of what it was asked for."""
    asked = []

    def give(e):
        asked.append(e)
        return slice_expert(experts, e)

    return give, asked


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_layer_of_a_folder_gives_the_bits_of_the_module(family, tmp_path):
    folder, model = tiny.save(family, tmp_path), _eager(tiny.build(family))
    with Checkpoint(folder) as checkpoint:
        for number, block in enumerate(checkpoint.blocks):
            experts = model.get_submodule(f"{block.name}.{block.experts_attr}")
            layer = _from_folder(checkpoint, OLD, layer=number)
            with torch.no_grad():
                assert torch.equal(layer(*_batch()), experts(*_batch()))
    assert not layer.training
    assert not any(p.requires_grad for p in layer.parameters())


def test_a_layer_in_the_models_own_order_and_another_dtype(saved):
    folder, model = saved
    layer = _from_folder(str(folder), layer=2, dtype=torch.bfloat16)
    for name, p in _experts(model, 2).named_parameters():
        assert torch.equal(layer.slots.get_parameter(name), p.to(torch.bfloat16))
    assert layer.slots.dtype == torch.bfloat16


def test_parts_of_the_instances_add_up_to_the_whole(saved):
    folder, model = saved
    x, ids, weights = _batch()
    with Checkpoint(folder) as checkpoint, torch.no_grad():
        parts = [_from_folder(checkpoint, OLD, instance=g) for g in range(3)]
        assert [part.slots.num_slots for part in parts] == [7, 7, 7]
        total = sum(part(x, ids, weights) for part in parts)
        whole = _experts(model)(x, ids, weights)
    live = [_layer(_experts(model), OLD, instance=g) for g in range(3)]
    assert all(torch.equal(a(x, ids, weights), b(x, ids, weights)) for a, b in zip(parts, live, strict=True))
    # three partial sums instead of one: float32 rounding of a sum of 3 terms
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["folder", "checkpoint", "model", "experts", "function"])
def test_a_refilled_layer_is_that_of_a_fresh_one_and_only_what_moved_was_read(saved, kind):
    folder, model = saved
    give, asked = _recorded(_experts(model, 1))
    layer = _layer(_experts(model, 1), OLD, layer=1)
    kept = [p.data_ptr() for p in layer.slots.parameters()]
    counts = []
    with Checkpoint(folder) as checkpoint:
        sources = dict(folder=folder, checkpoint=checkpoint, model=model, experts=_experts(model, 1), function=give)
        assert layer.load_slots(NEW, sources[kind], progress=lambda *done: counts.append(done)) is layer
    moves = NEW.moves(OLD).total
    assert counts == [(i + 1, moves) for i in range(moves)]
    assert kind != "function" or asked == [9, 12, 8]  # in the order of the new placement
    assert layer.placement == NEW
    assert [p.data_ptr() for p in layer.slots.parameters()] == kept
    fresh = _layer(_experts(model, 1), NEW)
    for slot, e in enumerate(NEW.phy2log[0]):
        if e >= 0:
            assert all(torch.equal(w, fresh.slots.weights(slot)[n]) for n, w in layer.slots.weights(slot).items())
    with torch.no_grad():
        assert torch.equal(layer(*_batch()), fresh(*_batch()))


def test_weights_shared_with_a_module_are_left_to_it(saved):
    folder, model = saved
    model = copy.deepcopy(model)
    layer = _layer(_experts(model))
    before = _experts(model).down_proj.detach().clone()
    layer.load_slots(Placement.contiguous(16, 2), folder)  # the same slots, told apart by instance: nothing moves
    assert layer.slots.down_proj is _experts(model).down_proj
    layer.load_slots(OLD, folder)
    assert layer.slots.num_slots == 21
    assert torch.equal(_experts(model).down_proj, before)
    with torch.no_grad():
        assert torch.equal(layer(*_batch()), _experts(model)(*_batch()))
    assert not any(p.requires_grad for p in layer.parameters())
    assert _code(lambda: layer.train()(*_batch())) == "layer.grad"  # they did take gradients, so this is a mistake


def test_other_weights_are_read_again_on_request(saved, tmp_path):
    other = tiny.save("mixtral", tmp_path, seed=1)
    layer = _from_folder(saved[0], OLD)
    before = layer.slots.down_proj.clone()
    assert torch.equal(layer.load_slots(OLD, other).slots.down_proj, before)
    layer.load_slots(OLD, other, again=True)
    assert torch.equal(layer.slots.down_proj, _from_folder(other, OLD).slots.down_proj)


def test_a_placement_of_other_sizes_takes_new_slots_where_the_old_do_not_suffice(saved):
    folder, model = saved
    layer = _from_folder(folder, OLD)
    for placement in (Placement.contiguous(16, 4), Placement([[*range(16)], [*range(15, -1, -1)]], 16), OLD):
        layer.load_slots(placement, folder)
        with torch.no_grad():
            assert torch.equal(layer(*_batch()), _experts(model)(*_batch()))
    one = _from_folder(folder, OLD, instance=2)
    assert _code(lambda: one.load_slots(Placement.contiguous(16, 2), folder)) == "placement.instance"


@given(seed=st.integers(0, 10**6), spare=st.integers(0, 3))
@settings(max_examples=40)
def test_moves_fill_what_is_wanted_and_nothing_else(seed, spare):
    rng = np.random.default_rng(seed)
    old, new = (wanted(_random_placement(rng), 0, None) for _ in range(2))
    held = dict(zip(old, rng.permutation(12 + spare)[: len(old)].tolist(), strict=True))
    content = {slot: old[n] for n, slot in held.items()}
    stored, moves = find_moves(new, old, held, range(12 + spare))
    content |= {move.slot: move.expert for move in moves}
    assert list(stored) == list(new)
    assert len(set(stored.values())) == len(stored)
    assert all(content[slot] == new[n] for n, slot in stored.items())
    assert [move.number for move in moves] == [n for n, e in new.items() if old.get(n) != e]
    free = set(range(12 + spare)) - set(held.values())
    beside = find_moves(new, old, held, free)
    assert (beside is None) == (len(moves) > len(free))
    assert beside is None or not {move.slot for move in beside[1]} & set(held.values())


def _random_placement(rng):
    rows = [rng.permutation(6)[:4] for _ in range(3)]
    for e in set(range(6)) - {int(x) for row in rows for x in row}:
        rows[0][0] = e
    rows = np.where(rng.random((3, 4)) < 0.1, -1, np.stack(rows))
    if set(range(6)) <= set(rows.reshape(-1).tolist()):
        return Placement(rows, 6)
    return Placement.contiguous(6, 3, 4)


def test_ids_are_led_to_where_their_slot_is_stored():
    p = Placement([[0, 1], [1, -1], [2, 0]], 3)
    here = {n: i for i, n in enumerate(wanted(p, 0, None))}
    assert View.of(p, {n: n for n in here}, None, torch.device("cpu")).to_slot_R is None
    whole = View.of(p, here, None, torch.device("cpu"))
    assert whole.local(torch.tensor([[0, 2, 4, 5, -1]], dtype=torch.int32)).tolist() == [[0, 2, 3, 4, -1]]
    own = View.of(p, {0: 0, 1: 1}, 2, torch.device("cpu"))
    assert own.local(torch.tensor([[0, 2, 4, 5, -1]])).tolist() == [[-1, -1, 0, 1, -1]]
    assert own.to(torch.device("meta")).to_slot_R.is_meta


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (lambda f, m: 3, "source.type"),
        (lambda f, m: f / "nowhere", "checkpoint.folder"),
        (lambda f, m: torch.nn.Linear(3, 3), "model.no_experts"),
        (lambda f, m: tiny.build("mixtral", num_local_experts=8), "source.experts"),
        (lambda f, m: _experts(tiny.build("mixtral", intermediate_size=40)), "source.experts"),
        (lambda f, m: tiny.build("mixtral", num_hidden_layers=1), "source.layer"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_before_a_slot_is_overwritten(saved, source, code):
    folder, model = saved
    layer = _layer(_experts(model, 1), OLD, layer=1)
    with torch.no_grad():
        before = layer(*_batch())
        assert _code(lambda: layer.load_slots(NEW, source(folder, model))) == code
        assert torch.equal(layer(*_batch()), before)
    assert layer.placement == OLD


EXPERT = "model.layers.0.block_sparse_moe.experts."


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda k, t: {} if ".12.w2." in k else {k: t}, "checkpoint.missing"),
        (lambda k, t: {k: t[:, :1].contiguous() if ".12.w2." in k else t}, "checkpoint.corrupt"),
        (lambda k, t: {k: t[:1].contiguous() if ".12.w3." in k else t}, "checkpoint.corrupt"),
        (lambda k, t: {k: t.to(torch.int8) if ".12.w1." in k else t}, "checkpoint.dtype"),
    ],
    ids=["a tensor lacks", "down of another shape", "up of another shape", "stored as int8"],
)
def test_a_defect_of_one_expert_in_the_files_is_found_before_a_slot_is_overwritten(folder, change, code):
    layer = _from_folder(folder, OLD)
    before = layer.slots.gate_up_proj.clone()
    tensors = load_file(folder / "model.safetensors")
    parts = [change(k, t) if k.startswith(EXPERT) else {k: t} for k, t in tensors.items()]
    save_file({k: t for part in parts for k, t in part.items()}, folder / "model.safetensors")
    assert _code(lambda: layer.load_slots(NEW, folder)) == code
    assert torch.equal(layer.slots.gate_up_proj, before)
    assert layer.placement == OLD


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w: {**w, "down_proj": w["down_proj"][:-1]},
        lambda w: {**w, "down_proj": w["down_proj"].double()},
        lambda w: {"down_proj": w["down_proj"]},
        lambda w: None,
    ],
    ids=["shape", "dtype", "name", "nothing"],
)
def test_a_function_that_gives_something_else_leaves_the_layer_refusing_until_it_is_loaded(saved, wrong):
    experts = _experts(saved[1])
    layer = _layer(experts, OLD)

    def give(e):
        return wrong(slice_expert(experts, e)) if e == 12 else slice_expert(experts, e)

    assert _code(lambda: layer.load_slots(NEW, give)) == "source.weights"
    assert _code(lambda: layer(*_batch())) == "layer.empty"
    assert _code(lambda: layer.placement) == "layer.empty"
    layer.load_slots(NEW, experts)
    with torch.no_grad():
        assert torch.equal(layer(*_batch()), experts(*_batch()))


def test_wrong_calls(saved):
    folder, model = saved
    layer = _layer(_experts(model), OLD)
    assert _code(lambda: layer.load_slots("2A4E", folder)) == "placement.type"
    assert _code(lambda: layer.load_slots(None, folder)) == "placement.type"  # the default is for a new layer
    assert _code(lambda: layer.load_slots(Placement.contiguous(8, 2), folder)) == "placement.experts"
    assert _code(lambda: _from_folder(folder, layer=3)) == "source.layer"
    assert _code(lambda: _from_folder(folder, layer="1")) in ("source.layer", "placement.layer")
    assert _code(lambda: _from_folder(folder, balance="fairly")) == "sched.method"
    assert _code(lambda: _from_folder(folder, compute="abacus")) == "experts.compute"
    for make in (
        lambda **kw: _layer(_experts(model), OLD, **kw),
        lambda **kw: _from_folder(folder, OLD, **kw),
    ):
        assert _code(lambda make=make: make(instance=3)) == "placement.instance"
        assert _code(lambda make=make: make(staging=-1)) == "layer.staging"


def test_copies_within_a_layer_and_a_function_fill_slots_alike(saved):
    experts = _experts(saved[1])
    slots = ExpertSlots.from_module(experts, [3, 5, -1, -1])
    own = OwnExperts({3: 0, 5: 1})
    own.fill(slots, 2, 5)
    with opened(lambda e: slice_expert(experts, e), 0, 16, slots) as source:
        source.fill(slots, 3, 5)
    assert torch.equal(slots.down_proj[2], slots.down_proj[3])
    assert _code(lambda: own.check([3, 4])) == "source.experts"


def test_weights_made_under_inference_mode_are_refilled(saved):
    folder, model = saved
    with torch.inference_mode():
        layer = _from_folder(folder, OLD)
    layer.load_slots(NEW, folder)
    with torch.no_grad():
        assert torch.equal(layer(*_batch()), _experts(model)(*_batch()))


def test_one_expert_of_a_folder_is_a_view_where_it_is_used_as_it_is_stored(saved):
    with Checkpoint(saved[0], dtype=torch.float32) as checkpoint:
        block = checkpoint.blocks[0]
        whole, part = checkpoint.expert(block, 5), checkpoint.stored_expert(block, 5)
        assert all(torch.equal(whole[name], part[name]) for name in whole)
        checkpoint.check_expert(block, 5)
        assert _code(lambda: checkpoint.check_expert(block, 16)) == "checkpoint.missing"
        assert ExpertLayout.of(block.experts).shapes == {name: tuple(t.shape) for name, t in part.items()}


def test_a_loaded_layer_can_be_copied_and_moved(saved):
    layer = _from_folder(saved[0], OLD, staging=2)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        assert torch.equal(twin(*_batch()), layer(*_batch()))
    layer.load_slots(NEW, saved[0])
    assert twin.placement == OLD
    assert layer.to("meta").view is not None
