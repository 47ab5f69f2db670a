"""Drawing token routings from popularities: what a model without a recording borrows from one that has it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError

FloatArray = npt.NDArray[np.float64]
CHUNK = 1 << 20  # random numbers drawn at once, to bound memory


def inclusion(popularity_E: npt.ArrayLike, top_k: int) -> FloatArray:
    """The probability that a token chooses each expert: proportional to popularity, at most 1, summing to `top_k`.

    What an expert cannot take above 1 goes to the others in proportion.

    Args:
        popularity_E: [E], >= 0, in any unit.
        top_k: K.

    Raises:
        JanusError: ``routing.counts`` when fewer than `top_k` experts have any popularity.

    Example:
        >>> inclusion([8, 1, 1, 0], top_k=2).tolist()
        [1.0, 0.5, 0.5, 0.0]
    """
    p_E = np.asarray(popularity_E, dtype=np.float64)
    alive = int((p_E > 0).sum())
    if alive < top_k:
        raise JanusError("routing.counts", f"a token chooses {top_k} distinct experts, but only {alive} have any count")
    full = np.zeros(len(p_E), dtype=bool)
    while True:
        rest = np.where(full, 0.0, p_E)
        room = top_k - int(full.sum())
        pi_E = np.where(full, 1.0, rest * (room / rest.sum() if room else 0.0))
        over = (pi_E > 1) & ~full
        if not over.any():
            return pi_E
        full |= over


def draw_tokens(pi_LE: FloatArray, top_k: int, tokens: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Draw tokens, layers independent, K distinct experts each, with marginals close to `pi_LE`: int16 [T, L, K].

    Pareto sampling (Rosen 1997): take the K smallest of odds(u) / odds(pi) with u uniform per expert. Drawing one
    after another in proportion to popularity (Plackett-Luce) instead flattens the hot experts by 4-8 %.

    Args:
        pi_LE: float64 [L, E], rows as `inclusion` returns them.
        top_k: K.
        tokens: T.
        rng: the only source of randomness.
    """
    layers, experts = pi_LE.shape
    out = np.empty((tokens, layers, top_k), dtype=np.int16)
    step = max(1, CHUNK // experts)
    with np.errstate(divide="ignore"):
        inverse_odds_LE = (1 - pi_LE) / pi_LE  # inf: never chosen; 0: always
    for layer in range(layers):
        for first in range(0, tokens, step):
            u = rng.random((min(step, tokens - first), experts))
            with np.errstate(invalid="ignore"):
                keys = u / (1 - u) * inverse_odds_LE[layer]
            keys[np.isnan(keys)] = np.inf  # u of exactly 0 at an expert that is never chosen
            out[first : first + step, layer] = np.argpartition(keys, top_k - 1, axis=1)[:, :top_k]
    return out


def resample_popularity(popularity_E: npt.ArrayLike, num_experts: int) -> FloatArray:
    """Read sorted popularity as a quantile function and take it at `num_experts` even points, most popular first.

    Linear between the midpoints (i + 0.5) / E, flat beyond the first and last: the ratio of the most popular expert to
    the mean is kept, up to the change of the mean itself.

    Example:
        >>> resample_popularity([1, 3], 4).tolist()
        [3.0, 2.5, 1.5, 1.0]
    """
    ranked = np.sort(np.asarray(popularity_E, dtype=np.float64))[::-1]
    at = (np.arange(num_experts) + 0.5) / num_experts
    return np.interp(at, (np.arange(len(ranked)) + 0.5) / len(ranked), ranked)
