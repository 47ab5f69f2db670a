"""Draw what `bench_sched.py` measured: a_max by method, and microseconds by backend, over the batch size.

    python benchmarks/plot_sched.py [--json benchmarks/results/sched_cpu.json] [--out docs/assets]

Titles are computed from the rows, so that they stay true of them. The table of docs/sched.md is renewed too; a test holds
the page to the committed rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from figures import say
from machine import ROOT

PANELS = ("gpt-oss-20b 8x6", "deepseek-v3 32x16")
TIMED = "deepseek-v3 32x16"
METHODS = {  # label, colour, marker; baselines that split experts are grey
    "random": ("random replica", "#b0b0b0", "v"),
    "round_robin": ("round robin", "#8a8a8a", "^"),
    "tokens": ("fewest tokens first", "#5f5f5f", "s"),
    "greedy": ("greedy (the paper's)", "#d55e00", "D"),
    "exact": ("exact", "#0072b2", "o"),
}
Rows = list[dict[str, Any]]


def series(rows: Rows, shape: str, method: str) -> Rows:
    """The rows of one line, in ascending B."""
    return sorted((r for r in rows if (r["shape"], r["method"]) == (shape, method)), key=lambda r: r["B"])


def figure(panels: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=size, layout="constrained", dpi=100)
    FigureCanvasAgg(made)
    axes = made.subplots(1, panels, squeeze=False)[0]
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xlabel("tokens in the batch")
        ax.grid(color="#e6e6e6", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    return made, axes


def plain_ticks(ax: Any, sizes: list[int]) -> None:
    ax.set_xticks(sizes, [str(B) for B in sizes])
    ax.minorticks_off()


def picture_of_a_max(rows: Rows) -> Any:
    """Slots that the busiest instance reads, by method, with the bound that no method can pass."""
    made, axes = figure(len(PANELS), (10, 4.7))
    for ax, shape in zip(axes, PANELS, strict=True):
        for method, (label, colour, marker) in METHODS.items():
            line = series(rows, shape, method)
            x, y = [r["B"] for r in line], [r["a_max"] for r in line]
            wide = 2.4 if method == "exact" else 1.4
            ax.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=wide, label=label, zorder=2 + wide)
        bound = [r["lower_bound"] for r in line]
        ax.plot(x, bound, color="black", linestyle=(0, (2, 2)), linewidth=1.4, label="lower bound", zorder=9)
        plain_ticks(ax, x)
        ax.set_ylim(0)
        ax.set_title(
            f"{shape.replace(' ', ', ').replace('x', ' instances x ')} slots\n{line[0]['routing']}", fontsize=9
        )
    axes[0].set_ylabel("experts read by the busiest instance\n(a_max, mean over batches)")
    made.suptitle(headline(rows), fontsize=12)
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return made


def headline(rows: Rows) -> str:
    """The worst of the others against exact, on the same batches, over both panels."""
    exact = {(s, r["B"]): r["a_max"] for s in PANELS for r in series(rows, s, "exact")}
    worst = {m: max(r["a_max"] / exact[s, r["B"]] for s in PANELS for r in series(rows, s, m)) for m in METHODS}
    split = max(worst[m] for m in ("tokens", "random", "round_robin"))
    return (
        f"The busiest instance reads up to {100 * worst['greedy'] - 100:.0f} % more experts with greedy than with exact,\n"
        f"and up to {split:.1f} times as many where an expert's tokens are split over its replicas"
    )


def picture_of_times(rows: Rows) -> Any:
    """Microseconds over the batch size: whole calls of both backends, and the solve alone."""
    made, (ax,) = figure(1, (7.2, 4.6))
    exact = series(rows, TIMED, "exact")
    lines = {
        "exact, plain Python reference": (exact, "call_us", "reference", "#999999", "s"),
        "fewest tokens first, numba": (series(rows, TIMED, "tokens"), "call_us", "numba", "#5f5f5f", "v"),
        "exact, numba": (exact, "call_us", "numba", "#0072b2", "o"),
        "greedy, numba": (series(rows, TIMED, "greedy"), "call_us", "numba", "#d55e00", "D"),
        "exact, numba, the solve alone": (exact, "solve_us", "numba", "#56b4e9", "^"),
    }
    for label, (line, kind, backend, colour, marker) in lines.items():
        seen = [(r["B"], r[kind][backend]) for r in line if not isinstance(r[kind][backend], str)]
        x, (low, middle, high) = [B for B, _ in seen], zip(*(us for _, us in seen), strict=True)
        ax.plot(x, middle, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.set_yscale("log")
    plain_ticks(ax, [r["B"] for r in exact])
    ax.set_yticks([1, 10, 100, 1000, 10000], ["1 us", "10 us", "100 us", "1 ms", "10 ms"])
    ax.set_ylabel("time of one call, median\n(band: p10 to p90)")
    calls, solves = ([r[kind]["numba"][1] for r in exact] for kind in ("call_us", "solve_us"))
    ax.set_title(
        f"A whole exact call takes {min(calls):.0f} to {max(calls):.0f} us on one CPU core,\n"
        f"the solve {max(solves):.0f} us of it at most; the rest counts and rewrites ids",
        fontsize=11,
    )
    model, pool = TIMED.split()
    ax.text(
        0.99, 0.02, f"{model}, {pool} slots, 8 of 256 experts per token", transform=ax.transAxes, ha="right", fontsize=8
    )
    made.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return made


TABLE = [("gpt-oss-20b 8x6", 64), ("qwen3-235b-a22b 16x12", 16), ("deepseek-v2 8x27", 64),
         ("deepseek-v3 32x12", 64), ("deepseek-v3 32x16", 16), ("deepseek-v3 32x16", 64), ("deepseek-v3 32x16", 256),
         ("kimi-k2 48x12", 256)]  # fmt: skip


def table(rows: Rows) -> list[str]:
    """Lines of Markdown: one shape and batch size a row."""
    lines = [
        "| model, instances x slots | B | lower bound | exact | greedy | tokens | random | exact, numba | the solve alone | reference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape, B in TABLE:
        found = {r["method"]: r for r in rows if (r["shape"], r["B"]) == (shape, B)}
        call, solve = found["exact"]["call_us"], found["exact"]["solve_us"]
        tops = [f"{found[m]['a_max']:.2f}" for m in ("exact", "greedy", "tokens", "random")]
        slow = call["reference"]
        plain = "" if isinstance(slow, str) else f"{slow[1] / 1000:.1f} ms"
        star = "" if found["exact"]["routing"].startswith("recorded") else " *"
        cells = [
            shape.replace(" ", ", ").replace("x", " x ") + star,
            str(B),
            f"{found['exact']['lower_bound']:.2f}",
            *tops,
        ]
        cells += [f"{call['numba'][1]} us", f"{solve['numba'][1]} us", plain]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


PICTURES = {"sched_a_max.png": picture_of_a_max, "sched_time_cpu.png": picture_of_times}


def write(made: Any, path: Path, colours: int = 64) -> None:
    """A PNG of few colours, half as large."""
    from PIL import Image

    made.canvas.draw()
    picture = Image.fromarray(np.asarray(made.canvas.buffer_rgba())).convert("RGB")
    picture.quantize(colours).save(path, optimize=True)


def renewed(page: str, lines: list[str]) -> str:
    """`page` with the table that has the same head replaced."""
    before, head, after = page.partition(lines[0] + "\n")
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    return before + (head and "\n".join(lines) + "\n") + "".join(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "sched_cpu.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    options = parser.parse_args()
    rows = json.loads(options.json.read_text())["rows"]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        write(draw(rows), options.out / name)
        say(f"{options.out / name}: {(options.out / name).stat().st_size} bytes")
    page = ROOT / "docs" / "sched.md"
    page.write_text(renewed(page.read_text(), table(rows)))


if __name__ == "__main__":
    main()
