"""What the local search of `place` works on: a map, its batches, and an optimal assignment of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MASK = 0xFFFFFFFF


class State(NamedTuple):
    """A map and its batches; n batches, arrays that the loops write to.

    `slots` [G, C] is the map, `hosts` [E, G] with `replicas` [E] the same by expert, `shared` [G, C] with
    `num_shared` [G] the experts on g that have another host. Per batch: `home` [n, E] instance that serves the expert
    (-1: not active), `load` [n, G], `top` [n] = a_max, `floor` [n] = ceil(active / G); `draft_*` the same if the
    change under trial is made, for the batches in `touched`. `held` [G, E]: what instances held before.
    """

    slots: Any
    hosts: Any
    replicas: Any
    shared: Any
    num_shared: Any
    active: Any  # bool [E, n]
    home: Any
    load: Any
    top: Any
    floor: Any
    draft_home: Any
    draft_load: Any
    draft_top: Any
    touched: Any
    loose: Any  # batches with top > floor
    trail: Any  # [3, G], see `reach`
    held: Any
    rng: Any
    node_size: int
    least: int


def make_state(
    slots_GC: npt.NDArray[np.int32],
    active_En: npt.NDArray[np.bool_],
    held_GE: npt.NDArray[np.bool_],
    *,
    node_size: int = 1,
    least: int = 1,
    seed: int = 0,
) -> State:
    """A `State` with every batch optimally assigned on the map `slots_GC`, of which it keeps a copy."""
    from janus.sched.search_loops import begin

    (G, C), (E, n) = slots_GC.shape, active_En.shape
    per_batch = [np.zeros(n, dtype=np.int32) for _ in range(5)]
    state = State(
        slots=slots_GC.astype(np.int32),
        hosts=np.zeros((E, G), dtype=np.int32),
        replicas=np.zeros(E, dtype=np.int32),
        shared=np.zeros((G, C), dtype=np.int32),
        num_shared=np.zeros(G, dtype=np.int32),
        active=active_En,
        home=np.full((n, E), -1, dtype=np.int16),
        load=np.zeros((n, G), dtype=np.int16),
        top=per_batch[0],
        floor=per_batch[1],
        draft_home=np.empty((n, E), dtype=np.int16),
        draft_load=np.empty((n, G), dtype=np.int16),
        draft_top=per_batch[2],
        touched=per_batch[3],
        loose=per_batch[4],
        trail=np.zeros((3, G), dtype=np.int32),
        held=held_GE,
        rng=np.array([(seed ^ 0x9E3779B9) & MASK or 1], dtype=np.int64),
        node_size=node_size,
        least=least,
    )
    order = np.argsort(np.bincount(slots_GC[slots_GC >= 0], minlength=E), kind="stable")
    begin(state, order)
    return state
