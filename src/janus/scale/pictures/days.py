"""A service over time: the GPUs each policy holds, what was asked, and how fast it answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from janus.scale.pictures.canvas import LIMIT, LINES, MUTED, figure
from janus.types import Slo

Array = npt.NDArray[Any]


class Day(Protocol):
    """What a picture needs of a simulated service; `janus.scale.Timeline` is one. Arrays hold one value per window."""

    @property
    def policy(self) -> str:
        """The name of who decided."""
        ...

    @property
    def times_s(self) -> Array:
        """Start of each window, seconds."""
        ...

    @property
    def window_s(self) -> float:
        """Length of a window, seconds."""
        ...

    @property
    def gpus(self) -> Array:
        """GPUs held."""
        ...

    @property
    def n_attention(self) -> Array:
        """Attention instances."""
        ...

    @property
    def n_experts(self) -> Array:
        """Expert instances."""
        ...

    @property
    def demand(self) -> Array:
        """Output tokens per second asked."""
        ...

    @property
    def tpot_ms(self) -> Array:
        """Mean time per output token, ms; nan in a window without tokens."""
        ...

    @property
    def attained(self) -> Array:
        """Share of the requests that arrived in the window whose TPOT kept the SLO; nan without any."""
        ...

    @property
    def colocated(self) -> bool:
        """Attention and experts on the same GPUs."""
        ...

    @property
    def slo(self) -> Slo:
        """The objective."""
        ...


def days(timelines: Sequence[Day]) -> Any:
    """Four panels over hours: GPUs per policy, demand, TPOT with the SLO, and the share of requests that kept it.

    One timeline alone shows its two pools, stacked.

    Returns:
        A matplotlib figure.
    """
    with figure(8.6, 7.2) as made:
        held, asked, speed, kept = panels = made.subplots(4, sharex=True, height_ratios=(3, 1.6, 2, 1.4))
        alone = len(timelines) == 1 and not timelines[0].colocated
        if alone:
            _pools(held, timelines[0])
        for number, day in enumerate(timelines):
            colour = LINES[number % len(LINES)]
            if not alone:
                _steps(held, day, day.gpus, color=colour, label=day.policy)
            _steps(speed, day, day.tpot_ms, color=colour)
            _steps(kept, day, 100 * day.attained, color=colour)
        first = timelines[0]  # all policies face the same requests
        _steps(asked, first, first.demand, color=MUTED)
        speed.axhline(first.slo.tpot_ms, color=LIMIT, linestyle="--", label=f"SLO {first.slo.tpot_ms:g} ms")
        kept.axhline(first.slo.percentile, color=LIMIT, linestyle="--")
        speed.set_ylim(0, 2 * first.slo.tpot_ms)  # what is far above the SLO need not be read off
        names = ("GPUs", "asked,\ntokens/s", "TPOT, ms", "within\nSLO, %")
        for axes, name in zip(panels, names, strict=True):
            axes.set_ylabel(name)
            axes.grid(True)
        for axes in (held, asked):
            axes.set_ylim(bottom=0)
        kept.set(ylim=(0, 104), xlabel="hours")
        made.legend(loc="outside lower center", ncols=5)
        made.align_ylabels()
    return made


def _pools(axes: Any, day: Day) -> None:
    hours = _edges(day)
    attention, total = (np.append(n, n[-1:]) for n in (day.n_attention, day.n_attention + day.n_experts))
    shade = {"step": "post", "alpha": 0.75, "linewidth": 0}
    axes.fill_between(hours, 0, attention, color=LINES[0], label="attention instances", **shade)
    axes.fill_between(hours, attention, total, color=LINES[2], label="expert instances", **shade)
    _steps(axes, day, day.gpus, color=MUTED, label="GPUs paid")


def _steps(axes: Any, day: Day, values: Array, **style: Any) -> None:
    values = np.asarray(values, dtype=float)
    axes.step(_edges(day), np.append(values, values[-1:]), where="post", linewidth=1.5, **style)


def _edges(day: Day) -> Array:
    """Hours: the start of every window, and the end of the last."""
    times = np.asarray(day.times_s, dtype=float)
    return np.append(times, times[-1:] + day.window_s) / 3600
