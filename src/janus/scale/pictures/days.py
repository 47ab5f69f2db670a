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
    def slo(self) -> Slo:
        """The objective."""
        ...


def days(timelines: Sequence[Day]) -> Any:
    """Three panels over hours: GPUs per policy, demand, TPOT with the SLO.

    One timeline alone shows its two pools, stacked.

    Returns:
        A matplotlib figure.
    """
    with figure(8.6, 6.4) as made:
        held, asked, speed = made.subplots(3, sharex=True, height_ratios=(3, 1.6, 2.2))
        if len(timelines) == 1:
            _pools(held, timelines[0])
        for day, colour in zip(timelines, _cycled(len(timelines)), strict=True):
            if len(timelines) > 1:
                _steps(held, day, day.gpus, color=colour, label=day.policy)
            _steps(speed, day, day.tpot_ms, color=colour, label=None)
        for day in timelines[:1]:  # all policies face the same requests
            _steps(asked, day, day.demand, color=MUTED, label=None)
            speed.axhline(day.slo.tpot_ms, color=LIMIT, linestyle="--", label=f"SLO {day.slo.tpot_ms:g} ms")
        held.set(ylabel="GPUs", ylim=(0, None))
        asked.set(ylabel="asked,\ntokens/s", ylim=(0, None))
        speed.set(ylabel="TPOT, ms", xlabel="hours", ylim=(0, None))
        for axes in (held, asked, speed):
            axes.grid(True)
        made.legend(loc="outside lower center", ncols=4)
        made.align_ylabels()
    return made


def _pools(axes: Any, day: Day) -> None:
    hours = _edges(day)
    attention, total = (np.append(n, n[-1:]) for n in (day.n_attention, day.n_attention + day.n_experts))
    shade = {"step": "post", "alpha": 0.75, "linewidth": 0}
    axes.fill_between(hours, 0, attention, color=LINES[0], label="attention instances", **shade)
    axes.fill_between(hours, attention, total, color=LINES[2], label="expert instances", **shade)
    if (day.gpus != day.n_attention + day.n_experts).any():
        _steps(axes, day, day.gpus, color=MUTED, label="GPUs held")


def _steps(axes: Any, day: Day, values: Array, **style: Any) -> None:
    values = np.asarray(values, dtype=float)
    axes.step(_edges(day), np.append(values, values[-1:]), where="post", linewidth=1.5, **style)


def _edges(day: Day) -> Array:
    """Hours: the start of every window, and the end of the last."""
    times = np.asarray(day.times_s, dtype=float)
    return np.append(times, times[-1:] + day.window_s) / 3600


def _cycled(count: int) -> list[str]:
    return [LINES[i % len(LINES)] for i in range(count)]
