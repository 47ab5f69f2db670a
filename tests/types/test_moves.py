"""What replacing a placement costs: by hand, and against sets. Layer 1 (integers)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError, Placement
from janus.types import Moves


def test_by_hand():
    old = Placement([[[0, 1], [2, 0]], [[0, 1], [2, 0]]], 3)
    new = Placement([[[0, 1], [0, 2]], [[1, -1], [2, 0]]], 3)
    moves = new.moves(old, expert_bytes=100)
    assert isinstance(moves, Moves)
    assert moves.slots.tolist() == [[0, 2], [1, 0]]  # layer 0 exchanges two slots, layer 1 empties one and fills one
    assert (moves.total, moves.share) == (3, 3 / 7)
    assert (moves.bytes, moves.max_bytes) == (300, 200)
    assert not moves.slots.flags.writeable


def test_bytes_of_an_instance_are_those_of_all_layers():
    old, new = Placement([[[0, 1], [1, 0]]] * 2, 2), Placement([[[1, 0], [1, 0]]] * 2, 2)
    assert new.moves(old, expert_bytes=5).max_bytes == 20


def test_without_a_size_there_are_no_bytes():
    p = Placement([[0, 1]], 2)
    moves = p.moves(p)
    assert (moves.total, moves.share, moves.bytes, moves.max_bytes) == (0, 0.0, None, None)


def test_instances_and_slots_that_were_not_there_held_nothing():
    small, large = Placement([[0, 1]], 2), Placement([[0, 1, -1], [1, 0, -1]], 2)
    assert large.moves(small).slots.tolist() == [[0, 2]]
    assert small.moves(large).slots.tolist() == [[0]]  # giving up costs nothing


def test_one_map_for_every_layer_is_compared_with_each():
    uniform, layered = Placement([[0, 1]], 2), Placement([[[0, 1]], [[1, 0]]], 2)
    assert layered.moves(uniform).slots.tolist() == [[0], [2]]
    moves = uniform.moves(layered, expert_bytes=1)
    assert moves.slots.tolist() == [[0], [2]]
    assert moves.share == 0.5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_as_counted_slot_by_slot(seed):
    rng = np.random.default_rng(seed)
    E = int(rng.integers(1, 6))
    maps = []
    for _ in range(2):
        G, C = rng.integers(1, 4), E + rng.integers(0, 3)
        rows = [[rng.permutation([*range(E), *[-1] * (C - E)]) for _ in range(G)] for _ in range(2)]
        maps.append(Placement(np.array(rows), E))
    new, old = maps
    slots = {(g, c) for g in range(old.num_instances) for c in range(old.slots_per_instance)}
    for layer in range(2):
        for g in range(new.num_instances):
            count = 0
            for c, e in enumerate(new.slots[layer, g].tolist()):
                count += e >= 0 and ((g, c) not in slots or old.slots[layer, g, c] != e)
            assert new.moves(old).slots[layer, g] == count


@pytest.mark.parametrize(
    ("previous", "options", "says"),
    [
        ([[0, 1]], {}, "must be a janus.Placement"),
        (Placement([[0, 1, 2]], 3), {}, "same model"),
        (Placement([[[0, 1]]] * 3, 2), {}, "same model"),
        (Placement([[0, 1]], 2), {"expert_bytes": -1}, "expert_bytes must be an integer >= 0"),
        (Placement([[0, 1]], 2), {"expert_bytes": 1.5}, "expert_bytes must be an integer >= 0"),
    ],
)
def test_misuse_is_refused(previous, options, says):
    with pytest.raises(JanusError, match=says) as caught:
        Placement([[[0, 1]]] * 2, 2).moves(previous, **options)
    assert caught.value.code == "placement.moves"
