"""A placement is judged by what it is for: the exact a_max over batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from janus.sched.api import Balancer
from janus.sched.popularity import Popularity
from janus.types.placement import IntArray, Placement

# Batches per size. All candidates see the same ones, so that the difference of their means is known to a few
# hundredths of a slot.
BATCHES = 64


def mean_a_max(slots_GC: IntArray, num_experts: int, batches: Iterable[npt.NDArray[np.int32]]) -> float:
    """Mean over `batches` (arrays [n, B, K]) of the smallest possible a_max on one layer's map."""
    groups = list(batches)
    balancer = Balancer(Placement(slots_GC, num_experts), max_tokens=max(group.shape[1] for group in groups))
    tops = []
    for ids in (ids for group in groups for ids in group):
        balancer(ids, 0)
        tops.append(int(balancer.load.max()))
    return float(np.mean(tops))


def best_of(
    candidates: Sequence[IntArray], layer: Popularity, sizes: Sequence[int], rng: np.random.Generator
) -> IntArray:
    """The candidate with the smallest mean a_max over the same sampled batches; ties to the first."""
    batches = [layer.batches(B, BATCHES, rng) for B in sizes]
    means = [mean_a_max(slots, layer.num_experts, batches) for slots in candidates]
    return candidates[int(np.argmin(means))]
