"""Timelines as a picture: demand, GPUs, TPOT and promises kept, over the hours."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from janus.errors import JanusError
from janus.scale.timeline import Timeline

_FORMATS = (".png", ".svg", ".pdf")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f", "#e69f00")


def draw(timelines: Sequence[Timeline], path: str | Path) -> None:
    """Write one picture of several policies on the same requests; the file's ending names the format.

    Raises:
        JanusError: ``scale.plot`` for another ending, no timeline, or without matplotlib.
    """
    if Path(path).suffix not in _FORMATS:
        raise JanusError("scale.plot", f"a picture ends in one of {', '.join(_FORMATS)}; got {str(path)!r}")
    if not timelines:
        raise JanusError("scale.plot", "a picture needs at least one timeline, got none")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise JanusError("scale.plot", "drawing needs matplotlib: pip install 'janus-moe[plot]'") from error
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    demand, gpus, tpot, kept = figure.subplots(4, 1, sharex=True)
    first = timelines[0]
    demand.step(first.times_s / 3600, first.demand, where="post", color="black")
    for number, line in enumerate(timelines):
        hours, colour = line.times_s / 3600, _COLOURS[number % len(_COLOURS)]
        gpus.step(hours, line.gpus, where="post", color=colour, label=f"{line.policy}: {line.gpu_hours:.0f} GPU-hours")
        tpot.step(hours, line.tpot_ms, where="post", color=colour)
        kept.step(hours, 100 * line.attained, where="post", color=colour)
    if len(timelines) == 1 and not first.colocated:
        gpus.step(first.times_s / 3600, first.n_experts, where="post", color="grey", label="expert instances", lw=0.8)
    tpot.axhline(first.slo.tpot_ms, color="red", lw=0.8, label=f"SLO {first.slo.tpot_ms:g} ms")
    tpot.set_ylim(0, 2 * first.slo.tpot_ms)
    demand.set(ylabel="tokens/s asked", ylim=(0, None))
    gpus.set(ylabel="GPUs paid", ylim=(0, None))
    tpot.set(ylabel="mean TPOT, ms")
    kept.set(ylabel="requests within\nSLO, %", xlabel="hours", ylim=(0, 103))
    for axes in (gpus, tpot):
        axes.legend(fontsize=7, frameon=False, loc="upper right")
    words = (first.basis["model"], first.basis["requests"], first.basis["routing"], first.basis["scope"])
    figure.suptitle("\n".join(textwrap.fill(text, 130) for text in words), fontsize=7)
    figure.savefig(path, dpi=110)
