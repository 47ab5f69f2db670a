"""The two answers of a plan side by side, in the terms of whoever pays: GPUs, dollars, times, tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from janus.scale.timing.latency import Breakdown

if TYPE_CHECKING:
    from janus.scale.plans.result import ScalePlan
    from janus.scale.search.colocated import Colocated
    from janus.scale.search.solve import Candidate


@dataclass(frozen=True)
class Offer:
    """One deployment that meets the objective.

    Args:
        name: ``"2A7E"``, or ``"1 x EP10"`` for copies of a colocated deployment.
        gpus: of all pools and copies.
        kinds: names of the GPUs used, each once.
        usd_per_hour: price of all of them, or None when a GPU has no price.
        slots: expert slots per GPU that holds experts.
        batch: requests in flight.
        tpot_ms: mean time per output token.
        tail_ms: time per output token at the SLO's percentile.
        throughput: output tokens per second.
        breakdown: of one step.
    """

    name: str
    gpus: int
    kinds: tuple[str, ...]
    usd_per_hour: float | None
    slots: int
    batch: int
    tpot_ms: float
    tail_ms: float
    throughput: float
    breakdown: Breakdown

    @property
    def tokens_per_gpu_s(self) -> float:
        """Output tokens per second and GPU."""
        return self.throughput / self.gpus

    @property
    def usd_per_million(self) -> float | None:
        """Dollars per million output tokens at this load, or None without prices."""
        return None if self.usd_per_hour is None else self.usd_per_hour / (self.throughput * 3600) * 1e6


def offers(plan: ScalePlan) -> tuple[Offer | None, Offer | None]:
    """(split pools, colocated), each None when it is infeasible."""
    return _split(plan, plan.pick), _alone(plan.colocated)


def _split(plan: ScalePlan, pick: Candidate | None) -> Offer | None:
    if pick is None or pick.breakdown is None:
        return None
    return Offer(
        pick.name, pick.gpus, tuple(dict.fromkeys(pick.kinds)), pick.usd_per_hour, plan.problem.slots, pick.batch,
        pick.tpot_ms, pick.tail_ms, pick.throughput, pick.breakdown,
    )  # fmt: skip


def _alone(found: Colocated | None) -> Offer | None:
    if found is None:
        return None
    return Offer(
        f"{found.copies} x EP{found.width}", found.gpus, (found.kind,), found.usd_per_hour, found.slots,
        found.batch * found.copies, found.tpot_ms, found.tail_ms, found.throughput, found.breakdown,
    )  # fmt: skip
