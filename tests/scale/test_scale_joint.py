"""The joint program against enumeration; both by hand once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError, Placement
from janus.scale.search.joint import Joint, _peak, enumerate_joint, solve_joint
from janus.sched import balance

pytest.importorskip("pulp")

TOLERANCE = 1e-5  # ms: solvers keep each constraint to about 1e-6, and a TPOT has several


@st.composite
def joints(draw):
    experts, instances = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    slots = draw(st.integers(-(-experts // instances), experts))
    batch = st.frozensets(st.integers(0, experts - 1), min_size=0)
    batches = tuple(draw(st.lists(batch, min_size=1, max_size=4)))
    times = st.floats(0.5, 9)
    fixed = np.array([[draw(times) for _ in range(instances)] for _ in range(draw(st.integers(1, 3)))])
    return Joint(batches, experts, slots, fixed, draw(st.floats(0.1, 3)), draw(st.floats(1, 20)))


@settings(max_examples=15)
@given(joints())
def test_the_program_is_the_enumeration(joint):
    got, want = solve_joint(joint), enumerate_joint(joint)
    assert (got is None) == (want is None)
    if got and want:
        assert got.n_a + got.n_e == want.n_a + want.n_e
        assert got.tpot_ms == pytest.approx(want.tpot_ms, abs=TOLERANCE)


@settings(max_examples=15)
@given(joints())
def test_the_placement_it_returns_does_what_it_says(joint):
    """Placed and balanced by `janus.sched`, which knows nothing of the program."""
    got = solve_joint(joint)
    if got is None:
        return
    rows = [[*sorted(s), *[-1] * (joint.slots - len(s))] for s in got.placement]
    placement = Placement(np.array(rows), joint.experts)
    peaks = [
        balance(np.array([sorted(b)]), placement, backend="reference").a_max if b else 0 for b in joint.batches
    ]  # fmt: skip
    tpot = joint.fixed_ms[got.n_a - 1, got.n_e - 1] + joint.expert_ms * np.mean(peaks)
    assert tpot == pytest.approx(got.tpot_ms, abs=TOLERANCE)
    assert tpot <= joint.slo_ms + TOLERANCE


def test_by_hand():
    """Batches {0, 1} and {2, 3} on two instances of two slots: split both pairs, and each batch reads 1 per instance."""
    batches = (frozenset({0, 1}), frozenset({2, 3}))
    fixed = np.array([[9.0, 5.0], [8.0, 4.0]])
    joint = Joint(batches, 4, 2, fixed, 1.0, 6.5)
    for found in (solve_joint(joint), enumerate_joint(joint)):
        assert (found.n_a, found.n_e, round(found.tpot_ms, 6)) == (1, 2, 6.0)
        assert all(len(s & batch) == 1 for s in found.placement for batch in batches)
    assert solve_joint(Joint(batches, 4, 2, fixed, 1.0, 4.9)) is None
    assert enumerate_joint(Joint(batches, 4, 2, fixed, 1.0, 4.9)) is None


def test_a_peak_is_what_the_balancer_finds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        hosts = [tuple(np.flatnonzero(rng.random(3) < 0.6)) or (0,) for _ in range(rng.integers(1, 7))]
        slots = np.array([[e if g in h else -1 for e, h in enumerate(hosts)] for g in range(3)])
        want = balance(np.arange(len(hosts))[None], Placement(slots, len(hosts)), backend="reference").a_max
        assert _peak(list(hosts), 3) == want


def test_what_is_too_large_is_refused():
    with pytest.raises(JanusError, match=r"scale\.joint.*9, 1, 1"):
        Joint((frozenset({0}),), 9, 9, np.ones((1, 1)), 1.0, 1.0)
