"""Simulated days in numbers and rows, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    def efficiency(self) -> float:
        """Share of a GPU's work that the policy's deployment gets done; an assumption."""
        ...

    @property
    def basis(self) -> Mapping[str, str]:
        """What the numbers rest on, by name."""
        ...

    @property
    def attainment(self) -> float:
        """Share of the requests whose TPOT met the SLO, 0 to 1."""
        ...


def best(timelines: Sequence[Scored]) -> Scored:
    """The one that costs least among those that meet the SLO for its share of requests; else the one that misses least."""
    good = [day for day in timelines if kept(day)]
    if not good:
        return max(timelines, key=lambda day: (day.attainment, -day.gpu_hours))
    return min(good, key=lambda day: (day.usd if day.usd is not None else day.gpu_hours, day.gpu_hours))


def kept(day: Scored) -> bool:
    """Whether the SLO's percentile of requests kept its TPOT."""
    return day.attainment * 100 >= day.slo.percentile


def rows(timelines: Sequence[Scored]) -> list[tuple[str, ...]]:
    """A head and one line per policy: GPU-hours, dollars where priced, against the best, attainment, fewest and most GPUs.

    An assumed efficiency other than 1 gets a column: the comparison rests on it.
    """
    priced = any(day.usd is not None for day in timelines)
    assumed = any(day.efficiency != 1 for day in timelines)
    least = best(timelines).gpu_hours
    head = ["policy", "GPU-hours", "against the best", "attainment", "GPUs, fewest", "most"]
    lines = [
        [
            day.policy,
            f"{day.gpu_hours:,.1f}",
            f"{day.gpu_hours / least - 1:+.1%}" if least else "-",
            f"{day.attainment:.2%}",
            f"{day.gpus.min():.0f}",
            f"{day.gpus.max():.0f}",
        ]
        for day in timelines
    ]
    for day, line in zip(timelines, lines, strict=True):
        if priced:
            line.insert(2, "-" if day.usd is None else f"{day.usd:,.2f}")
        if assumed:
            line.append(f"{day.efficiency:g}")
    head = [*head[:2], *(["dollars"] if priced else []), *head[2:], *(["assumed efficiency"] if assumed else [])]
    return [tuple(line) for line in (head, *lines)]
