"""How many replicas: against a brute-force search, and by hand. Layer 1 (integers)."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.sched import replicate

counts_lists = st.lists(st.integers(0, 50), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(counts_lists, st.integers(0, 4))
def test_the_largest_load_per_replica_is_as_small_as_can_be(counts, spare):
    E = len(counts)
    got = replicate(counts, E + spare)
    worst = max(Fraction(c, int(r)) for c, r in zip(counts, got, strict=True))
    every = (r for r in product(range(1, spare + 2), repeat=E) if sum(r) == E + spare)
    assert worst == min(max(Fraction(c, x) for c, x in zip(counts, r, strict=True)) for r in every)
    assert got.sum() == E + spare
    assert got.min() >= 1


@settings(max_examples=60, deadline=None)
@given(counts_lists, st.integers(0, 12), st.integers(1, 4))
def test_the_cap_holds_and_slots_beyond_it_stay_empty(counts, spare, cap):
    E = len(counts)
    got = replicate(counts, E + spare, max_replicas=cap)
    assert got.max() <= cap
    assert got.sum() == min(E + spare, E * cap)


def test_ties_go_to_fewer_replicas_then_to_the_lower_id():
    assert replicate([6, 1, 3], 6).tolist() == [3, 1, 2]
    assert replicate([0, 0, 0], 5).tolist() == [2, 2, 1]
    assert replicate([2, 2], 3).tolist() == [2, 1]


def test_layers_are_independent():
    got = replicate([[9, 1], [1, 9]], 3)
    assert got.dtype == np.int32
    assert got.tolist() == [[2, 1], [1, 2]]


@pytest.mark.parametrize(
    ("counts", "slots", "code", "says"),
    [
        ([1, 2, 3], 2, "sched.slots", "3 experts, 2 slots"),
        ([1, -2], 2, "sched.counts", "finite and >= 0"),
        ([1, np.nan], 2, "sched.counts", "finite"),
        ([[[1]]], 2, "sched.counts", "numbers"),
        ([], 2, "sched.counts", "numbers"),
        (["a"], 2, "sched.counts", "numbers"),
    ],
)
def test_bad_input_is_refused(counts, slots, code, says):
    with pytest.raises(JanusError, match=says) as caught:
        replicate(counts, slots)
    assert caught.value.code == code


def test_a_cap_below_one_is_refused():
    with pytest.raises(JanusError, match="max_replicas"):
        replicate([1, 1], 3, max_replicas=0)


@pytest.mark.parametrize("sizes", [{"num_slots": "4"}, {"num_slots": 4.0}, {"num_slots": 4, "max_replicas": "2"}])
def test_numbers_of_slots_and_replicas_are_integers(sizes):
    with pytest.raises(JanusError, match=r"sched\.slots.*integer"):
        replicate([1, 2, 3], **sizes)
