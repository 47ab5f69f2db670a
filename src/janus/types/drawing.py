"""Drawing token routings from popularities: what a model without a recording borrows from one that has it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError

FloatArray = npt.NDArray[np.float64]
UNIT_BITS = 40
UNIT = 1 << UNIT_BITS  # the probability 1 in integers
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
    """Draw tokens, layers independent, K distinct experts each, expert e with probability `pi_LE[l, e]`: [T, L, K].

    Systematic sampling in random order (Madow 1949): shuffle the experts, lay them end to end as intervals of length
    pi, and take those that hold u, u + 1, ..., u + K - 1 for one uniform u. The probabilities are exact for any K;
    drawing one expert after another in proportion to popularity (Plackett-Luce) flattens the hot ones by 4-8 %.

    Args:
        pi_LE: float64 [L, E], rows as `inclusion` returns them.
        top_k: K.
        tokens: T.
        rng: the only source of randomness.
    """
    layers, experts = pi_LE.shape
    out = np.empty((tokens, layers, top_k), dtype=np.int16)
    step = max(1, CHUNK // experts)
    for layer in range(layers):
        length_E = _whole_lengths(pi_LE[layer], top_k)
        for first in range(0, tokens, step):
            count = min(step, tokens - first)
            order = _shuffled(count, experts, rng)
            ends = np.cumsum(length_E[order], axis=1) + rng.integers(UNIT, size=(count, 1))
            passed = ends >> UNIT_BITS  # unit marks at or before the end of each interval
            taken = np.empty(passed.shape, dtype=bool)
            taken[:, 0], taken[:, 1:] = passed[:, 0] > 0, passed[:, 1:] > passed[:, :-1]
            out[first : first + count, layer] = order[taken].reshape(count, top_k)
    return out


def _shuffled(rows: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint32]:
    """A random order of 0..size-1 per row: random high bits, the number in the low bits, sorted (vectorised in NumPy)."""
    low = (1 << (size - 1).bit_length()) - 1
    keys = rng.integers(1 << 32, size=(rows, size), dtype=np.uint32)
    keys &= np.uint32(0xFFFFFFFF ^ low)
    keys |= np.arange(size, dtype=np.uint32)
    keys.sort(axis=1)
    return keys & np.uint32(low)


def _whole_lengths(pi_E: FloatArray, top_k: int) -> npt.NDArray[np.int64]:
    """`pi_E` in integers, at most UNIT each and exactly top_k * UNIT together, so that no rounding loses a choice."""
    length_E = np.rint(pi_E * UNIT).astype(np.int64)
    short = top_k * UNIT - int(length_E.sum())  # a few units, from rounding
    for e in np.argsort(-np.minimum(length_E, UNIT - length_E), kind="stable"):
        add = int(np.clip(short, -length_E[e], UNIT - length_E[e]))
        length_E[e] += add
        short -= add
        if not short:
            break
    return length_E


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
