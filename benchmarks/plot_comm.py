"""Draw what `bench_comm.py` measured: time over batch size by way, prediction against measurement, gain over direct.

    python benchmarks/plot_comm.py [--csv benchmarks/results/comm_testbed.csv] [--out docs/assets]

Titles are computed from the rows, so that they stay true of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from bench_comm import read
from figures import say
from machine import ROOT
from plot_sched import figure, plain_ticks
from plot_sched import write as write_png

WAYS = {  # label, colour, marker
    "flat": ("flat all-to-all", "#b0b0b0", "v"),
    "direct": ("direct", "#5f5f5f", "s"),
    "gather": ("gather", "#d55e00", "D"),
    "spread": ("spread", "#009e73", "^"),
    "relay": ("relay", "#cc79a7", "P"),
    "auto": ("auto", "#0072b2", "o"),
}
FIXED = ("direct", "gather", "spread", "relay")
TWO_PHASE = FIXED[1:]
GROUP = ("attention_nodes", "expert_nodes", "ranks_per_node", "hidden", "rate_mbit")
SHOWN = ((1, 1, 1), (2, 2, 2), (1, 4, 4), (4, 1, 4))  # attention nodes, expert nodes, ranks per node: of unlike kinds
NEAR = 1.25  # of a prediction
Rows = list[dict[str, Any]]
Key = tuple[int, ...]


def cells(rows: Rows) -> dict[tuple[Key, int], dict[str, dict[str, Any]]]:
    """The ways of each cell: (group, b) -> way -> row."""
    found: dict[tuple[Key, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((tuple(row[name] for name in GROUP), row["b"]), {})[row["way"]] = row
    return found


def panels(rows: Rows, most: int = 4) -> list[Key]:
    """The groups to draw: those of `SHOWN` that were measured, then others; each shape once, with most sizes."""
    sizes: dict[Key, int] = {}
    for group, _ in cells(rows):
        sizes[group] = sizes.get(group, 0) + 1

    def rank(group: Key) -> tuple:
        return group[:3] not in SHOWN, SHOWN.index(group[:3]) if group[:3] in SHOWN else 0, -sizes[group], group

    by_shape: dict[Key, Key] = {}
    for group in sorted(sizes, key=rank):
        by_shape.setdefault(group[:3], group)
    return list(by_shape.values())[:most]


def named(group: Key) -> str:
    """Words for a group."""
    m, n, size, hidden, rate = group
    ranks = "1 rank" if size == 1 else f"{size} ranks"
    return f"{m} attention, {n} expert nodes of {ranks}\nH {hidden}, {rate} Mbit/s"


def picture_of_crossover(rows: Rows) -> Any:
    """Milliseconds of a layer over the rows of each rank, every way, with the time that the bytes alone take."""
    shown, found = panels(rows), cells(rows)
    made, axes = figure(len(shown), (3.1 * len(shown) + 0.8, 4.6))
    for ax, group in zip(axes, shown, strict=True):
        sizes = sorted(b for g, b in found if g == group)
        at = [found[group, b] for b in sizes]
        for way, (label, colour, marker) in WAYS.items():
            line = [(b, ways[way]) for b, ways in zip(sizes, at, strict=True) if way in ways]
            x, y = [b for b, _ in line], [row["ms"] for _, row in line]
            wide = 2.4 if way == "auto" else 1.3
            ax.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=wide, label=label, zorder=2 + wide)
            if way == "auto":
                low, high = ([row[name] for _, row in line] for name in ("ms_p10", "ms_p90"))
                ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        bound = [next(iter(ways.values()))["bound_ms"] for ways in at]
        ax.plot(sizes, bound, color="black", linestyle=(0, (2, 2)), linewidth=1.4, label="bytes alone", zorder=9)
        ax.set_yscale("log")
        plain_ticks(ax, sizes)
        ax.set_xlabel("rows of each attention rank")
        ax.set_title(named(group), fontsize=8)
    axes[0].set_ylabel("ms per layer, median\n(auto: band from p10 to p90)")
    made.suptitle(auto_headline(rows), fontsize=12)
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    return made


def auto_headline(rows: Rows) -> str:
    """How near "auto" comes to the best fixed way, over all cells."""
    ratios = [
        ways["auto"]["ms"] / min(ways[way]["ms"] for way in FIXED if way in ways) for ways in cells(rows).values()
    ]
    return (
        f'"auto" takes {np.median(ratios):.2f} times as long as the best fixed way in the middle of {len(ratios)} cells, '
        f"{max(ratios):.2f} times at worst"
    )


def picture_of_predictions(rows: Rows) -> Any:
    """Predicted against measured milliseconds, one dot per fixed way and cell."""
    made, (ax,) = figure(1, (5.6, 5.8))
    ends = [f(row[name] for row in rows for name in ("ms", "predicted_ms") if row["way"] in FIXED) for f in (min, max)]
    span = np.array([ends[0] / 1.3, ends[1] * 1.3])
    ax.fill_between(span, span / NEAR, span * NEAR, color="#e6e6e6", linewidth=0, label="within 25 %")
    ax.plot(span, span, color="black", linewidth=1)
    for way in FIXED:
        label, colour, marker = WAYS[way]
        dots = [(row["ms"], row["predicted_ms"]) for row in rows if row["way"] == way]
        ax.scatter(*zip(*dots, strict=True), s=16, color=colour, marker=marker, alpha=0.8, linewidth=0, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(*span)
    ax.set_ylim(*span)
    ax.set_xlabel("measured ms per layer")
    ax.set_ylabel("predicted ms per layer")
    ax.set_title(error_headline(rows), fontsize=11)
    made.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return made


def error_headline(rows: Rows) -> str:
    """How far predictions are off."""
    ratios = np.array([row["predicted_ms"] / row["ms"] for row in rows if row["way"] in FIXED])
    near = np.mean((ratios >= 1 / NEAR) & (ratios <= NEAR))
    return (
        f"Predictions of {len(ratios)} calibrated times are off by {100 * np.median(abs(ratios - 1)):.0f} % in the middle,\n"
        f"and {100 * near:.0f} % of them lie within 25 %"
    )


def gains(rows: Rows) -> dict[tuple[Key, int], float]:
    """Per cell: direct's time over that of the best two-phase way; below 1 two phases lose."""
    found = {}
    for key, ways in cells(rows).items():
        found[key] = ways["direct"]["ms"] / min(ways[way]["ms"] for way in TWO_PHASE if way in ways)
    return found


def picture_of_gains(rows: Rows) -> Any:
    """A square per cell: shapes downwards, settings and batch sizes across."""
    found = gains(rows)
    shapes = sorted({group[:3] for group, _ in found}, key=lambda s: (s[2], s[0], s[1]))
    columns = sorted({(group[3:], b) for group, b in found}, key=lambda c: (-c[0][1], c[0][0], c[1]))
    grid = np.full((len(shapes), len(columns)), np.nan)
    for (group, b), gain in found.items():
        grid[shapes.index(group[:3]), columns.index((group[3:], b))] = gain
    made, (ax,) = figure(1, (0.42 * len(columns) + 3, 0.24 * len(shapes) + 2.4))
    ax.set_xscale("linear")
    ax.grid(visible=False)
    most = max(np.nanmax(abs(np.log2(grid))), 0.1)
    image = ax.imshow(np.log2(grid), cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for (i, j), gain in np.ndenumerate(grid):
        if not np.isnan(gain):
            bright = abs(np.log2(gain)) > 0.6 * most
            ax.text(j, i, f"{gain:.1f}", ha="center", va="center", fontsize=6, color="white" if bright else "black")
    ax.set_yticks(range(len(shapes)), [f"{m} x {n} nodes of {size}" for m, n, size in shapes], fontsize=7)
    ax.set_xticks(range(len(columns)), [str(b) for _, b in columns], fontsize=7)
    _settings(ax, [setting for setting, _ in columns])
    ax.set_xlabel("rows of each attention rank")
    ax.set_ylabel("attention x expert nodes")
    bar = made.colorbar(image, ax=ax, shrink=0.6)
    bar.set_ticks([-most, 0, most], labels=[f"{2**-most:.1f}", "1", f"{2**most:.1f}"])
    made.suptitle(gain_headline(found), fontsize=11)
    return made


def _settings(ax: Any, settings: list[Key]) -> None:
    """A line and a heading for the columns of each setting."""
    for j, (hidden, rate) in enumerate(settings):
        if j == 0 or settings[j - 1] != settings[j]:
            wide = settings.count(settings[j])
            text = f"H {hidden}\n{rate} Mbit/s"
            ax.text(j + wide / 2 - 0.5, -0.8, text, ha="center", va="bottom", fontsize=7)
            ax.axvline(j - 0.5, color="white", linewidth=3)


def gain_headline(found: dict[tuple[Key, int], float]) -> str:
    """The best, and how often two phases lose."""
    values = np.array(list(found.values()))
    return (
        f"The best two-phase way is up to {values.max():.1f} times as fast as direct (blue),\n"
        f"and slower than it in {int((values < 1).sum())} of {len(values)} cells (red)"
    )


PICTURES = {
    "comm_crossover.png": picture_of_crossover,
    "comm_predictions.png": picture_of_predictions,
    "comm_gains.png": picture_of_gains,
}


def write(made: Any, path: Path) -> None:
    """A PNG in which small marks keep their colours."""
    write_png(made, path, colours=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "results" / "comm_testbed.csv")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    options = parser.parse_args()
    rows = read(options.csv)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        write(draw(rows), options.out / name)
        say(f"{options.out / name}: {(options.out / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
