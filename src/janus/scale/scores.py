"""Simulated days in numbers and rows, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from janus.scale.pictures.days import Day


class Scored(Day, Protocol):
    """A simulated service with what it cost and how well it did; `janus.scale.Timeline` is one."""

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs held."""
        ...

    @property
    def usd(self) -> float | None:
        """Price of them, or None without prices."""
        ...

    @property
    def attainment(self) -> float:
        """Share of the requests whose TPOT met the SLO, 0 to 1."""
        ...


def best(timelines: Sequence[Scored]) -> Scored:
    """The one that costs least among those that meet the SLO for its share of requests; else the one that misses least."""
    kept = [day for day in timelines if day.attainment * 100 >= day.slo.percentile]
    if not kept:
        return max(timelines, key=lambda day: (day.attainment, -day.gpu_hours))
    return min(kept, key=lambda day: (day.usd if day.usd is not None else day.gpu_hours, day.gpu_hours))


def rows(timelines: Sequence[Scored]) -> list[tuple[str, ...]]:
    """A head and one line per policy: GPU-hours, dollars where priced, attainment, fewest and most GPUs, against the best."""
    priced = any(day.usd is not None for day in timelines)
    least = best(timelines).gpu_hours
    head = ("policy", "GPU-hours", *(["dollars"] if priced else []), "against the best", "attainment", "GPUs, fewest", "most")
    return [head] + [
        (
            day.policy,
            f"{day.gpu_hours:,.1f}",
            *([f"{day.usd:,.2f}" if day.usd is not None else "-"] if priced else []),
            f"{day.gpu_hours / least - 1:+.1%}" if least else "-",
            f"{day.attainment:.2%}",
            f"{day.gpus.min():g}",
            f"{day.gpus.max():g}",
        )
        for day in timelines
    ]
