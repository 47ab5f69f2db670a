"""The converters behind every noun."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_strategies import Hostile, refuses

from janus.types.checks import first_outside, floats, integer, integers, number, shown

DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@given(st.data(), st.sampled_from(DTYPES), st.integers(-5, 5), st.integers(0, 300))
@settings(max_examples=150, deadline=None)
def test_first_outside_equals_a_plain_loop(data, dtype, low, width):
    info = np.iinfo(dtype)
    near = st.integers(low - 3, low + width + 3).map(lambda value: min(max(value, int(info.min)), int(info.max)))
    values = data.draw(st.lists(near | st.integers(int(info.min), int(info.max)), max_size=6))
    plain = next(((i,) for i, value in enumerate(values) if not low <= value <= low + width), None)
    assert first_outside(np.array(values, dtype=dtype), low, low + width) == plain


def test_integer_takes_integers_of_any_kind_and_nothing_else():
    assert [integer(value, "n", "x.y") for value in (3, np.uint8(3), np.array(3))] == [3, 3, 3]
    for value in (True, np.bool_(True), 3.0, "3", None, -1, [3]):
        refuses("x.y", "n must be an integer >= 0, got", integer, value, "n", "x.y")
    refuses("x.y", "in 0..2, got 3", integer, 3, "n", "x.y", high=2)


def test_objects_that_raise_are_refused_like_any_other():
    refuses("x.y", "n must be an integer", integer, Hostile(), "n", "x.y")
    refuses("x.y", "rule; got Hostile that is no full array (no array)", integers, Hostile(), "rule", "x.y", ndim=(1,))
    refuses("x.y", "rule; got Hostile", floats, Hostile(), "rule", "x.y")


def test_an_empty_list_counts_as_integers():
    assert integers([], "rule", "x.y", ndim=(1,)).dtype == np.int64
    refuses("x.y", "rule; got <U1 (1,)", integers, ["a"], "rule", "x.y", ndim=(1,))


def test_floats_and_numbers_are_finite():
    assert floats([1, 2], "rule", "x.y").tolist() == [1.0, 2.0]
    assert number(np.float16(2), "rule", "x.y") == 2.0
    for value in ([np.inf], ["1"], [[1.0]], [True], [1j]):
        refuses("x.y", "rule; got", floats, value, "rule", "x.y")
    for value in (np.inf, "1", None, True, 10**400, 1j):
        refuses("x.y", "rule, got", number, value, "rule", "x.y")


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**5)), np.zeros((9, 9)), 10**400])
def test_a_message_stays_short(value):
    assert len(shown(value)) < 200
