"""Has routing drifted away from a placement? Its expected a_max on the routing that is seen, against a fresh one's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from janus.scale.activation.table import ActivationTable
from janus.scale.timing.latency import Activated, LatencyModel
from janus.types import Placement

Floats = npt.NDArray[np.float64]
WHOLE = 2.0**30  # popularity is kept as shares of a layer, and given to `place` as whole numbers of this sum
SIZES = (16, 64, 256)  # below them any map will do, above them every expert is active
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


def halves(counts_LE: npt.ArrayLike, seed: int) -> tuple[Floats, Floats]:
    """The choices counted, dealt at random to two halves: what is placed for one is judged on the other.

    So a placement that fits the noise of a short count does not look better than it is. Counts that are not whole
    numbers are no counts of single choices: they are taken twice as they are, and so is a layer too small to halve.

    Example:
        >>> a, b = halves([[6, 2]], seed=0)
        >>> (a + b).tolist(), bool((a > 0).any() and (b > 0).any())
        ([[6.0, 2.0]], True)
    """
    whole = np.asarray(counts_LE, dtype=np.float64)
    if not (whole == np.rint(whole)).all() or whole.max() >= 2.0**53:
        return whole, whole
    first = np.random.default_rng(seed).binomial(whole.astype(np.int64), 0.5).astype(np.float64)
    halved = (first.sum(axis=1) > 0) & (first.sum(axis=1) < whole.sum(axis=1))
    return np.where(halved[:, None], first, whole), np.where(halved[:, None], whole - first, whole)


@dataclass(frozen=True, eq=False)
class Instead:
    """A placement that could replace the one at hand, on the sampled layers.

    Args:
        previous: True when it starts from the placement at hand and changes only what pays.
        a_max: float64 [S], mean over the sampled layers and batches of each size, experts.
        moved: most slots that one instance has to load, all layers (from the sampled ones, in proportion).
    """

    previous: bool
    a_max: Floats
    moved: float


@dataclass(frozen=True, eq=False)
class Drift:
    """a_max of the placement at hand on the routing that is seen, and of those that could replace it; each [S].

    Args:
        now: with the placement at hand.
        known: with a placement made for the routing that the activation table knows, on that routing.
        candidates: placements made for the routing that is seen.
    """

    now: Floats
    known: Floats
    candidates: tuple[Instead, ...]

    @property
    def stretch(self) -> float:
        """What the table's a_max is to be multiplied by while the placement stays: the largest over batch sizes."""
        return float((self.now / self.known).max())

    def after(self, candidate: Instead) -> float:
        """The same once `candidate` has replaced it."""
        return float((candidate.a_max / self.known).max())

    @property
    def followed(self) -> float:
        """`after` the candidate that starts from the placement at hand."""
        return next(self.after(c) for c in self.candidates if c.previous)


class DriftMeter:
    """Measures placements on sampled layers and batches; the same seed, batches and layers for every placement.

    A batch is the set of experts that it activates, each on its own with the probability that B tokens choose it: what
    an exactly balanced a_max depends on. Results are means over the layers and the batches.

    Args:
        known_LE: float64 [L, E], shares of the routing that the activation table was measured on.
        top_k: K.
        slots: C.
        sizes: S batch sizes to judge at, tokens.
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
        sizes: tuple[int, ...] = SIZES,
        placing: str = "janus",
        layers: int = 8,
        samples: int = 64,
        seed: int = 0,
    ) -> None:
        self.known, self.top_k, self.slots, self.sizes = known_LE, top_k, slots, sizes
        self.placing, self.samples, self.seed = placing, samples, seed
        self.layers = sorted({int(i) for i in np.linspace(0, len(known_LE) - 1, layers).round()})
        self.reference = lru_cache(maxsize=None)(self._measured_reference)  # float64 [S] of a pool size

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

    def a_max(self, sampled: Placement, shares_LE: Floats) -> Floats:
        """float64 [S]: mean exact a_max of the maps of the sampled layers on batches of each size."""
        from janus.sched import Balancer
        from janus.sched.popularity import Popularity

        balancer = Balancer(sampled, max_tokens=sampled.num_experts)
        tops = np.empty((len(self.layers), self.samples, len(self.sizes)))
        for i, layer in enumerate(self.layers):
            popular = Popularity(np.rint(shares_LE[layer] * WHOLE), self.top_k)
            active_nE = popular.active_sets(self.sizes, self.samples, (self.seed, _HELD_OUT)).T
            for at, active in zip(np.ndindex(tops.shape[1:]), active_nE, strict=True):
                balancer(np.flatnonzero(active)[:, None], i)
                tops[i][at] = balancer.load.max()
        return tops.mean(axis=(0, 1))

    def stretch(self, placed_LE: Floats, judged_LE: Floats, n_e: int, old: Placement | None = None) -> float:
        """What the table's a_max of `n_e` instances is to be multiplied by, placed for one routing, judged on another.

        Args:
            placed_LE: float64 [L, E], shares to place for, from `old` on where there is one.
            judged_LE: float64 [L, E], shares to draw batches from.
            n_e: expert instances.
            old: placement of the whole model at hand, on any number of instances.
        """
        new = self.sample(placed_LE, n_e, None if old is None else self.maps(old))
        return float((self.a_max(new, judged_LE) / self.reference(n_e)).max())

    def compare(self, placement: Placement, placed_LE: Floats, judged_LE: Floats) -> Drift:
        """The placement at hand against those made for `placed_LE`, all judged on `judged_LE`."""
        now, n_e = self.maps(placement), placement.num_instances
        found = []
        for previous in (now, None):
            new = self.sample(placed_LE, n_e, previous)
            moved = float(new.moves(now).slots.sum(axis=0).max()) * len(judged_LE) / len(self.layers)
            found.append(Instead(previous is not None, self.a_max(new, judged_LE), moved))
        return Drift(self.a_max(now, judged_LE), self.reference(n_e), tuple(found))

    def nearest(self, B: int) -> int:
        """Position of the batch size closest to `B`, in proportion."""
        return int(np.argmin(np.abs(np.log(np.array(self.sizes) / max(B, 1)))))

    def _measured_reference(self, n_e: int) -> Floats:
        return self.a_max(self.sample(self.known, n_e), self.known)


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
