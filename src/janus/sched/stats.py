"""What a `Balancer` saw, in sums: the source for planners and dashboards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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

    Example:
        >>> stats = BalancerStats(np.array([[2, 12, 9, 9, 5, 4, 8, 0]]), num_instances=3)
        >>> stats.a_max.tolist(), stats.tokens_max.tolist(), stats.tokens_mean.tolist()
        ([2.5], [4.0], [2.0])
    """

    sums: npt.NDArray[np.int64]
    num_instances: int

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """int64 [L]: one sum of `SUMS`."""
        return self.sums[:, SUMS.index(name)]

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
        """What happened after `earlier` was read."""
        return BalancerStats(self.sums - earlier.sums, self.num_instances)

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
