"""How many distinct experts the busiest instance must read: a Monte Carlo table over pool sizes and batches."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.scale.activation.batches import FloatArray, Routing, inclusion
from janus.scale.activation.montecarlo import MonteCarlo, Row
from janus.scale.activation.store import Store
from janus.scale.hardware import positive, whole
from janus.scale.timing.latency import Activated
from janus.sched.backends import check_without_cost
from janus.types import RoutingTrace

Pair = tuple[int, int]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class ActivationTable:
    """Expected a_max of one layer for pools of G = n_e instances with C slots and batches of B tokens.

    Args:
        batch_sizes: B, ascending.
        rows: measured values per (n_e, C).
        source: what the batches were drawn from; says "synthetic routing" when they were.
        method: of the balancer.
    """

    batch_sizes: tuple[int, ...]
    rows: dict[Pair, Row]
    source: str
    method: str
    carlo: MonteCarlo

    @classmethod
    def build(
        cls,
        trace: RoutingTrace | npt.ArrayLike | Routing,
        grid: Sequence[Pair],
        batch_sizes: Sequence[int],
        *,
        method: str = "exact",
        top_k: int | None = None,
        placing: str = "janus",
        layers: int = 4,
        samples: int = 16,
        seed: int = 0,
        cache: bool | str | Path = True,
        progress: Progress | None = None,
    ) -> ActivationTable:
        """Measure every (n_e, C) of `grid` at every batch size, under the balancer and the placement Janus would use.

        Args:
            trace: routing trace, or counts [L, E] with `top_k`.
            grid: pairs (expert instances, slots per instance).
            batch_sizes: tokens per batch.
            method: of `janus.sched.balance`; not ``"cost"``, whose times the table does not know.
            placing: of `janus.sched.place`.
            layers: how many of the trace's layers to measure, evenly spaced.
            samples: batches per layer and point, >= 2 (a standard error needs two).
            seed: of the draws; the same seed gives the same table.
            cache: keep placements and what was measured on disk, and look there first: True for the user's cache folder
                (``JANUS_CACHE`` names another, or "off"), False, or a folder. Damaged files count as absent.
            progress: called with (points done, points in all, what) after every pair.

        Raises:
            JanusError: ``activation.grid``, ``activation.range``, ``routing.*``, ``sched.*``, ``scale.cache``.
        """
        for name, value, least in (("layers", layers, 1), ("samples", samples, 2), ("seed", seed, 0)):
            whole(value, name, "activation.range", least)
        check_without_cost(method, "method", "the table counts activated experts, which 'exact' keeps smallest")
        routing = trace if isinstance(trace, Routing) else Routing.of(trace, top_k)
        sizes = _checked_sizes(batch_sizes)
        how = {"method": method, "placing": placing, "layers": layers, "samples": samples, "seed": seed}
        carlo = MonteCarlo(routing, sizes, **how, store=Store.of(cache))
        return cls(sizes, {}, routing.source, method, carlo).extended(grid, progress)

    def extended(self, grid: Sequence[Pair], progress: Progress | None = None) -> ActivationTable:
        """This table with the pairs of `grid` that it lacks, measured on the same batches."""
        rows = dict(self.rows)
        missing = [pair for pair in dict.fromkeys(grid) if pair not in rows]
        for done, (n_e, slots) in enumerate(missing, start=1):
            _check_pair(n_e, slots, self.carlo.routing.counts.shape[1])
            rows[n_e, slots] = self.carlo.row(n_e, slots)
            if progress:
                progress(done, len(missing), f"activated experts of {n_e} x {slots} slots")
        return ActivationTable(self.batch_sizes, rows, self.source, self.method, self.carlo)

    def save(self, path: str | Path) -> None:
        """Write rows, placements and routing to one npz (no pickle), whole or not at all.

        Raises:
            JanusError: ``activation.file``.
        """
        from janus.scale.activation.table_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path, *, cache: bool | str | Path = True) -> ActivationTable:
        """Read what `save` wrote; the table answers alike and can be `extended`.

        Args:
            path: of the npz.
            cache: as in `build`, for what is measured from now on.

        Raises:
            JanusError: ``activation.file`` for whatever is wrong with the file.
        """
        from janus.scale.activation.table_file import load

        return cls(**load(path, cache))

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", lru_cache(maxsize=None)(self.at))

    def at(self, n_e: int, B: float, slots: int | None = None) -> Activated:
        """Expected (a_max, routed tokens on the fullest instance) of one layer, averaged over layers.

        Between measured batch sizes linear in log B; between measured pool sizes of the same C linear in 1/n_e (a_max
        is close to activated experts / n_e). Below the smallest B its value; above the largest a_max = C and tokens in
        proportion, both on the safe side.

        Args:
            n_e: expert instances.
            B: tokens in the batch.
            slots: C; may be left out when the table has one C.

        Raises:
            JanusError: ``activation.range`` for an n_e or C outside the table, or no batch.
        """
        low, high, share = self._pool_place(n_e, B, slots)
        return _mix(self._along_batch(low, B), self._along_batch(high, B), share)

    def _pool_place(self, n_e: int, B: float, slots: int | None) -> tuple[Pair, Pair, float]:
        """The measured pairs below and above, and how far between them: linear in 1 / n_e; checks all three."""
        whole(n_e, "n_e", "activation.range")
        positive(B, "B (tokens)", "activation.range")
        slots = self._only_slots() if slots is None else slots
        if (n_e, slots) in self.rows:
            return (n_e, slots), (n_e, slots), 0.0
        sizes = sorted(g for g, c in self.rows if c == slots)
        i = bisect.bisect(sizes, n_e)
        if not 0 < i < len(sizes):
            have = f"{sizes[0]}..{sizes[-1]}" if sizes else "none"
            raise JanusError("activation.range", f"n_e={n_e} with C={slots} is outside the table (n_e: {have})")
        low, high = sizes[i - 1], sizes[i]
        return (low, slots), (high, slots), (1 / low - 1 / n_e) / (1 / low - 1 / high)

    def _batch_place(self, B: float) -> tuple[int, float]:
        """Number of the measured batch size at or below B, and how far to the next: linear in log B, 0 outside."""
        sizes = self.batch_sizes
        i = bisect.bisect(sizes, B) - 1
        if not 0 <= i < len(sizes) - 1:
            return max(i, 0), 0.0
        return i, math.log(B / sizes[i]) / math.log(sizes[i + 1] / sizes[i])

    def stderr(self, n_e: int, B: int, slots: int | None = None) -> float:
        """Standard error of a measured a_max (draws and layers), experts."""
        return self._measured(n_e, B, slots, "stderr")

    def step_spread(self, n_e: int, B: float, slots: int | None = None, *, layers: int | None = None) -> float:
        """Standard deviation of one step's a_max averaged over the model's layers, experts: what makes steps differ.

        With s the deviation of one layer's a_max from batch to batch and r its correlation between two layers of a
        step, s * sqrt(r + (1 - r) / L). r is measured where a trace gives all layers the same tokens, and 0 where layers
        are drawn on their own. Between points s is interpolated as in `at`; beyond the largest B it keeps its last value.

        Args:
            n_e: expert instances.
            B: tokens in the batch.
            slots: C; may be left out when the table has one C.
            layers: L of the model; default the layers of the source.

        Raises:
            JanusError: ``activation.range``.

        Example:
            >>> table = ActivationTable.build([[4, 3, 2, 1]] * 2, [(2, 2)], [1, 2], top_k=2, cache=False)
            >>> one, four = (table.step_spread(2, 2, layers=L) for L in (1, 4))
            >>> bool(abs(four - one / 2) < 1e-12)  # layers drawn on their own
            True
        """
        L = len(self.carlo.routing.counts) if layers is None else whole(layers, "layers", "activation.range")

        def of(pair: Pair) -> float:
            row, (i, share) = self.rows[pair], self._batch_place(B)
            s = row.deviation[i] + share * (row.deviation[min(i + 1, len(self.batch_sizes) - 1)] - row.deviation[i])
            return s * math.sqrt(row.correlation + (1 - row.correlation) / L)

        low, high, share = self._pool_place(n_e, B, slots)
        return of(low) + share * (of(high) - of(low))

    def worst_layer(self, n_e: int, B: int, slots: int | None = None) -> float:
        """Mean a_max of the layer with the largest one, experts."""
        return self._measured(n_e, B, slots, "worst")

    def bound(self, n_e: int, B: float, slots: int | None = None, *, shared: bool = False) -> float:
        """The analytic bound of `analytic_bound`, averaged over the measured layers."""
        slots = self._only_slots() if slots is None else slots
        positive(B, "B (tokens)", "activation.range")
        placement = self.carlo.placement(n_e, slots)
        k = self.carlo.routing.top_k
        values = [
            analytic_bound(inclusion(self.carlo.routing.counts[layer], k), placement.slots[i], B, shared=shared)
            for i, layer in enumerate(self.carlo.layers)
        ]
        return float(np.mean(values))

    def _only_slots(self) -> int:
        slots = {c for _, c in self.rows}
        if len(slots) != 1:
            raise JanusError("activation.range", f"the table holds C in {sorted(slots)}; say which with slots=")
        return slots.pop()

    def _measured(self, n_e: int, B: int, slots: int | None, what: str) -> float:
        pair = (n_e, self._only_slots() if slots is None else slots)
        if pair not in self.rows or B not in self.batch_sizes:
            have = f"(n_e, C) in {sorted(self.rows)}, B in {self.batch_sizes}"
            raise JanusError("activation.range", f"{pair} at B={B} was not measured; measured: {have}")
        return float(getattr(self.rows[pair], what)[self.batch_sizes.index(B)])

    def _along_batch(self, pair: Pair, B: float) -> Activated:
        row, sizes = self.rows[pair], self.batch_sizes
        if sizes[-1] < B:
            return Activated(float(pair[1]), row.tokens[-1] * B / sizes[-1])
        i, share = self._batch_place(B)
        here = Activated(row.mean[i], row.tokens[i])
        return _mix(here, Activated(row.mean[i + 1], row.tokens[i + 1]), share) if share else here


def analytic_bound(p_E: FloatArray, slots_GC: npt.NDArray[np.integer], B: float, *, shared: bool = False) -> float:
    """The paper's bound: a_bar = max_g sum over e on g of 1 - (1 - p_e)^B; min(C, a_bar + sqrt(2 a_bar ln n_e)) + 1.

    As printed every replica counts in full, so the bound tends to C + 1 however many replicas there are. With
    ``shared=True`` each replica carries 1/R(e) of its expert, which is no bound but closer to what happens.

    Args:
        p_E: float64 [E], probability that a token chooses each expert.
        slots_GC: integers [G, C], logical expert per slot, -1 empty.
        B: tokens in the batch.

    Example:
        >>> analytic_bound(np.array([1.0, 1.0]), np.array([[0], [1]]), 1)  # both active: min(1, 1 + ...) + 1
        2.0
    """
    active = 1 - (1 - p_E) ** B
    filled = slots_GC >= 0
    if shared:
        active = active / np.bincount(slots_GC[filled], minlength=len(p_E))
    a_bar = float(np.where(filled, active[slots_GC], 0.0).sum(axis=1).max())
    instances, slots = slots_GC.shape
    return 1.0 + min(slots, a_bar + math.sqrt(2 * a_bar * math.log(instances)))


def _mix(a: Activated, b: Activated, share: float) -> Activated:
    return Activated(a.a_max + share * (b.a_max - a.a_max), a.tokens + share * (b.tokens - a.tokens))


def _checked_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(batch_sizes) if isinstance(batch_sizes, Iterable) else ()
    if not sizes:
        raise JanusError(
            "activation.grid", f"batch_sizes must be whole numbers >= 1, at least one; got {batch_sizes!r}"
        )
    return tuple(sorted({whole(b, "each of batch_sizes", "activation.grid") for b in sizes}))


def _check_pair(n_e: int, slots: int, experts: int) -> None:
    whole(n_e, "n_e of the grid", "activation.grid")
    whole(slots, "C of the grid", "activation.grid")
    if n_e * slots < experts:
        rule = f"n_e * C must hold all {experts} experts, both >= 1"
        raise JanusError("activation.grid", f"{rule}; got n_e={n_e}, C={slots}; raise n_e or C")
