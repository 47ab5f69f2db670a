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
    total, S = slots_TK.size, len(order_S)
    slots, starts, entries = np.empty(S, np.int64), np.empty(S + 1, np.int64), np.empty(total, np.int64)
    active = counting_sort(slots_TK.reshape(-1), order_S, np.empty(S + 1, np.int64), slots, starts, entries)
    entries = entries[: starts[active]]
    return Runs(slots[:active], starts[: active + 1], entries, entries // max(1, slots_TK.shape[1]))


@compiled
def counting_sort(slots_N: Any, order_S: Any, counts: Any, slots: Any, starts: Any, entries: Any) -> Any:
    """Fill `slots`, `starts` and `entries` of `Runs`; returns A. `counts` has room for S + 1 numbers, whatever they are."""
    counts[:] = 0
    for s in slots_N:
        counts[s] += 1  # -1 is the last place
    active, starts[0] = 0, 0
    for s in order_S:
        if counts[s]:
            slots[active], starts[active + 1] = s, starts[active] + counts[s]
            counts[s] = starts[active]  # from here on: where the slot's next entry goes
            active += 1
    for n in range(len(slots_N)):
        s = slots_N[n]
        if s >= 0:
            entries[counts[s]] = n
            counts[s] += 1
    return active
