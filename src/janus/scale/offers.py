"""The two answers of a plan side by side, in the terms of whoever pays: GPUs, dollars, times, tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from janus.scale.latency import Breakdown

if TYPE_CHECKING:
    from janus.scale.colocated import Colocated
    from janus.scale.result import ScalePlan
    from janus.scale.solve import Candidate


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
        tail_ms: time per output token at the SLO's percentile, or None when it is not modelled.
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
    tail_ms: float | None
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
    return _split(plan, plan.pick), _alone(plan, plan.colocated)


def _split(plan: ScalePlan, pick: Candidate | None) -> Offer | None:
    if pick is None or pick.breakdown is None:
        return None
    latency = plan.problem.latency
    pools = (latency.cluster.gpu, getattr(latency, "expert_cluster", latency.cluster).gpu)
    prices = [_price(gpu) for gpu in pools]
    usd = None if None in prices else pick.n_a * prices[0] + pick.n_e * prices[1]
    kinds = tuple(dict.fromkeys(gpu.name for gpu in pools))
    return Offer(
        pick.name, pick.gpus, kinds, usd, plan.problem.slots, pick.batch, pick.tpot_ms, _tail(pick), pick.throughput,
        pick.breakdown,
    )  # fmt: skip


def _alone(plan: ScalePlan, found: Colocated | None) -> Offer | None:
    if found is None:
        return None
    gpu = plan.problem.latency.cluster.gpu
    price = _price(gpu)
    usd = getattr(found, "usd_per_hour", None if price is None else price * found.gpus)
    name = f"{found.copies} x EP{found.width}"
    return Offer(
        name, found.gpus, (getattr(found, "kind", "") or gpu.name,), usd, found.slots, found.batch * found.copies,
        found.tpot_ms, _tail(found), found.throughput, found.breakdown,
    )  # fmt: skip


def _price(gpu: Any) -> Any:
    return getattr(gpu, "usd_per_hour", None)


def _tail(found: Any) -> float | None:
    value = getattr(found, "tail_ms", None)
    return None if value is None or value != value else value
