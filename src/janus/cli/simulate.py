"""`janus simulate`: what the options name, read and put together for `janus.scale.simulate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.cli.inputs import clusters_of, routing_of, shares
from janus.cli.progress import progress
from janus.cli.trace import load_requests
from janus.scale import ModelSpec, simulate
from janus.scale.days.scores import best, rows
from janus.scale.hardware import positive
from janus.types import RequestTrace, Slo
from janus.types.files import write_text

if TYPE_CHECKING:
    from janus.scale import Timeline


def play(
    config: str,
    *,
    requests: Sequence[str],
    policies: Sequence[str],
    hours: float,
    hardware: str,
    price: Sequence[str],
    gpus_per_node: int | None,
    inter_node_gbps: float | None,
    routing: str,
    recording: str | None,
    synthetic: bool,
    slo: Slo,
    efficiency: Sequence[str],
    seed: int,
    **options: Any,
) -> list[Timeline]:
    """Read model, hardware and traces, and simulate every policy; a bar on a terminal tells how far it is.

    Args:
        config: folder, config.json or the name of a shipped config.
        requests: one request trace, or ServeGen's rates and lengths.
        policies: names.
        hours: the first so many hours of the requests.
        hardware: name of a preset.
        price: dollars per GPU-hour, like ``h100-sxm=2.5``.
        gpus_per_node: default the preset's.
        inter_node_gbps: per GPU, default the preset's.
        routing: routing trace or expert counts: a file, or the name of a shipped sample.
        recording: which one of a file of expert counts.
        synthetic: resample the popularity of `routing` for this model.
        slo: the objective.
        efficiency: share of a GPU's work that a policy's deployment gets done, like ``monolithic=0.8``.
        seed: of all draws.
        options: passed on to `janus.scale.simulate`.

    Raises:
        JanusError: ``simulate.*``, ``cli.*``, ``trace.*``, and whatever the readers and the simulation refuse.
    """
    model = ModelSpec.from_config(config)
    arrivals = _arrivals(requests, seed, hours)
    trace = routing_of(model, routing, recording, synthetic, "simulate")
    (cluster,) = clusters_of([hardware], price, gpus_per_node, inter_node_gbps)
    with progress("simulating") as advance:
        options["progress"] = lambda done, total, what: advance(done / total)
        days = simulate(
            arrivals,
            list(policies),
            model=model,
            cluster=cluster,
            slo=slo,
            trace=trace,
            seed=seed,
            per_gpu_efficiency=shares(efficiency),
            **options,
        )
    return list(days.values())


def _arrivals(requests: Sequence[str], seed: int, hours: float) -> RequestTrace:
    positive(hours, "--hours", "cli.hours")
    found = load_requests(requests, "--requests", seed=seed, hours=hours)
    return found.window(0.0, hours * 3600) if hours * 3600 < found.duration_s else found


def write_days(
    days: Sequence[Timeline], save: Path | None, plot: Path | None, report: Path | None, command: Sequence[str]
) -> None:
    """Write what was asked for: every timeline as one JSON object, a picture, a self-contained HTML page.

    Raises:
        JanusError: ``scale.save``, ``scale.plot``, ``scale.report``.
    """
    from janus.scale.html import days_page
    from janus.scale.pictures import draw_days

    if save is not None:
        write_text(save, "scale.save", json.dumps(to_dict(days)))
    if plot is not None:
        draw_days(days, plot)
    if report is not None:
        write_text(report, "scale.report", days_page(days, command))


def to_dict(days: Sequence[Timeline]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "format": "janus.days/1",
        "best": best(days).policy,
        "policies": {day.policy: day.to_dict() for day in days},
    }


def print_days(days: Sequence[Timeline], as_json: bool) -> None:
    """One JSON object, or a table with a line per policy and what it rests on."""
    if as_json:
        print(json.dumps(to_dict(days)))
        return
    head, *lines = rows(days)
    if sys.stdout.isatty():
        _print_rich(head, lines, best(days).policy)
    else:
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        for line in (head, *lines):
            cells = [
                f"{line[0]:<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
            print("  ".join(cells))
    for name, words in days[0].basis.items():
        print(f"{name}: {words}")


def _print_rich(head: Sequence[str], lines: Sequence[Sequence[str]], winner: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(head[0])
    for name in head[1:]:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*map(Text, line), style="bold green" if line[0] == winner else "")
    Console().print(table)
