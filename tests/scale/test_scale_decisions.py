"""What policies see and answer: kept as given, or refused with the rule."""

import dataclasses

import numpy as np
import pytest

from janus import JanusError, Placement
from janus.scale import Decision, Observation

SEEN = {"time_s": 900.0, "demand": 100.0, "context": 500.0}
SAID = {"time_s": 900.0, "action": "keep", "n_attention": 1, "n_experts": 2}


def test_the_fields_are_the_agreed_ones():
    names = [[f.name for f in dataclasses.fields(kind)] for kind in (Observation, Decision)]
    assert names[0] == ["time_s", "demand", "context", "counts", "context_cv"]
    assert names[1] == [
        "time_s", "action", "n_attention", "n_experts", "placement", "reason", "moved_bytes", "migration_s"
    ]  # fmt: skip


def test_counts_are_a_read_only_copy_with_a_layer_axis():
    given = np.array([1, 2, 0])
    kept = Observation(**SEEN, counts=given).counts
    given[0] = 7
    assert kept.tolist() == [[1.0, 2.0, 0.0]]
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1


def test_both_are_frozen():
    for value in (Observation(**SEEN), Decision(**SAID)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.time_s = 1.0


def test_an_idle_window_may_be_observed():
    assert Observation(time_s=0, demand=0, context=1).demand == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"time_s": float("nan")}, "time_s"),
        ({"time_s": "now"}, "time_s"),
        ({"demand": -1}, "demand"),
        ({"demand": float("nan")}, "demand"),
        ({"demand": float("inf")}, "demand"),
        ({"demand": None}, "demand"),
        ({"demand": True}, "demand"),
        ({"context": 0}, "context"),
        ({"context": float("nan")}, "context"),
        ({"context_cv": -0.1}, "context_cv"),
        ({"context_cv": "wide"}, "context_cv"),
        ({"counts": []}, "counts"),
        ({"counts": [[1, 2], [3]]}, "counts"),
        ({"counts": [0, 0]}, "above 0"),
        ({"counts": [1, -1]}, "counts"),
        ({"counts": [1.0, float("nan")]}, "counts"),
        ({"counts": ["a"]}, "counts"),
        ({"counts": np.ones((1, 1, 1))}, "counts"),
    ],
)
def test_a_wrong_observation_is_refused(changed, words):
    with pytest.raises(JanusError, match=words) as caught:
        Observation(**{**SEEN, **changed})
    assert caught.value.code == "scale.observation"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"time_s": float("inf")}, "time_s"),
        ({"action": "grow"}, "'keep', 'scale', 'place', 'infeasible'"),
        ({"n_attention": 0}, "n_attention"),
        ({"n_experts": 1.5}, "n_experts"),
        ({"moved_bytes": -1}, "moved_bytes"),
        ({"migration_s": float("nan")}, "migration_s"),
        ({"migration_s": -1}, "migration_s"),
        ({"placement": [[0]]}, "Placement"),
        ({"placement": Placement([[0], [1], [0]], 2)}, "n_experts=2"),
    ],
)
def test_a_wrong_decision_is_refused(changed, words):
    with pytest.raises(JanusError, match=words) as caught:
        Decision(**{**SAID, **changed})
    assert caught.value.code == "scale.decision"


def test_equal_decisions_compare_equal():
    placed = {"placement": Placement([[0], [1]], 2)}
    assert Decision(**SAID, **placed) == Decision(**SAID, placement=Placement([[0], [1]], 2))
    assert Decision(**SAID) != Decision(**SAID, **placed)
    assert Decision(**SAID).gpus == 3
