"""Has routing drifted away from a placement? Its expected a_max on the routing that is seen, against a fresh one's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from janus.scale.activation import ActivationTable
from janus.scale.latency import Activated, LatencyModel
from janus.types import Placement

Floats = npt.NDArray[np.float64]
WHOLE = 2.0**30  # popularity is kept as shares of a layer, and given to `place` as whole numbers of this sum
_HELD_OUT = 2  # `place` draws with (seed, 0) and (seed, 1): batches to judge on are others


def shares(counts: npt.ArrayLike, layers: int) -> Floats:
    """float64 [layers, E]: popularity of every MoE layer, rows of sum 1; a source of other length lends its nearest row.

    Example:
        >>> shares([[3, 1], [0, 2]], 3).tolist()
        [[0.75, 0.25], [0.75, 0.25], [0.0, 1.0]]
    """
    rows = np.atleast_2d(np.asarray(counts, dtype=np.float64))
    nearest = np.linspace(0, len(rows) - 1, layers).round().astype(int)
    return (rows / rows.sum(axis=1, keepdims=True))[nearest]


@dataclass(frozen=True)
class Instead:
    """A placement that could replace the one at hand, on the sampled layers.

    Args:
        previous: True when it starts from the placement at hand and changes only what pays.
        a_max: mean over the sampled layers and batches, experts.
        moved: most slots that one instance has to load, all layers (from the sampled ones, in proportion).
    """

    previous: bool
    a_max: float
    moved: float


@dataclass(frozen=True)
class Drift:
    """a_max of the placement at hand on the routing that is seen, and of those that could replace it.

    Args:
        now: with the placement at hand.
        known: with a placement made for the routing that the activation table knows, on that routing.
        candidates: placements made for the routing that is seen.
    """

    now: float
    known: float
    candidates: tuple[Instead, ...]

    @property
    def stretch(self) -> float:
        """What the table's a_max is to be multiplied by while the placement stays."""
        return self.now / self.known

    @property
    def followed(self) -> float:
        """The same with the candidate that starts from the placement at hand."""
        return next(c.a_max for c in self.candidates if c.previous) / self.known

    @property
    def replaced(self) -> float:
        """The same once the best of the candidates has replaced it, at most `stretch`."""
        return min(self.now, *(c.a_max for c in self.candidates)) / self.known


class DriftMeter:
    """Measures placements on sampled layers and batches; the same seed, batches and layers for every placement.

    A batch is the set of experts that it activates, each on its own with the probability that B tokens choose it: what
    an exactly balanced a_max depends on. Results are means over the layers and the batches.

    Args:
        known_LE: float64 [L, E], shares of the routing that the activation table was measured on.
        top_k: K.
        slots: C.
        placing: method of `janus.sched.place`.
        layers: how many layers to look at, evenly spaced.
        samples: batches per layer.
        seed: of the batches.
    """

    def __init__(
        self,
        known_LE: Floats,
        top_k: int,
        slots: int,
        *,
        placing: str = "janus",
        layers: int = 8,
        samples: int = 64,
        seed: int = 0,
    ) -> None:
        self.known, self.top_k, self.slots = known_LE, top_k, slots
        self.placing, self.samples, self.seed = placing, samples, seed
        self.layers = sorted({int(i) for i in np.linspace(0, len(known_LE) - 1, layers).round()})
        self._reference = lru_cache(maxsize=None)(self._measured_reference)

    def place(self, shares_LE: Floats, n_e: int, previous: Placement | None) -> Placement:
        """Every layer placed for `shares_LE` ([E]: one map for all); from `previous` on, changing only what pays."""
        from janus.sched import place

        options = {"method": self.placing, "top_k": self.top_k, "previous": previous, "seed": self.seed}
        return place(np.rint(shares_LE * WHOLE), n_e, self.slots, **options)

    def sample(self, shares_LE: Floats, n_e: int, previous: Placement | None = None) -> Placement:
        """As `place`, the sampled layers only."""
        return self.place(shares_LE[self.layers], n_e, previous)

    def maps(self, placement: Placement) -> Placement:
        """The sampled layers of a placement of the whole model."""
        return Placement(placement.slots[[placement.layer(i) for i in self.layers]], placement.num_experts)

    def a_max(self, sampled: Placement, shares_LE: Floats, B: int) -> float:
        """Mean exact a_max of the maps of the sampled layers on batches of `B` tokens."""
        from janus.sched import Balancer
        from janus.sched.popularity import Popularity

        balancer, tops = Balancer(sampled, max_tokens=sampled.num_experts), []
        for i, layer in enumerate(self.layers):
            popular = Popularity(np.rint(shares_LE[layer] * WHOLE), self.top_k)
            for active in popular.active_sets((B,), self.samples, (self.seed, _HELD_OUT)).T:
                balancer(np.flatnonzero(active)[:, None], i)
                tops.append(int(balancer.load.max()))
        return float(np.mean(tops))

    def stretch(self, placed_LE: Floats, judged_LE: Floats, n_e: int, B: int, old: Placement | None = None) -> float:
        """What the table's a_max of `n_e` instances is to be multiplied by, placed for one routing, judged on another.

        Args:
            placed_LE: float64 [L, E], shares to place for, from `old` on where there is one.
            judged_LE: float64 [L, E], shares to draw batches from.
            n_e: expert instances.
            B: tokens of a batch.
            old: placement of the whole model at hand, on any number of instances.
        """
        new = self.sample(placed_LE, n_e, None if old is None else self.maps(old))
        return self.a_max(new, judged_LE, B) / self._reference(n_e, B)

    def compare(self, placement: Placement, placed_LE: Floats, judged_LE: Floats, B: int) -> Drift:
        """The placement at hand against those made for `placed_LE`, all judged on `judged_LE`."""
        now, n_e = self.maps(placement), placement.num_instances
        found = []
        for previous in (now, None):
            new = self.sample(placed_LE, n_e, previous)
            moved = float(new.moves(now).slots.sum(axis=0).max()) * len(judged_LE) / len(self.layers)
            found.append(Instead(previous is not None, self.a_max(new, judged_LE, B), moved))
        return Drift(self.a_max(now, judged_LE, B), self._reference(n_e, B), tuple(found))

    def _measured_reference(self, n_e: int, B: int) -> float:
        return self.a_max(self.sample(self.known, n_e), self.known, B)


class Fixed:
    """The activation of one batch, as `LatencyModel.tpot` asks for it."""

    def __init__(self, activated: Activated) -> None:
        self.activated = activated

    def at(self, n_e: int, B: float) -> Activated:
        """The same whatever is asked."""
        return self.activated


def tpot_regret(
    latency: LatencyModel, pools: tuple[int, int], B: int, context: float, now: Activated, other: Activated
) -> float:
    """How much longer a step takes that activates `now` than one that activates `other`, as a share of the latter.

    Args:
        latency: of the model.
        pools: (n_a, n_e).
        B: requests in flight.
        context: mean KV length, tokens.
        now: of the placement at hand.
        other: of the one that would replace it; where it is worse the result is below 0.
    """
    times = [latency.tpot(*pools, B, context, Fixed(activated)).tpot for activated in (now, other)]
    return times[0] / times[1] - 1


def stretched(table: ActivationTable, factor: Callable[[int], float]) -> ActivationTable:
    """The table for routing that has drifted: a_max (at most C) and tokens of each pool size times `factor(n_e)`."""
    rows = {}
    for (n_e, slots), row in table.rows.items():
        f = factor(n_e)
        mean = tuple(min(float(slots), a * f) for a in row.mean)
        rows[n_e, slots] = replace(row, mean=mean, tokens=tuple(t * f for t in row.tokens))
    return replace(table, rows=rows)
