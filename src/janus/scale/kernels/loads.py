"""What the routing named in a kernel table asks of the busiest rank: distinct experts and tokens, expected values."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from janus.scale.kernels.tables import BALANCED, POWER_LAW, UNIFORM

DRAWS = 16  # standard error of the mean below 1.5 % at the tables' sizes; the tables hold one draw each


@lru_cache(maxsize=8192)
def busiest_rank(
    distribution: str, tokens: int, top_k: int, experts: int, ep: int, wide: bool = False
) -> tuple[float, float]:
    """(distinct experts, routed tokens) on the expert-parallel rank with the most tokens, means over draws.

    ``uniform`` and ``balanced`` spread tokens x top_k choices evenly. ``power_law_x`` follows the generator of the
    tables (ai-dynamo/aiconfigurator): every expert draws a weight with density w^-x on [1, 0.8 tokens], or on
    [0.01, 2] while there are no more choices than experts (unless `wide`); weights are scaled to the choices and
    rounded, and what rounding leaves goes to the heaviest experts, one each.

    Args:
        distribution: of a `MoeRow`.
        tokens: of all ranks together.
        top_k: K.
        experts: E.
        ep: ranks, E / ep experts each.
        wide: small batches draw from [1, 0.8 tokens] too. Versions differ and the tables do not say which one drew.

    Example:
        Eight tokens of 8 choices on 4 ranks of 64 experts, evenly: 16 each.

        >>> busiest_rank("uniform", 8, 8, 256, 4)
        (16.0, 16.0)
    """
    local, choices = experts // ep, tokens * top_k
    if distribution in (UNIFORM, BALANCED):
        each = max(choices / ep, 1.0)
        return min(float(local), each), each
    power = exponent(distribution)
    low, high = (1.0, max(0.8 * tokens, 1.01)) if choices > experts or wide else (0.01, 2.0)
    rng = np.random.default_rng(0)
    drawn = [_draw(rng, power, low, high, experts, choices, local) for _ in range(DRAWS)]
    active, most = np.mean(drawn, axis=0)
    return float(active), float(most)


def exponent(distribution: str) -> float:
    """x of ``power_law_x``; 0 for even loads.

    Example:
        >>> exponent("power_law_1.2"), exponent("uniform")
        (1.2, 0.0)
    """
    return 0.0 if distribution in (UNIFORM, BALANCED) else float(distribution.removeprefix(POWER_LAW))


def _draw(
    rng: np.random.Generator, power: float, low: float, high: float, experts: int, choices: int, local: int
) -> tuple[int, int]:
    u = rng.random(experts)
    if power == 1:
        weights = low * (high / low) ** u
    else:
        a, b = low ** (1 - power), high ** (1 - power)
        weights = (a + (b - a) * u) ** (1 / (1 - power))
    counts = np.round(weights / weights.sum() * choices).astype(np.int64)
    heaviest = np.argsort(-weights)
    while left := choices - int(counts.sum()):
        takes = heaviest if left > 0 else heaviest[counts[heaviest] > 0]
        counts[takes[: abs(left)]] += 1 if left > 0 else -1
    ranks = counts.reshape(-1, local)
    busiest = int(ranks.sum(axis=1).argmax())
    return int((ranks[busiest] > 0).sum()), int(ranks[busiest].sum())
