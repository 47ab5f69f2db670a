"""A placement is judged by what it is for: the exact a_max over batches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from janus.sched.api import Balancer
from janus.types.placement import IntArray, Placement


def mean_a_max(slots_GC: IntArray, num_experts: int, batches: Iterable[npt.NDArray[np.int32]]) -> float:
    """Mean over `batches` (arrays [n, B, K]) of the smallest possible a_max on one layer's map."""
    groups = list(batches)
    balancer = Balancer(Placement(slots_GC, num_experts), max_tokens=max(group.shape[1] for group in groups))
    tops = []
    for ids in (ids for group in groups for ids in group):
        balancer(ids, 0)
        tops.append(int(balancer.load.max()))
    return float(np.mean(tops))
