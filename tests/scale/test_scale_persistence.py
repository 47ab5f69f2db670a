"""Following a drift: at once where it stays, rarely where it swings."""

from hypothesis import given
from hypothesis import strategies as st

from janus.scale.online.persistence import MOST, Persistence


def taken(wanted, swung=True):
    p = Persistence()
    return [p.due(w, swung=w and swung) for w in wanted], p


def test_a_drift_is_followed_at_once():
    assert taken([False, True, False, False])[0] == [False, True, False, False]


def test_a_swing_is_followed_once():
    """What was taken is unwanted in the next window; from then on every other window asks in vain."""
    got, p = taken([True, True, False, True, False, True, False, True])
    assert got == [True] + [False] * 7
    assert p.needed == 2


def test_what_persists_is_taken_in_the_end_and_ever_later():
    got, p = taken([True] * 40)
    assert [i for i, g in enumerate(got) if g] == [0, 2, 6, 14, 22, 30, 38]
    assert p.needed == MOST


def test_refining_what_was_taken_is_no_swing():
    got, p = taken([True, True, True, False], swung=False)
    assert got == [True, True, True, False]
    assert p.needed == 1


def test_quiet_windows_make_it_quicker_again():
    p = taken([True, True])[1]
    assert p.needed == 2
    assert not any(p.due(False, False) for _ in range(MOST))
    assert p.needed == 1
    assert p.due(True, False)


@given(st.lists(st.booleans(), max_size=60))
def test_it_is_taken_only_when_wanted_and_bounded(wanted):
    got, p = taken(wanted)
    assert all(w or not g for w, g in zip(wanted, got, strict=True))
    assert 1 <= p.needed <= MOST
