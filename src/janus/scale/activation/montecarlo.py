"""One row of the activation table: place, draw batches, balance, look at the busiest instance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from janus.scale.activation.batches import Routing
from janus.scale.activation.store import Arrays, Store, digest
from janus.types import Placement

Ints = npt.NDArray[np.int32]
COUNTED = ("exact", "greedy")  # methods that look at entries per expert alone, not at their order


@dataclass(frozen=True)
class Row:
    """Values of one (n_e, C), one per batch size; experts, except `tokens`.

    Args:
        mean: of a_max over layers and batches.
        stderr: standard error of `mean`.
        worst: mean of the layer with the largest one.
        tokens: routed tokens on the fullest instance.
        deviation: standard deviation of one layer's a_max from batch to batch.
        correlation: of a_max between two layers in the same step; one number for all batch sizes.
    """

    mean: tuple[float, ...]
    stderr: tuple[float, ...]
    worst: tuple[float, ...]
    tokens: tuple[float, ...]
    deviation: tuple[float, ...]
    correlation: float


class Seen(NamedTuple):
    """int32 [S, l, n] of every batch size, measured layer and batch: a_max, and routed tokens on the fullest instance."""

    a_max: Ints
    tokens: Ints


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
        store: keeps placements and what was measured, or None.
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
        store: Store | None = None,
    ) -> None:
        self.routing, self.batch_sizes = routing, batch_sizes
        self.method, self.placing, self.samples, self.seed = method, placing, samples, seed
        self.layers, self.store = routing.spread(layers), store
        self._placements: dict[tuple[Any, ...], Placement] = {}
        self._drawn: dict[int, list[npt.NDArray[np.int16]]] = {}
        self._counted: dict[int, Ints] = {}

    def batches(self, B: int) -> list[npt.NDArray[np.int16]]:
        """Of every sample int16 [l, B, K]: the same batches however often and in whatever order they are asked for."""
        if B not in self._drawn:
            rng = np.random.default_rng([self.seed, B])
            draws = (self.routing.draw(self.layers, B, rng) for _ in range(self.samples))
            self._drawn[B] = [np.ascontiguousarray(ids.swapaxes(0, 1)) for ids in draws]
        return self._drawn[B]

    def counts(self, B: int) -> Ints:
        """int32 [l, n, E]: routing entries of each expert in the batches of B tokens."""
        if B not in self._counted:
            experts = self.routing.counts.shape[1]
            found = [[_entries(ids, experts) for ids in ids_lBK] for ids_lBK in self.batches(B)]
            self._counted[B] = np.ascontiguousarray(np.array(found, dtype=np.int32).swapaxes(0, 1))
        return self._counted[B]

    def placement(self, n_e: int, slots: int) -> Placement:
        """The placement of the measured layers on `n_e` instances of `slots` slots; layer i is `self.layers[i]`."""
        return self.place(self.layers, n_e, slots)

    def placed(self, n_e: int, slots: int) -> Placement:
        """The placement of every layer of the source: the measured ones as they were measured, the others placed now."""
        every = range(len(self.routing.counts))
        others = [layer for layer in every if layer not in self.layers]
        measured = self.placement(n_e, slots)
        if not others:
            return measured
        slots_lGC = np.empty((len(every), n_e, slots), dtype=np.int32)
        slots_lGC[self.layers], slots_lGC[others] = measured.slots, self.place(others, n_e, slots).slots
        return Placement(slots_lGC, measured.num_experts)

    def place(self, layers: list[int], n_e: int, slots: int) -> Placement:
        """Place some layers of the source with the method of this table; the same question is answered once."""
        key = ("placement", tuple(layers), n_e, slots)
        if key not in self._placements:
            shape, experts = (len(layers), n_e, slots), self.routing.counts.shape[1]
            told = self._told(*key)
            kept = self._kept(told).get("slots")
            if kept is not None and kept.shape == shape and kept.dtype == np.int32:
                found = Placement(kept, experts)
            else:
                found = self._place(layers, n_e, slots)
                self._keep(told, {"slots": found.slots})
            self._placements[key] = found
        return self._placements[key]

    def know(self, n_e: int, slots: int, placement: Placement) -> None:
        """Take a placement of the measured layers as made, e.g. read from a file."""
        self._placements["placement", tuple(self.layers), n_e, slots] = placement

    def _place(self, layers: list[int], n_e: int, slots: int) -> Placement:
        from janus.sched import place

        top_k = self.routing.top_k
        return place(self.routing.only(layers), n_e, slots, method=self.placing, seed=self.seed, top_k=top_k)

    def row(self, n_e: int, slots: int) -> Row:
        """One pair on every batch: what was measured before is looked up, the rest measured and kept."""
        told = self._told("a_max", n_e, slots, self.method, tuple(self.layers), self.samples)
        known = self._known(self._kept(told))
        missing = tuple(B for B in self.batch_sizes if B not in known)
        if missing:
            known |= dict(zip(missing, zip(*self.measure(n_e, slots, missing), strict=True), strict=True))
            values = {f"B{B}": np.stack(pair).astype(np.int32) for B, pair in known.items()}
            self._keep(told, values)
        a_max, tokens = (np.stack(each) for each in zip(*(known[B] for B in self.batch_sizes), strict=True))
        return summary(Seen(a_max, tokens), len(self.routing.counts), together=self.routing.trace is not None)

    def measure(self, n_e: int, slots: int, sizes: tuple[int, ...]) -> Seen:
        """Every batch of these sizes under the balancer; where it looks at entries per expert alone, from their counts."""
        from janus.sched.search_loops import numba

        if self.method not in COUNTED or numba is None:
            return self.measure_plainly(n_e, slots, sizes)
        from janus.sched.numba_backend import busiest as solve
        from janus.sched.tables import LayerTables, Workspace

        placement, experts = self.placement(n_e, slots), self.routing.counts.shape[1]
        flat = Workspace(experts, n_e, n_e * slots).flat
        out = np.empty((len(sizes), len(self.layers), self.samples, 2), dtype=np.int32)
        for i in range(len(self.layers)):
            t = LayerTables.build(placement, i, self.method)
            for j, B in enumerate(sizes):
                solve(self.counts(B)[i], t.phy2log, t.log2phy, t.order, n_e, self.method == "exact", flat, out[j, i])
        return Seen(out[..., 0], out[..., 1])

    def measure_plainly(self, n_e: int, slots: int, sizes: tuple[int, ...]) -> Seen:
        """As `measure`, batch by batch with the `Balancer` that serves: for any method, and the reference."""
        from janus.sched import Balancer

        balancer = Balancer(self.placement(n_e, slots), method=self.method, max_tokens=max(sizes))
        out = np.empty((len(sizes), len(self.layers), self.samples, 2), dtype=np.int32)
        for j, B in enumerate(sizes):
            for s, ids_lBK in enumerate(self.batches(B)):
                for i, ids in enumerate(ids_lBK):
                    out[j, i, s] = busiest(balancer(ids, i), n_e, slots)
        return Seen(out[..., 0], out[..., 1])

    def _told(self, *what: Any) -> str:
        return "" if self.store is None else digest(self.routing.digest, self.placing, self.seed, *what)

    def _kept(self, key: str) -> Arrays:
        return {} if self.store is None else self.store.get(key)

    def _keep(self, key: str, arrays: Arrays) -> None:
        if self.store is not None:
            self.store.put(key, arrays)

    def _known(self, arrays: Arrays) -> dict[int, Any]:
        """B to [a_max, tokens] of what a file holds, as far as it has the form that `row` gives it."""
        shape = (2, len(self.layers), self.samples)
        fits = {name: a for name, a in arrays.items() if a.shape == shape and a.dtype == np.int32}
        return {int(name[1:]): a for name, a in fits.items() if name[0] == "B" and name[1:].isdigit()}


def _entries(ids: npt.NDArray[np.integer], experts: int) -> npt.NDArray[np.integer]:
    flat = ids.ravel()
    return np.bincount(flat[flat >= 0], minlength=experts)


def busiest(physical_ids: npt.NDArray[np.integer], n_e: int, slots: int) -> tuple[int, int]:
    """(distinct slots, routed tokens) of the instance with the most of each.

    Example:
        >>> busiest(np.array([[0, 1], [0, 2]]), n_e=2, slots=2)
        (2, 3)
    """
    flat = physical_ids.ravel()
    used_GC = np.bincount(flat[flat >= 0], minlength=n_e * slots).reshape(n_e, slots)
    return int((used_GC > 0).sum(axis=1).max()), int(used_GC.sum(axis=1).max())


def summary(seen: Seen, source_layers: int, *, together: bool) -> Row:
    """Mean over layers and samples; the error has the draws' part and, if layers were left out, theirs.

    Args:
        seen: of every batch.
        source_layers: layers there are, of which some were measured.
        together: sample n of every layer is the same tokens, so that the layers of a step may rise and fall together.
    """
    a_max, tokens = seen.a_max.astype(np.float64), seen.tokens.astype(np.float64)
    layers, samples = a_max.shape[1:]
    by_layer = a_max.mean(axis=2)
    within = a_max.var(axis=2, ddof=1 if samples > 1 else 0).mean(axis=1)
    left_out = by_layer.var(axis=1, ddof=1 if layers > 1 else 0) / layers * (1 - layers / source_layers)
    # more tokens never activate fewer experts: the draws' noise must not make the step time fall with B, nor the
    # worst layer fall below the mean
    rising = np.maximum.accumulate(by_layer.mean(axis=1))
    correlation = _correlation(a_max, within) if together and layers > 1 else 0.0
    # the same tokens in all layers: what they have in common is not averaged out by measuring more layers
    draws = within / samples * (correlation + (1 - correlation) / layers)
    return Row(
        mean=tuple(rising.tolist()),
        stderr=tuple(np.sqrt(draws + left_out).tolist()),
        worst=tuple(np.maximum.accumulate(by_layer.max(axis=1)).tolist()),
        tokens=tuple(np.maximum.accumulate(tokens.mean(axis=(1, 2))).tolist()),
        deviation=tuple(np.sqrt(within).tolist()),
        correlation=correlation,
    )


def _correlation(a_max: npt.NDArray[np.float64], within: npt.NDArray[np.float64]) -> float:
    """Between layers of one step, all batch sizes together: a few samples of one size would show noise.

    The variance of the mean over l layers is v / l + (1 - 1 / l) c, with v their mean variance and c their mean
    covariance.
    """
    layers = a_max.shape[1]
    of_mean = a_max.mean(axis=1).var(axis=1, ddof=1)
    common = (of_mean - within / layers).sum() * layers / (layers - 1)
    return float(np.clip(common / max(within.sum(), 1e-300), 0.0, 1.0))
