"""Slo: two numbers and their ranges."""

import numpy as np
import pytest
from hypothesis import given, settings
from type_strategies import NONSENSE, only_janus_error, refuses

from janus.types import Slo


def test_numbers_of_any_kind_become_floats():
    assert Slo(np.float32(150), np.int64(95)) == Slo(150, 95.0)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 10**400, "150", None, True, [150]])
def test_a_bad_time_is_refused(value):
    refuses("slo.range", "tpot_ms must be a finite number > 0", Slo, value)


@pytest.mark.parametrize("value", [0, 100.5, -5, float("nan"), "99", None])
def test_a_bad_percentile_is_refused(value):
    refuses("slo.range", "percentile must lie in (0, 100]", Slo, 150, value)


@given(NONSENSE, NONSENSE)
@settings(max_examples=60, deadline=None)
def test_nonsense_is_refused_as_an_slo_error(first, second):
    only_janus_error("slo.", Slo, first, second)
