"""The picture of the second half: a_max per layer and method."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw_a_max(table: dict[str, list[float]], path: Path, title: str) -> None:
    """Grouped bars: one group a layer, one bar a method."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(table)
    for i, (method, row) in enumerate(table.items()):
        places = [layer + (i - (len(table) - 1) / 2) * width for layer in range(len(row))]
        bars = axes.bar(places, row, width, label=method)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(range(len(next(iter(table.values())))))
    axes.set_xlabel("MoE layer")
    axes.set_ylabel("a_max: experts read by the busiest instance", fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.legend(title="balancing", ncols=len(table), loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
