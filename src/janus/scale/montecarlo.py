"""One row of the activation table: place, draw batches, balance, look at the busiest instance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.scale.batches import Routing
from janus.types import Placement


@dataclass(frozen=True)
class Row:
    """Values of one (n_e, C), one per batch size; experts, except `tokens`."""

    mean: tuple[float, ...]
    stderr: tuple[float, ...]
    worst: tuple[float, ...]
    tokens: tuple[float, ...]


class MonteCarlo:
    """Draws the batches once and measures any number of placements on them (common random numbers).

    Args:
        routing: where batches come from.
        batch_sizes: B, ascending.
        method: of the balancer.
        placing: of `janus.sched.place`.
        layers: at most so many layers of the source.
        samples: batches per layer and batch size.
        seed: of the draws.
    """

    def __init__(
        self,
        routing: Routing,
        batch_sizes: tuple[int, ...],
        *,
        method: str,
        placing: str,
        layers: int,
        samples: int,
        seed: int,
    ) -> None:
        self.routing, self.batch_sizes = routing, batch_sizes
        self.method, self.placing, self.samples, self.seed = method, placing, samples, seed
        self.layers = routing.spread(layers)
        self._placements: dict[tuple[int, int], Placement] = {}
        self._batches = [self._draw(B) for B in batch_sizes]

    def _draw(self, B: int) -> list[npt.NDArray[np.int16]]:
        rng = np.random.default_rng([self.seed, B])
        return [
            np.ascontiguousarray(self.routing.draw(self.layers, B, rng).swapaxes(0, 1)) for _ in range(self.samples)
        ]

    def placement(self, n_e: int, slots: int) -> Placement:
        """The placement of the measured layers on `n_e` instances of `slots` slots; layer i is `self.layers[i]`."""
        if (n_e, slots) not in self._placements:
            self._placements[n_e, slots] = self.place(self.layers, n_e, slots)
        return self._placements[n_e, slots]

    def place(self, layers: list[int], n_e: int, slots: int) -> Placement:
        """Place some layers of the source with the method of this table."""
        from janus.sched import place

        top_k = self.routing.top_k
        return place(self.routing.only(layers), n_e, slots, method=self.placing, seed=self.seed, top_k=top_k)

    def row(self, n_e: int, slots: int) -> Row:
        """Measure one pair on every batch."""
        from janus.sched import Balancer

        balancer = Balancer(self.placement(n_e, slots), method=self.method, max_tokens=self.batch_sizes[-1])
        a_max = np.empty((len(self.batch_sizes), len(self.layers), self.samples))
        tokens = np.empty_like(a_max)
        for j, batches in enumerate(self._batches):
            for s, ids_lBK in enumerate(batches):
                for i, ids in enumerate(ids_lBK):
                    a_max[j, i, s], tokens[j, i, s] = busiest(balancer(ids, i), n_e, slots)
        return _summary(a_max, tokens, len(self.routing.counts))


def busiest(physical_ids: npt.NDArray[np.integer], n_e: int, slots: int) -> tuple[int, int]:
    """(distinct slots, routed tokens) of the instance with the most of each.

    Example:
        >>> busiest(np.array([[0, 1], [0, 2]]), n_e=2, slots=2)
        (2, 3)
    """
    flat = physical_ids.ravel()
    used_GC = np.bincount(flat[flat >= 0], minlength=n_e * slots).reshape(n_e, slots)
    return int((used_GC > 0).sum(axis=1).max()), int(used_GC.sum(axis=1).max())


def _summary(a_max: npt.NDArray[np.float64], tokens: npt.NDArray[np.float64], source_layers: int) -> Row:
    """Mean over layers and samples [S, l, n]; the error has the draws' part and, if layers were left out, theirs."""
    layers, samples = a_max.shape[1:]
    by_layer = a_max.mean(axis=2)
    draws = a_max.var(axis=2, ddof=1 if samples > 1 else 0).mean(axis=1) / (samples * layers)
    left_out = by_layer.var(axis=1, ddof=1 if layers > 1 else 0) / layers * (1 - layers / source_layers)
    # more tokens never activate fewer experts: the draws' noise must not make the step time fall with B, nor the
    # worst layer fall below the mean
    rising = np.maximum.accumulate(by_layer.mean(axis=1))
    return Row(
        mean=tuple(rising.tolist()),
        stderr=tuple(np.sqrt(draws + left_out).tolist()),
        worst=tuple(np.maximum.accumulate(by_layer.max(axis=1)).tolist()),
        tokens=tuple(np.maximum.accumulate(tokens.mean(axis=(1, 2))).tolist()),
    )
