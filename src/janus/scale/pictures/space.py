"""The search space: which pairs of pools are feasible, how fast they are, and which one was taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from janus.scale.pictures.canvas import ALONE, INK, LIMIT, MUTED, ON_DATA, PAPER, SPLIT, figure
from janus.scale.search.solve import CONSTRAINTS

if TYPE_CHECKING:
    from janus.scale.plans.result import ScalePlan
    from janus.scale.search.solve import Candidate

Grid = npt.NDArray[np.float64]
_REASONS = (
    "#8d99ae",
    "#c08457",
    "#9a6fb0",
    "#5b8fb9",
    "#b56576",
    "#7d8f3f",
)  # one per constraint, in the order of CONSTRAINTS
_FAINT = 0.38  # rejected pairs stay in the background, on a light page and on a dark one


def space(plan: ScalePlan) -> Any:
    """n_e across, n_a up: TPOT of the feasible pairs, why the others fell out, lines of equal GPUs, the pick.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.colors import ListedColormap

    tpot, reasons = grids(plan)
    with figure(8.6, 6.2) as made:
        axes = made.add_subplot()
        extent = (0.5, tpot.shape[1] + 0.5, 0.5, tpot.shape[0] + 0.5)
        image = {"origin": "lower", "extent": extent, "interpolation": "none", "aspect": "auto"}
        grey = ListedColormap(_REASONS)
        axes.imshow(reasons, cmap=grey, vmin=-0.5, vmax=len(_REASONS) - 0.5, alpha=_FAINT, **image)
        if plan.feasible:
            made.colorbar(axes.imshow(tpot, cmap=_colours(), **image), label="TPOT of feasible pairs, ms", shrink=0.85)
            _edge(axes, ~np.isnan(tpot))
            _contours(axes, per_gpu(plan))
        for number, name in enumerate(CONSTRAINTS):
            if plan.rejections.get(name):
                label = f"rejected: {name}"
                axes.plot([], [], "s", color=_REASONS[number], alpha=_FAINT + 0.2, markersize=8, label=label)
        _marks(axes, plan, extent)
        axes.set(xlabel="expert instances", ylabel="attention instances", xlim=extent[:2], ylim=extent[2:])
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        if axes.get_legend_handles_labels()[0]:
            made.legend(loc="outside lower center", ncols=3)
    return made


def grids(plan: ScalePlan) -> tuple[Grid, Grid]:
    """float64 [n_a, n_e]: TPOT in ms of feasible pairs (else nan), and the constraint's number of the others (else nan).

    Where pools may choose their GPUs, these are the pairs with the GPUs of the pick. What was not evaluated is nan twice.
    """
    tpot, reasons = np.full(_shape(plan), np.nan), np.full(_shape(plan), np.nan)
    for c in same_kinds(plan):
        if c.rejected:
            reasons[c.n_a - 1, c.n_e - 1] = CONSTRAINTS.index(c.rejected)
        else:
            tpot[c.n_a - 1, c.n_e - 1] = c.tpot_ms
    return tpot, reasons


def per_gpu(plan: ScalePlan) -> Grid:
    """float64 [n_a, n_e]: output tokens per second and GPU of feasible pairs, else nan."""
    out = np.full(_shape(plan), np.nan)
    for c in same_kinds(plan):
        if not c.rejected:
            out[c.n_a - 1, c.n_e - 1] = c.throughput / c.gpus
    return out


def same_kinds(plan: ScalePlan) -> list[Candidate]:
    """The candidates with the types of GPU of the pick, or, without one, of the first pair of types."""
    kinds = plan.pick.kinds if plan.pick else plan.problem.kinds
    return [c for c in plan.candidates if c.kinds == kinds]


def _shape(plan: ScalePlan) -> tuple[int, int]:
    return plan.problem.max_attention, plan.problem.max_experts


def _colours() -> Any:
    """Fast is light; never so dark that a line on it could not be seen."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.93, 0.3, 256)))


def _edge(axes: Any, feasible: npt.NDArray[np.bool_]) -> None:
    """The border between feasible and rejected pairs, along the sides of the cells."""
    padded = np.pad(feasible, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])  # below row r
    axes.hlines(rows + 0.5, columns + 0.5, columns + 1.5, color=INK, linewidth=1.2)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])  # left of column c
    axes.vlines(columns + 0.5, rows + 0.5, rows + 1.5, color=INK, linewidth=1.2)


def _contours(axes: Any, rate: Grid) -> None:
    known = ~np.isnan(rate)
    squares = known[1:, 1:] & known[:-1, 1:] & known[1:, :-1] & known[:-1, :-1]
    if not squares.any() or np.nanmin(rate) == np.nanmax(rate):
        return  # a contour runs through squares of four known pairs
    across, up = np.arange(1, rate.shape[1] + 1), np.arange(1, rate.shape[0] + 1)
    lines = axes.contour(across, up, rate, levels=5, colors=ON_DATA, linewidths=0.7)
    for word in axes.clabel(lines, fmt="%.0f", fontsize=8):
        word.set(color=INK, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    axes.plot([], [], color=MUTED, linewidth=0.7, label="tokens/s per GPU")


def _marks(axes: Any, plan: ScalePlan, extent: tuple[float, float, float, float]) -> None:
    ends = np.array(extent[:2])
    if plan.colocated:
        gpus = plan.colocated.gpus
        axes.plot(ends, gpus - ends, "--", color=ALONE, linewidth=1.6, label=f"as many GPUs as colocated: {gpus}")
    if plan.pick:
        label = f"pick {plan.pick.name}: {plan.gpus} GPUs, {plan.tpot_ms:.1f} ms"
        axes.plot(
            ends, plan.gpus - ends, ":", color=SPLIT, linewidth=1.6, label=f"as many GPUs as the pick: {plan.gpus}"
        )
        star = {"color": LIMIT, "markersize": 17, "markeredgecolor": PAPER}
        axes.plot(plan.n_experts, plan.n_attention, "*", label=label, clip_on=False, zorder=5, **star)
