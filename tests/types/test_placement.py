"""Placement: the four maps agree, EPLB goes in and out, nonsense is refused by code."""

import copy
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_strategies import NONSENSE, only_janus_error, placements, refuses

from janus.types import Placement


@given(placements())
@settings(max_examples=80, deadline=None)
def test_the_maps_of_a_placement_agree(placement):
    G, C, E = placement.num_instances, placement.slots_per_instance, placement.num_experts
    for layer in range(placement.num_layers):
        phy2log = placement.phy2log[layer].tolist()
        assert phy2log == [int(placement.slots[layer, r // C, r % C]) for r in range(G * C)]
        for e in range(E):
            replicas = [r for r, held in enumerate(phy2log) if held == e]
            row = placement.log2phy[layer, e].tolist()
            assert row == replicas + [-1] * (len(row) - len(replicas))
            assert placement.logcnt[layer, e] == len(replicas) >= 1
            assert placement.hosts(e, layer) == tuple(r // C for r in replicas)
            assert len(set(placement.hosts(e, layer))) == len(replicas)
    assert placement.log2phy.shape[2] == placement.logcnt.max()


@given(placements())
@settings(max_examples=40, deadline=None)
def test_a_placement_survives_files_pickle_and_copy(placement):
    with tempfile.TemporaryDirectory() as folder:
        placement.save(path := Path(folder) / "p.json")
        twins = [Placement.load(path), pickle.loads(pickle.dumps(placement)), copy.deepcopy(placement)]
    for twin in twins:
        assert twin == placement
        assert hash(twin) == hash(placement)
        assert twin.layer_ids == placement.layer_ids
        assert twin.uniform == placement.uniform
        assert twin.slots.dtype == np.int32
        with pytest.raises(ValueError, match="read-only"):
            twin.slots[0, 0, 0] = 0


@given(placements())
@settings(max_examples=40, deadline=None)
def test_eplb_gets_every_slot_filled_and_comes_back(placement):
    out = placement.to_eplb()
    assert out.dtype == np.int64
    assert out.min() >= 0
    back = Placement.from_eplb(out, placement.num_instances, num_experts=placement.num_experts)
    whole = (placement.slots >= 0).any(axis=2).all()  # an instance without experts gains expert 0
    if whole:
        assert (np.sort(back.slots) == np.sort(placement.slots)).all()
        assert back.eplb_duplicates == (placement.slots < 0).sum()


@given(
    phy2log=st.lists(st.integers(0, 3), min_size=12, max_size=12).filter(lambda row: len(set(row)) == 4),
    dtype=st.sampled_from([np.uint8, np.int16, np.int64]),
)
@settings(max_examples=40, deadline=None)
def test_from_eplb_keeps_the_first_of_each_duplicate_and_counts_the_rest(phy2log, dtype):
    placement = Placement.from_eplb(np.array(phy2log, dtype=dtype), 3)
    expected = []
    for first in (0, 4, 8):
        row = phy2log[first : first + 4]
        expected.append([e if e not in row[:c] else -1 for c, e in enumerate(row)])
    assert placement.slots.tolist() == [expected]
    assert placement.eplb_duplicates == sum(row.count(-1) for row in expected)
    assert Placement.from_dict(placement.to_dict()).eplb_duplicates == placement.eplb_duplicates


@given(NONSENSE, NONSENSE, NONSENSE)
@settings(max_examples=150, deadline=None)
def test_nonsense_is_refused_as_a_placement_error(first, second, third):
    only_janus_error("placement.", Placement, first, second)
    only_janus_error("placement.", Placement, [[0, 1]], second)
    only_janus_error("placement.", Placement, [[[0, 1]]], 2, layer_ids=first, eplb_duplicates=second)
    only_janus_error("placement.", Placement.from_eplb, first, second, num_experts=third)
    only_janus_error("placement.", Placement.from_eplb, [[0, 1]], first)
    only_janus_error("placement.", Placement.contiguous, 6, first, second)
    only_janus_error("placement.", Placement.contiguous, third, 2)
    only_janus_error("placement.", Placement.from_dict, {"slots": first, "num_experts": second, "layer_ids": third})
    only_janus_error("placement.", Placement([[0, 1]], 2).hosts, first, second)
    only_janus_error("placement.", Placement([[[0, 1]]], 2).layer, first)


@pytest.mark.parametrize(
    ("code", "words", "args"),
    [
        ("placement.shape", "got int64 (2,)", ([0, 1], 2)),
        ("placement.shape", "got float64", ([[0.0, 1.0]], 2)),
        ("placement.shape", "no full array", ([[0, 1], [0]], 2)),
        ("placement.shape", "may be 0", (np.zeros((1, 0, 2), int), 2)),
        ("placement.shape", "num_experts must be an integer >= 1, got 0", ([[0, 1]], 0)),
        ("placement.range", "0..1; layer 0, instance 0, slot 1 holds 2", ([[0, 2]], 2)),
        ("placement.range", "holds 4294967296", ([[0, 2**32]], 2)),
        ("placement.range", "holds 18446744073709551615", (np.array([[0, 2**64 - 1]], np.uint64), 2)),
        ("placement.range", "holds -2", ([[0, -2]], 2)),
        ("placement.missing", "layer 0 has none for expert 1", ([[0, -1]], 2)),
        ("placement.missing", "1099511627776 experts share 2 slots", ([[0, 1]], 2**40)),
        ("placement.duplicate", "instance 1 holds expert 0 more than once", ([[0, 1], [0, 0]], 2)),
    ],
)
def test_a_bad_placement_names_rule_and_value(code, words, args):
    refuses(code, words, Placement, *args)


@pytest.mark.parametrize("ids", [[0], [1, 0], [0, 0], [-1, 2], [0.0, 1.0], ["0", "1"], "01", 5, [0, 1, 2]])
def test_layer_ids_ascend_one_per_layer(ids):
    refuses("placement.layer", "2 ascending numbers", Placement, [[[0, 1]]] * 2, 2, layer_ids=ids)


def test_layer_ids_map_to_the_models_numbering():
    assert Placement([[[0, 1]]] * 2, 2, layer_ids=np.array([3, 4])).layer_ids == (3, 4)
    refuses("placement.layer", "one map for every layer", Placement, [[0, 1]], 2, layer_ids=[0])


def test_one_map_serves_every_layer():
    placement = Placement([[0, 1], [2, 3]], 4)
    assert placement.uniform
    assert placement.layer(57) == 0
    assert placement.hosts(3, layer=57) == (1,)
    refuses("placement.layer", "0..0", Placement([[[0, 1]]], 2).layer, 1)
    refuses("placement.layer", ">= 0, got -1", placement.layer, -1)


@pytest.mark.parametrize(("sizes", "slots"), [((3, 5), [[0], [1], [2], [-1], [-1]]), ((3, 1), [[0, 1, 2]])])
def test_contiguous_spreads_in_order(sizes, slots):
    assert Placement.contiguous(*sizes).slots[0].tolist() == slots


def test_contiguous_refuses_too_few_slots():
    refuses("placement.shape", "need 3 slots each", Placement.contiguous, 6, 2, 2)
    refuses("placement.shape", "got 0", Placement.contiguous, 6, 2, 0)
    refuses("placement.shape", "at most 16777216", Placement.contiguous, 6, 2, 2**23 + 1)


def test_an_instance_without_experts_repeats_expert_0_for_eplb():
    assert Placement([[1, 0], [-1, -1]], 2).to_eplb().tolist() == [[1, 0, 0, 0]]
    assert Placement([[1, -1], [-1, 0]], 2).to_eplb().tolist() == [[1, 1, 0, 0]]


def test_empty_slots_of_an_eplb_map_are_no_duplicates():
    placement = Placement.from_eplb([0, -1, -1, 1, 1, -1], 2)
    assert (placement.slots[0].tolist(), placement.eplb_duplicates) == ([[0, -1, -1], [1, -1, -1]], 1)


def test_from_eplb_refuses_what_does_not_divide():
    refuses("placement.shape", "divisible by num_instances; got (3,) and 2", Placement.from_eplb, [0, 1, 2], 2)
    refuses("placement.shape", "divisible", Placement.from_eplb, [], 2)


def test_a_placement_and_its_maps_are_frozen():
    placement = Placement([[0, 1]], 2)
    for array in (placement.slots, placement.phy2log, placement.logcnt, placement.log2phy):
        assert not array.flags.writeable
    with pytest.raises(AttributeError, match="frozen"):
        placement.slots = np.zeros((1, 1, 1), np.int32)
    given_slots = np.array([[0, 1]], np.int32)
    placement = Placement(given_slots, 2)
    given_slots[0, 0] = 1  # the caller's array stays the caller's
    assert placement.slots[0, 0, 0] == 0


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        3,
        {"slots": [[0]]},
        {"slots": [[0], [0, 1]], "num_experts": 1},
        {"slots": "x", "num_experts": 1},
        {"slots": [[0]], "num_experts": "1"},
        {"slots": [[5]], "num_experts": 1},
        {"slots": [[0]], "num_experts": 1, "layer_ids": {"a": 1}},
    ],
)
def test_whatever_is_wrong_in_a_file_is_the_files_mistake(tmp_path, value):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"format": "janus.placement/1", **value} if isinstance(value, dict) else value))
    refuses("placement.file", str(path), Placement.load, path)


def test_files_that_cannot_be_read_or_written(tmp_path):
    refuses("placement.file", "does not exist", Placement.load, tmp_path / "none.json")
    refuses("placement.file", "not a regular file", Placement.load, tmp_path)
    refuses("placement.file", "must be a str or a Path", Placement.load, None)
    refuses("placement.file", "", Placement.load, "a\0b")
    (folder := tmp_path / "folder").mkdir()
    refuses("placement.file", "cannot write", Placement([[0]], 1).save, folder)
    refuses("placement.file", "cannot write", Placement([[0]], 1).save, tmp_path / "no" / "p.json")
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays
