"""The grids that `plan` measures on, and the names the package shows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import janus.scale
from janus import JanusError
from janus.scale.api import plan
from janus.scale.search.problems import Options, batch_sizes, pool_sizes


@given(st.integers(1, 200), st.integers(1, 200))
def test_pool_sizes_reach_both_ends(least, most):
    sizes = pool_sizes(least, most)
    if least > most:
        assert sizes == []
        return
    assert (sizes[0], sizes[-1]) == (least, most)
    assert sizes == sorted(set(sizes))
    assert set(range(least, min(least + 4, most) + 1)) <= set(sizes)
    assert all(b <= a * 4 / 3 + 1 for a, b in itertools.pairwise(sizes))


@given(st.floats(0.1, 1e6), st.integers(1, 20_000))
def test_batch_sizes_cover_every_batch_within_the_slo(largest, cap):
    sizes = batch_sizes(largest, cap)
    assert sizes[0] == 1
    assert sizes == sorted(set(sizes))
    assert sizes[-1] <= cap
    assert sizes[-1] >= min(int(largest) + 1, cap)  # the search looks at demand * SLO + 1 at most
    assert all(b <= 2 * a for a, b in itertools.pairwise(sizes))


def test_batch_sizes_by_hand():
    assert batch_sizes(10, 100) == [1, 2, 3, 4, 6, 8, 12]
    assert batch_sizes(10, 5) == [1, 2, 3, 4, 5]


def test_the_package_shows_these_names():
    assert set(janus.scale.__all__) == {
        "ActivationTable", "Autoscaler", "Breakdown", "Cluster", "Decision", "Efficiency", "EngineCoefficients",
        "EngineConfig", "EngineModel", "Hardware", "LatencyModel", "ModelSpec", "Observation", "SavedPlan",
        "ScalePlan", "StepPoint", "Timeline", "Tuning", "fitted_to", "plan", "simulate",
    }  # fmt: skip
    assert dir(janus.scale) == sorted(janus.scale.__all__)
    for name in janus.scale.__all__:
        assert getattr(janus.scale, name) is not None
    with pytest.raises(AttributeError, match="magic"):
        janus.scale.magic  # noqa: B018


def test_an_unknown_option_lists_the_known_ones(small_cluster, skewed):
    with pytest.raises(JanusError) as error:
        plan("olmoe-1b-7b", small_cluster, demand=1, slo=1, trace=skewed(1, 64), context=1, speed=9)
    assert error.value.code == "scale.option"
    assert all(repr(name) in str(error.value) for name in Options.__annotations__)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"cluster": "h100-sxm"}, "scale.cluster"), ({"latency": 3}, "scale.latency"), ({"model": 3}, "model.config")],
)
def test_wrong_kinds_are_refused_before_anything_is_measured(wrong, code):
    given = {"model": "olmoe-1b-7b", "cluster": janus.scale.Cluster("h100-sxm"), "demand": 5, "slo": 50, "context": 9}
    with pytest.raises(JanusError) as caught:
        plan(**{**given, **wrong}, trace=[range(1, 65)])
    assert caught.value.code == code
    assert ";" in caught.value.message  # a remedy


def test_a_folder_without_config_is_not_called_missing(tmp_path):
    with pytest.raises(JanusError, match=r"model\.config.*holds no config\.json"):
        janus.scale.ModelSpec.from_config(tmp_path)
