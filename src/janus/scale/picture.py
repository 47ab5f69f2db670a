"""The search space as a picture: which pairs of pools are feasible, how fast they are, and which one was taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from janus.errors import JanusError
from janus.scale.solve import CONSTRAINTS

if TYPE_CHECKING:
    from janus.scale.result import ScalePlan

_GREYS = ("#f2f2f2", "#d9c7b8", "#c9b2d6", "#b8c7d9", "#c4c4c4")  # one per constraint, in the order of CONSTRAINTS
_FORMATS = (".png", ".svg", ".pdf")


def draw(plan: ScalePlan, path: str | Path) -> None:
    """Write the picture; the file's ending names the format.

    Raises:
        JanusError: ``scale.plot`` for another ending or without matplotlib.
    """
    if Path(path).suffix not in _FORMATS:
        raise JanusError("scale.plot", f"a picture ends in one of {', '.join(_FORMATS)}; got {str(path)!r}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError as error:
        raise JanusError("scale.plot", "drawing needs matplotlib: pip install 'janus-moe[plot]'") from error
    tpot, reasons = grids(plan)
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    extent = (0.5, tpot.shape[1] + 0.5, 0.5, tpot.shape[0] + 0.5)
    axes.imshow(reasons, origin="lower", extent=extent, cmap=ListedColormap(_GREYS), vmin=0, vmax=len(_GREYS) - 1)
    if not np.isnan(tpot).all():
        image = axes.imshow(tpot, origin="lower", extent=extent, cmap="viridis_r")
        figure.colorbar(image, label="TPOT of feasible pairs, ms", shrink=0.8)
    for number, name in enumerate(CONSTRAINTS):
        if plan.rejections.get(name):
            axes.plot([], [], "s", color=_GREYS[number], markeredgecolor="grey", label=f"rejected: {name}")
    if plan.pick:
        label = f"pick {plan.pick.name}: {plan.gpus} GPUs, {plan.tpot_ms:.1f} ms"
        axes.plot(
            plan.n_experts, plan.n_attention, "*", color="red", markersize=16, markeredgecolor="white", label=label
        )
    axes.set(xlabel="expert instances $n_e$", ylabel="attention instances $n_a$")
    axes.set_title(_wrapped(plan.verdict), fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def grids(plan: ScalePlan) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n_a, n_e]: TPOT in ms of feasible pairs (else nan), and the constraint's number of the others (else nan)."""
    shape = (plan.problem.max_attention, plan.problem.max_experts)
    tpot, reasons = np.full(shape, np.nan), np.full(shape, np.nan)
    for c in plan.candidates:
        if c.rejected:
            reasons[c.n_a - 1, c.n_e - 1] = CONSTRAINTS.index(c.rejected)
        else:
            tpot[c.n_a - 1, c.n_e - 1] = c.tpot_ms
    return tpot, reasons


def _wrapped(text: str) -> str:
    return text.replace("; ", ";\n", 1)
