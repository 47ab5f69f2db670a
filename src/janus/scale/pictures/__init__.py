"""Plans as pictures: the search space, where the time of a step goes, how many experts a batch activates, a day.

matplotlib is imported by the functions that draw, never by importing this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import JanusError, known
from janus.scale.pictures.activation import activation
from janus.scale.pictures.breakdown import breakdown
from janus.scale.pictures.canvas import check_format, write
from janus.scale.pictures.days import Day, days
from janus.scale.pictures.space import space

if TYPE_CHECKING:
    from janus.scale.plans.result import ScalePlan

PICTURES: dict[str, Callable[[ScalePlan], Any]] = {"space": space, "breakdown": breakdown, "activation": activation}


def draw(plan: ScalePlan, path: str | Path, what: str = "space") -> None:
    """Write one picture of a plan; the file's ending names the format.

    Args:
        plan: from `janus.scale.plan`.
        path: ends in .png, .svg or .pdf.
        what: ``"space"`` (every pair that was searched), ``"breakdown"`` (parts of a step) or ``"activation"`` (a_max
            over batch sizes).

    Raises:
        JanusError: ``scale.plot`` for another ending, another picture, no matplotlib or a path that cannot be written.
    """
    known(what, PICTURES, "a picture of a plan", "scale.plot")
    check_format(path)
    write(PICTURES[what](plan), path)


def draw_days(timelines: Sequence[Day], path: str | Path) -> None:
    """Write GPUs, demand and TPOT over time, one line per policy.

    Args:
        timelines: of one service, from `janus.scale.simulate`.
        path: ends in .png, .svg or .pdf.

    Raises:
        JanusError: ``scale.plot``.
    """
    check_format(path)
    if not timelines:
        raise JanusError("scale.plot", "a picture needs at least one timeline, got none")
    write(days(timelines), path)
