"""What a scaling policy sees, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError, known
from janus.types import Placement
from janus.types.checks import instance, integer, number

ACTIONS = ("keep", "scale", "place", "infeasible")


@dataclass(frozen=True, eq=False)
class Observation:
    """What was measured over one decision window.

    Args:
        time_s: end of the window, seconds since any fixed moment.
        demand: output tokens per second over all requests, >= 0.
        context: mean KV length of the requests in flight, tokens, > 0.
        counts: numbers [L, E] or [E], how often each expert was chosen in the window, or None when it was not counted;
            kept as a read-only float64 copy. Without tokens in the window give None.
        context_cv: standard deviation of the KV lengths over their mean, >= 0, or None when unknown (then
            the policy's own assumption holds).

    Raises:
        JanusError: ``scale.observation``.

    Example:
        >>> Observation(time_s=900, demand=1500.0, context=800).counts is None
        True
    """

    time_s: float
    demand: float
    context: float
    counts: npt.ArrayLike | None = None
    context_cv: float | None = None

    def __post_init__(self) -> None:
        code = "scale.observation"
        number(self.time_s, "time_s must be a finite number, in seconds", code)
        _from_zero(self.demand, "demand (output tokens/s)", code)
        if _from_zero(self.context, "context (mean KV length, tokens)", code) == 0:
            raise JanusError(code, "context (mean KV length, tokens) must be > 0, got 0")
        if self.context_cv is not None:
            _from_zero(self.context_cv, "context_cv (standard deviation / mean)", code)
        if self.counts is not None:
            object.__setattr__(self, "counts", _checked_counts(self.counts))


@dataclass(frozen=True)
class Decision:
    """Which pools are to serve from now on, and what it takes to get there.

    Args:
        time_s: of the observation that it answers, seconds.
        action: ``"keep"``, ``"scale"`` (other pool sizes), ``"place"`` (same pools, other replicas) or ``"infeasible"``
            (no pools meet the objective; the sizes are the best there is).
        n_attention: attention instances, >= 1.
        n_experts: expert instances, >= 1.
        placement: replicas on the expert instances; None where the policy leaves them to others.
        reason: for people: the numbers that decided.
        moved_bytes: weights to load, expert and attention side, bytes.
        migration_s: seconds until the new pools serve: start-up of instances that are added, then their weights.

    Raises:
        JanusError: ``scale.decision``.

    Example:
        >>> Decision(time_s=900, action="keep", n_attention=1, n_experts=6, reason="the pools hold").gpus
        7
    """

    time_s: float
    action: str
    n_attention: int
    n_experts: int
    placement: Placement | None = None
    reason: str = ""
    moved_bytes: int = 0
    migration_s: float = 0.0

    def __post_init__(self) -> None:
        code = "scale.decision"
        number(self.time_s, "time_s must be a finite number, in seconds", code)
        known(self.action, ACTIONS, "action", code)
        integer(self.n_attention, "n_attention", code, low=1)
        integer(self.n_experts, "n_experts", code, low=1)
        integer(self.moved_bytes, "moved_bytes", code)
        _from_zero(self.migration_s, "migration_s", code)
        if self.placement is not None:
            instance(self.placement, Placement, "placement must be a janus.Placement", code, "or leave it out")
            if self.placement.num_instances != self.n_experts:
                rule = "placement must be for n_experts instances"
                raise JanusError(code, f"{rule}; got {self.placement!r} for n_experts={self.n_experts}")

    @property
    def gpus(self) -> int:
        """GPUs of both pools."""
        return self.n_attention + self.n_experts


def _from_zero(value: Any, what: str, code: str) -> float:
    rule = f"{what} must be a finite number >= 0"
    if number(value, rule, code) < 0:
        raise JanusError(code, f"{rule}, got {value!r}")
    return float(value)


def _checked_counts(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    rule = "counts must be finite numbers >= 0, [L, E] or [E], at least one of them above 0"
    try:
        raw = np.asarray(counts)
    except Exception as error:  # ragged lists, tensors of another device
        raise JanusError("scale.observation", f"{rule}; got no full array ({error})") from None
    good = raw.ndim in (1, 2) and raw.dtype.kind in "iuf" and raw.size > 0
    if not good or not np.isfinite(raw).all() or (raw < 0).any() or not raw.any():
        raise JanusError("scale.observation", f"{rule}; got {raw.dtype} {raw.shape}")
    out = np.atleast_2d(raw).astype(np.float64)  # a copy: the caller's array may change
    out.flags.writeable = False
    return out
