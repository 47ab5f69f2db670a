"""Microseconds of balancers on one core: a whole `Balancer` call, and the solve alone without counting and rewriting."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from janus.sched import Balancer, numba_backend
from janus.sched.tables import LayerTables, Workspace
from janus.types import Placement

Ids = npt.NDArray[np.integer[Any]]
Timed = Callable[[Ids], float]  # one batch -> microseconds


def whole_call(balancer: Balancer) -> Timed:
    """A call of a `Balancer` on layer 0: checks, counting, solving, ids rewritten."""

    def timed(ids: Ids) -> float:
        start = time.perf_counter_ns()
        balancer(ids, 0)
        return (time.perf_counter_ns() - start) / 1e3

    return timed


def solves(placement: Placement, method: str, batches: Sequence[Ids]) -> Callable[[], float]:
    """From the tokens of each expert to its replica, by the compiled functions that the numba backend itself uses.

    One solve takes about as long as a look at the clock, so the batches are solved one after another in compiled code
    and a call returns the microseconds of one, their mean.
    """
    t = LayerTables.build(placement, 0, method)
    work = Workspace(t.num_experts, t.num_instances, t.num_slots)
    tokens_NE = np.array([np.bincount(x[x >= 0], minlength=t.num_experts + 1) for x in batches], dtype=np.int32)

    def timed() -> float:
        start = time.perf_counter_ns()
        _solve(tokens_NE, t.phy2log, t.log2phy, t.order, t.num_instances, work.flat, method == "exact")
        return (time.perf_counter_ns() - start) / 1e3 / len(tokens_NE)

    timed()  # compiled now
    return timed


@numba.njit(error_model="numpy")  # type: ignore[misc]
def _solve(tokens_NE: Any, phy2log: Any, log2phy: Any, order: Any, G: int, flat: Any, exact: bool) -> None:
    E, R = len(order), len(phy2log)
    _, replica, per_slot, bound, load, spent, queue, level = numba_backend.carve(flat, E, G, R)
    for tokens in tokens_NE:
        numba_backend.start(tokens, replica, per_slot, bound, load, spent, log2phy, order, R // G, exact)
        if exact:
            while numba_backend.shift(replica, per_slot, bound[0], load, queue, level, phy2log, log2phy):
                pass


def rounds(timed: Sequence[Timed], batches: Sequence[Ids], how_many: int) -> npt.NDArray[np.float64]:
    """Microseconds [round, function, batch], functions taking turns, so that a busy machine slows all of them alike."""
    for function in timed:
        for ids in batches:
            function(ids)  # warm: compiled, tables in the cache
    return np.array([[[function(ids) for ids in batches] for function in timed] for _ in range(how_many)])


def medians(us: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Per function: the median over rounds of each round's median."""
    return np.median(np.median(us, axis=2), axis=0)
