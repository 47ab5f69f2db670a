"""Draw what `bench_experts.py` measured: time over the batch size beside the bound and every way of transformers.

    python benchmarks/plot_experts.py [--json benchmarks/results/experts_cpu.json] [--out docs/assets]

Titles and sentences are computed from the rows, and cells that are lost are drawn and listed like the others. The part of
docs/experts.md between its two marks is written anew; a test holds the page to the committed rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from figures import say
from machine import ROOT
from plot_sched import figure, plain_ticks, write

PICTURE = "experts_time_cpu.png"
PANELS = (
    ("qwen3-30b-a3b", "bfloat16"),
    ("qwen3-30b-a3b", "float32"),
    ("gpt-oss-20b", "bfloat16"),
    ("deepseek-v3", "bfloat16"),
)
WAYS = {  # colour, marker; the ways of transformers are grey
    "transformers eager": ("#b0b0b0", "v"),
    "transformers batched_mm": ("#8a8a8a", "^"),
    "transformers grouped_mm": ("#5f5f5f", "s"),
    "janus eager": ("#e69f00", "D"),
    "janus numba": ("#56b4e9", "o"),
    "janus mixed": ("#0072b2", "o"),
}
SMALLER = {"int8": ("#009e73", "P"), "fp8": ("#cc79a7", "X")}  # drawn into the panel of bfloat16
BEGIN = "<!-- experts_cpu: written by benchmarks/plot_experts.py, do not edit -->"
END = "<!-- end of experts_cpu -->"
Rows = list[dict[str, Any]]


def series(rows: Rows, model: str, storage: str) -> Rows:
    """The rows of one panel, in ascending B."""
    return sorted((r for r in rows if (r["model"], r["storage"]) == (model, storage)), key=lambda r: r["B"])


def panels(rows: Rows) -> list[tuple[str, str]]:
    """Those of `PANELS` that were measured, else the first pairs there are."""
    there = list(dict.fromkeys((r["model"], r["storage"]) for r in rows))
    return [pair for pair in PANELS if pair in there] or there[:2]


def picture(rows: Rows) -> Any:
    """Milliseconds over B, a panel per model and storage."""
    shown = panels(rows)
    made, axes = figure(len(shown), (3.6 * len(shown) + 0.8, 4.6))
    for ax, pair in zip(axes, shown, strict=True):
        here = series(rows, *pair)
        for name in names(here):
            draw(ax, here, name, name, *WAYS.get(name, ("#444444", "x")))
        for storage, (colour, marker) in SMALLER.items() if pair[1] == "bfloat16" else ():
            smaller = [r for r in series(rows, pair[0], storage) if r["janus"]]
            if smaller:
                draw(ax, smaller, str(smaller[0]["janus"]), f"janus, {storage}", colour, marker)
        x = [r["B"] for r in here]
        bound = [max(r["bound_ms"], r["compute_ms"]) for r in here]
        ax.plot(x, bound, color="black", linestyle=(0, (2, 2)), linewidth=1.4, label="bound", zorder=9)
        ax.set_yscale("log")
        plain_ticks(ax, x)
        ax.set_title(f"{pair[0]}, {pair[1]}\n{here[0]['held']}", fontsize=9)
    axes[0].set_ylabel("ms of one layer's experts, median\n(band: p10 to p90)")
    made.suptitle(headline(rows), fontsize=11)
    entries = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    made.legend(entries.values(), entries, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return made


def names(rows: Rows) -> list[str]:
    """Every way of these rows, the known ones first."""
    there = dict.fromkeys(name for r in rows for name in r["ms"])
    return sorted(there, key=lambda name: list(WAYS).index(name) if name in WAYS else len(WAYS))


def draw(ax: Any, rows: Rows, name: str, label: str, colour: str, marker: str) -> None:
    """One way: its medians, and its band."""
    seen = [(r["B"], *r["ms"][name]) for r in rows if name in r["ms"]]
    if not seen:
        return
    x, low, middle, high = zip(*seen, strict=True)
    ax.plot(x, middle, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=label)
    ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def judged(rows: Rows) -> Rows:
    """The rows in which both sides ran."""
    return [r for r in rows if r["times_faster"] is not None]


def headline(rows: Rows) -> str:
    """How often the layer wins, and how near the bound it is where memory decides."""
    seen = judged(rows)
    won = sum(r["times_faster"] >= 1 for r in seen)
    shares = [r["bound_over_time"][r["janus"]] for r in seen if r["memory_bound"]]
    near = f"; {min(shares):.0%} to {max(shares):.0%} of the bound where memory decides" if shares else ""
    return f"Not slower than the fastest way of transformers in {won} of {len(seen)} cells{near}".replace("%", " %")


def table(rows: Rows) -> list[str]:
    """Lines of Markdown: a model and storage a row, a batch size a column."""
    sizes = sorted({r["B"] for r in rows})
    lines = [
        f"| model | storage | held | {' | '.join(f'B = {B}' for B in sizes)} |",
        "|---" * (3 + len(sizes)) + "|",
    ]
    for model, storage in dict.fromkeys((r["model"], r["storage"]) for r in rows):
        here = {r["B"]: r for r in series(rows, model, storage)}
        held = here[min(here)]["held"].split(" experts")[0].replace("whole layer", "all")
        cells = [cell(here.get(B)) for B in sizes]
        lines.append(f"| {model} | {storage} | {held} | {' | '.join(cells)} |")
    return lines


def cell(found: dict[str, Any] | None) -> str:
    """Times as fast as the fastest way of transformers, and the share of the bound where memory decides."""
    if found is None or found["janus"] is None:
        return "-"
    share = f"{found['bound_over_time'][found['janus']]:.0%}".replace("%", " %")
    faster = "" if found["times_faster"] is None else f"{found['times_faster']:.2f}x"
    return ", ".join(filter(None, [faster, share if found["memory_bound"] else "compute"]))


def section(results: dict[str, Any]) -> str:
    """What stands between the marks of the page."""
    rows, machine = results["rows"], results["machine"]
    lost = [f"{r['model']} {r['storage']} B = {r['B']} ({r['times_faster']:.2f}x)" for r in judged(rows)]
    lost = [words for words, r in zip(lost, judged(rows), strict=True) if r["times_faster"] < 1]
    versions = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "transformers", "numba"))
    where = f"{machine['cpu']}, {results['threads']} cores, last-level cache {results['cache_mib']} MiB; {versions}"
    text = [
        f"Measured on {where}; {results['when'][:10]}, `{results['command']}`. Each cell: how many times as fast as the "
        "fastest way of transformers in the same rounds, and the share of the memory's bound that is reached; "
        '"compute" stands where the tokens per expert are beyond the ridge and memory no longer decides.',
        "\n".join(table(rows)),
        f"{headline(rows)}. Cells that are lost: {'; '.join(lost) or 'none'}.",
        f"![Time of one layer's experts over the batch size](assets/{PICTURE})",
    ]
    return "\n\n".join(text)


def renewed(page: str, text: str) -> str:
    """`page` with what stands between the marks replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "experts_cpu.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    parser.add_argument("--no-page", action="store_true", help="the picture alone")
    options = parser.parse_args()
    results = json.loads(options.json.read_text())
    options.out.mkdir(parents=True, exist_ok=True)
    write(picture(results["rows"]), options.out / PICTURE)
    say(f"{options.out / PICTURE}: {(options.out / PICTURE).stat().st_size} bytes")
    if not options.no_page:
        page = ROOT / "docs" / "experts.md"
        page.write_text(renewed(page.read_text(), section(results)))


if __name__ == "__main__":
    main()
