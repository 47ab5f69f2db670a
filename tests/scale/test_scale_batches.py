"""Batches: marginals of the counts, distinct experts per token, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus import JanusError, RoutingTrace
from janus.scale import ModelSpec
from janus.scale.activation.batches import Routing, draw, inclusion


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any), st.data())
def test_inclusion_is_a_probability_per_expert(counts, data):
    k = data.draw(st.integers(1, len(counts)))
    p = inclusion(counts, k)
    assert p.sum() == pytest.approx(k)
    assert (p >= 0).all()
    assert (p <= 1 + 1e-12).all()
    order = np.argsort(counts)
    assert (np.diff(p[order]) >= -1e-12).all()  # more popular, never less likely


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any), st.integers(0, 20), st.data())
def test_tokens_choose_distinct_experts(counts, B, data):
    k = data.draw(st.integers(1, len(counts)))
    ids = draw(inclusion(counts, k), k, B, np.random.default_rng(0))
    assert ids.shape == (B, k)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_marginals_are_those_of_the_counts(skewed):
    p = inclusion(skewed(1, 32)[0], 4)
    ids = draw(p, 4, 40_000, np.random.default_rng(1))
    seen = np.bincount(ids.ravel(), minlength=32) / 40_000
    # five standard errors of 40,000 draws: 5 * sqrt(p (1 - p) / n) <= 0.0125
    assert np.abs(seen - p).max() < 0.0125


def test_a_trace_gives_its_own_tokens():
    trace = RoutingTrace(np.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]]]), num_experts=8, source="two tokens")
    routing = Routing.of(trace)
    ids = routing.draw([1], 50, np.random.default_rng(0))
    assert ids.shape == (50, 1, 2)
    assert {tuple(row[0]) for row in ids.tolist()} == {(2, 3), (6, 7)}
    assert routing.source == "two tokens"
    assert "synthetic routing" in Routing.of(RoutingTrace(trace.ids, 8, source="x", synthetic=True)).source


def test_rows_of_zeros_are_dense_layers(skewed):
    counts = np.vstack([np.zeros((3, 8), int), skewed(5, 8)])
    assert Routing.of(counts, 2).counts.shape == (5, 8)
    assert Routing.of(counts, 2).spread(3) == [0, 2, 4]


def test_refusals(skewed):
    mixtral = ModelSpec.from_config("mixtral-8x7b")
    for bad in ([[0, 0]], [[-1, 2]], [["a"]], np.zeros((2, 2, 2)), [[np.nan, 1]]):
        with pytest.raises(JanusError):
            Routing.of(bad, 1)
    with pytest.raises(JanusError, match="top_k"):
        Routing.of([[1, 2]])
    with pytest.raises(JanusError, match="synthetic"):
        Routing.of(skewed(32, 16), 2).check(mixtral)
    with pytest.raises(JanusError, match="32 MoE layers"):
        Routing.of(skewed(5, 8), 2).check(mixtral)
    Routing.of(skewed(1, 8), 2).check(mixtral)
    with pytest.raises(JanusError, match="0 tokens"):
        Routing.of(RoutingTrace(np.zeros((0, 1, 1), int), 4))
