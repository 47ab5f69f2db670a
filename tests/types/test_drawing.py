"""Inclusion probabilities, the draw, and quantile resampling, each against plain arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_strategies import refuses

from janus.types.drawing import draw_tokens, inclusion, resample_popularity


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_inclusion_sums_to_k_and_keeps_proportions(popularity, top_k):
    popularity = np.array(popularity)
    alive = popularity > 1e-3
    popularity[~alive] = 0
    if alive.sum() < top_k:
        refuses("routing.counts", f"only {alive.sum()} have", inclusion, popularity, top_k)
        return
    pi = inclusion(popularity, top_k)
    assert pi.sum() == pytest.approx(top_k)
    assert (pi <= 1).all()
    assert (pi[~alive] == 0).all()
    free = alive & (pi < 1)
    ratio = pi[free] / popularity[free]
    assert np.allclose(ratio, ratio[:1])
    if free.any() and (pi == 1).any():  # whoever is full deserved it
        assert popularity[pi == 1].min() * ratio[0] >= 1 - 1e-9


def test_the_draw_meets_hard_marginals():
    pi = np.array([[1.0, 0.9, 0.05, 0.05, 0.0], [0.4, 0.4, 0.4, 0.4, 0.4]])
    ids = draw_tokens(pi, 2, 40_000, np.random.default_rng(0))
    assert (ids[..., 0] != ids[..., 1]).all()
    for layer in range(2):
        share = np.bincount(ids[:, layer].ravel(), minlength=5) / 40_000
        assert abs(share - pi[layer]).max() < 0.012
        assert (share[pi[layer] == 1] == 1).all()
        assert (share[pi[layer] == 0] == 0).all()


def test_the_draw_beats_drawing_in_proportion():
    pi = inclusion(np.array([30.0, 10, 10, 10, 10, 10, 10, 10]), 2)  # the hot expert belongs to 60 % of the tokens
    rng = np.random.default_rng(0)
    keys = rng.standard_exponential((40_000, 8)) / pi  # Plackett-Luce
    plackett_luce = (np.argsort(keys, axis=1)[:, :2] == 0).any(axis=1).mean()
    ours = (draw_tokens(pi[None], 2, 40_000, rng) == 0).any(axis=(1, 2)).mean()
    assert abs(ours - 0.6) < 0.012
    assert plackett_luce < 0.55


def test_every_pair_of_equals_is_equally_likely():
    ids = draw_tokens(np.full((1, 6), 1 / 3), 2, 30_000, np.random.default_rng(0))[:, 0]
    pairs = np.bincount(ids.min(axis=1).astype(int) * 6 + ids.max(axis=1), minlength=36).reshape(6, 6)
    assert abs(pairs[np.triu_indices(6, 1)] - 2000).max() < 5 * np.sqrt(2000)  # 15 pairs, 5 sigma


def test_chunks_are_filled_to_the_last_token(monkeypatch):
    monkeypatch.setattr("janus.types.drawing.CHUNK", 8)
    ids = draw_tokens(np.full((2, 4), 0.5), 2, 7, np.random.default_rng(0))
    assert ids.shape == (7, 2, 2)
    assert ids.min() >= 0
    assert ids.max() < 4


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_resampling_stays_in_range_and_keeps_the_same_size_unchanged(popularity, size):
    out = resample_popularity(popularity, size)
    assert len(out) == size
    assert (np.diff(out) <= 1e-9).all()
    assert min(popularity) - 1e-9 <= out.min() <= out.max() <= max(popularity) + 1e-9
    assert resample_popularity(popularity, len(popularity)).tolist() == pytest.approx(sorted(popularity, reverse=True))
