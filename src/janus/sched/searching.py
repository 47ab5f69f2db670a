"""`place(method="janus")`: a first map per layer, then local search on the exact a_max over sampled batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.sched.moving import reorder
from janus.sched.popularity import Popularity
from janus.sched.search_state import State, make_state
from janus.sched.starting import Frame, first_map
from janus.types.placement import IntArray

Progress = Callable[[int, int, str], None]
Bools = npt.NDArray[np.bool_]

# Batches that changes are judged on, all sizes together; the result is judged on as many others.
BATCHES = 1536
# Changes tried, changes in a row that may fail, and batches seen before a change may be given up.
STEPS, PATIENCE, CHECKPOINT = 2000, 200, 64
# Changing all slots has to lower the mean a_max by this share of itself, changing fewer by less in proportion.
PRICE = 0.03


@dataclass(frozen=True)
class Search:
    """How every layer is placed.

    Attributes:
        frame: sizes and rules of the map.
        batch_sizes: B of the sampled batches, each equally often.
        seed: of the batches and the changes tried; every layer uses the same.
    """

    frame: Frame
    batch_sizes: Sequence[int]
    seed: int

    def all_layers(
        self, layers: Sequence[Popularity], old: Sequence[IntArray] | None, progress: Progress | None
    ) -> list[IntArray]:
        """One map per layer. Layers know nothing of each other, so threads change the time and not the maps."""
        import janus.sched.search_loops as loops

        # compiled code releases the interpreter's lock; what is not compiled would only wait for it
        threads = min(len(layers), _cores()) if loops.numba is not None else 1
        maps = []
        with ThreadPoolExecutor(threads) as pool:
            for found in pool.map(self.one_layer, layers, old or [None] * len(layers)):
                maps.append(found)
                if progress is not None:
                    progress(len(maps), len(layers), "layers placed")
        return maps

    def one_layer(self, layer: Popularity, old_GC: IntArray | None) -> IntArray:
        """The map of one layer; with `old_GC` the search starts there and pays for every slot it changes."""
        from janus.sched.search_loops import search

        active_E = np.mean([layer.activation(B) for B in self.batch_sizes], axis=0)
        first, held = first_map(active_E, self.frame, old_GC), self._held(old_GC)
        state = self._state(first, self._batches(layer, 0), held)
        price = 0 if old_GC is None else self._price(state)
        search(state, STEPS, PATIENCE, price, CHECKPOINT)
        best = state.slots
        if (best != first).any():  # on unseen batches: what fits only the batches it was found on is not kept
            unseen = self._batches(layer, 1)
            found, before = (self._cost(self._state(slots, unseen, held), price) for slots in (best, first))
            best = best if found <= before else first
        return best if old_GC is None else reorder(best, old_GC)

    def _batches(self, layer: Popularity, part: int) -> Bools:
        return layer.active_sets(self.batch_sizes, -(-BATCHES // len(self.batch_sizes)), (self.seed, part))

    def _held(self, old_GC: IntArray | None) -> Bools:
        """bool [G, E]: what instances hold before."""
        held = np.zeros((self.frame.num_instances, self.frame.num_experts), dtype=np.bool_)
        for g, row in enumerate(() if old_GC is None else old_GC[: len(held)]):
            held[g, row[row >= 0]] = True
        return held

    def _state(self, slots: IntArray, active_En: Bools, held_GE: Bools) -> State:
        frame = self.frame
        return make_state(slots, active_En, held_GE, node_size=frame.node_size, least=frame.least, seed=self.seed)

    def _price(self, state: State) -> int:
        """Of one slot, in the unit of sum(top); at least 1, so that what gains nothing stays."""
        return max(1, round(PRICE * int(state.top.sum()) / self.frame.num_slots))

    def _cost(self, state: State, price: int) -> int:
        """Sum of a_max, plus `price` for every slot that holds what its instance did not hold before."""
        filled = state.slots >= 0
        new = filled & ~np.take_along_axis(state.held, np.where(filled, state.slots, 0), axis=1)
        return int(state.top.sum()) + price * int(new.sum())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
