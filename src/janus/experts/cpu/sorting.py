"""Sort the routing entries of a batch by slot, so that each activated slot is read once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from janus.sched.numba_backend import compiled

Int64Array = npt.NDArray[np.int64]


class Runs(NamedTuple):
    """Entries by activated slot: those of `slots[a]` are numbers `starts[a]` to `starts[a + 1]`, by token, then k.

    Attributes:
        slots: int64 [A], activated slots, in the order of their logical expert.
        starts: int64 [A + 1].
        entries: int64 [N], entry t * K + k.
        tokens: int64 [N], t.
    """

    slots: Int64Array
    starts: Int64Array
    entries: Int64Array
    tokens: Int64Array


def sort(slots_TK: npt.NDArray[np.integer], order_S: Int64Array) -> Runs:
    """Sort the entries of a batch; -1 is left out.

    Args:
        slots_TK: [T, K], int32 or int64, C-contiguous, values -1 .. S - 1.
        order_S: the slots in the order in which they are to run.
    """
    return Runs(*_sort(slots_TK, order_S))


@compiled
def _sort(slots_TK: Any, order_S: Any) -> Any:
    T, K = slots_TK.shape
    counts = np.zeros(len(order_S) + 1, np.int64)
    for t in range(T):
        for k in range(K):
            counts[slots_TK[t, k]] += 1  # -1 is the last place
    total, active = T * K - counts[-1], 0
    slots, starts = np.empty(len(order_S), np.int64), np.zeros(len(order_S) + 1, np.int64)
    for s in order_S:
        if counts[s]:
            slots[active], starts[active + 1] = s, starts[active] + counts[s]
            counts[s] = starts[active]  # from here on: where the slot's next entry goes
            active += 1
    entries, tokens = np.empty(total, np.int64), np.empty(total, np.int64)
    for t in range(T):
        for k in range(K):
            s = slots_TK[t, k]
            if s >= 0:
                entries[counts[s]], tokens[counts[s]] = t * K + k, t
                counts[s] += 1
    return slots[:active], starts[: active + 1], entries, tokens
