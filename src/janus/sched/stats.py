"""What a `Balancer` saw, in sums: the source for planners and dashboards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError, known
from janus.types.checks import instance, integer, shown

# One row of sums per layer, in this order; the compiled tallies and the Triton kernel write it by position.
SUMS = ("batches", "entries", "experts", "slots", "a_max", "lower_bound", "tokens_max", "bad_ids")

# what can be had per batch
MEANS = ("a_max", "lower_bound", "experts", "tokens_max", "tokens_mean")


@dataclass(frozen=True, eq=False)
class BalancerStats:
    """Sums over the batches of each layer; every mean is per batch, NaN for a layer without one.

    Attributes:
        sums: int64 [L, 8], the columns named by `SUMS`. Two readings can be subtracted: see `since`.
        num_instances: G.

    Raises:
        JanusError: ``sched.stats`` where sums, a column or two readings do not fit.

    Example:
        >>> stats = BalancerStats(np.array([[2, 12, 9, 9, 5, 4, 8, 0]]), num_instances=3)
        >>> stats.a_max.tolist(), stats.tokens_max.tolist(), stats.tokens_mean.tolist()
        ([2.5], [4.0], [2.0])
    """

    sums: npt.NDArray[np.int64]
    num_instances: int

    def __post_init__(self) -> None:
        sums = self.sums
        if not isinstance(sums, np.ndarray) or (sums.dtype, sums.shape[1:]) != (np.int64, (len(SUMS),)):
            raise JanusError("sched.stats", f"sums must be int64 [L, {len(SUMS)}], columns {SUMS}; got {shown(sums)}")
        integer(self.num_instances, "num_instances of the int64 sums", "sched.stats", low=1)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """int64 [L]: one sum of `SUMS`."""
        return self.sums[:, SUMS.index(known(name, SUMS, "a column of the sums", "sched.stats"))]

    @property
    def batches(self) -> npt.NDArray[np.int64]:
        """int64 [L]: batches balanced."""
        return self.column("batches")

    @property
    def bad_ids(self) -> npt.NDArray[np.int64]:
        """int64 [L]: ids out of range that an unchecked batch held; they were treated as -1."""
        return self.column("bad_ids")

    @property
    def a_max(self) -> npt.NDArray[np.float64]:
        """float64 [L]: mean a_max, activated slots of the busiest instance."""
        return self._mean("a_max")

    @property
    def lower_bound(self) -> npt.NDArray[np.float64]:
        """float64 [L]: mean lower bound of a_max."""
        return self._mean("lower_bound")

    @property
    def experts(self) -> npt.NDArray[np.float64]:
        """float64 [L]: mean number of activated experts."""
        return self._mean("experts")

    @property
    def tokens_max(self) -> npt.NDArray[np.float64]:
        """float64 [L]: mean of the routing entries that the instance with most of them served."""
        return self._mean("tokens_max")

    @property
    def tokens_mean(self) -> npt.NDArray[np.float64]:
        """float64 [L]: mean routing entries of an instance."""
        return self._mean("entries") / self.num_instances

    def since(self, earlier: BalancerStats) -> BalancerStats:
        """What happened after `earlier` was read from the same `Balancer`, with no `reset_stats` between."""
        instance(earlier, BalancerStats, "earlier must be a BalancerStats", "sched.stats", "read balancer.stats twice")
        shapes = [(*stats.sums.shape, stats.num_instances) for stats in (self, earlier)]
        if shapes[0] != shapes[1]:
            rule = "both readings must be of one Balancer"
            raise JanusError("sched.stats", f"{rule}, got L, columns, G = {shapes[0]} and {shapes[1]}")
        new = self.sums - earlier.sums
        if (new < 0).any():
            rule = "earlier must be the older reading, with no reset_stats after it"
            raise JanusError("sched.stats", f"{rule}, but its sums are larger; read it anew")
        return BalancerStats(new, self.num_instances)

    def overall(self) -> dict[str, float]:
        """Means over all batches of all layers, and the number of batches and bad ids: one line of a dashboard.

        Example:
            >>> BalancerStats(np.array([[2, 12, 9, 9, 5, 4, 8, 0]]), num_instances=3).overall()["tokens_mean"]
            2.0
        """
        whole = BalancerStats(self.sums.sum(axis=0, keepdims=True), self.num_instances)
        means = {name: float(getattr(whole, name)[0]) for name in MEANS}
        return {"batches": float(whole.batches[0]), **means, "bad_ids": float(whole.bad_ids[0])}

    def _mean(self, name: str) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return self.column(name) / self.batches
