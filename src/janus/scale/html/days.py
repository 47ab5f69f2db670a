"""Simulated days as a page: what each policy costs, whether it keeps the promise, and how the pools follow the demand."""

from __future__ import annotations

from collections.abc import Sequence

from janus.scale.html.page import Markup, cards, definitions, listing, origin, page, picture, section, table
from janus.scale.html.words import GLOSSARY, synthetic_notice
from janus.scale.pictures import days
from janus.scale.pictures.canvas import inline_svg
from janus.scale.scores import Scored, best, rows

COUNTED = (
    "GPU-hours count every GPU of every pool from its start-up to its end, busy or not.",
    "Attainment is the share of requests whose own time per output token met the objective.",
)


def days_page(timelines: Sequence[Scored], title: str, facts: Sequence[str] = (), command: Sequence[str] = ()) -> str:
    """The whole HTML document.

    Args:
        timelines: one per policy, of the same requests; at least one.
        title: what was simulated, e.g. model and hardware.
        facts: what the numbers rest on, a sentence each.
        command: words of the command line that made it, or none.

    Raises:
        JanusError: ``scale.plot`` without matplotlib.
    """
    winner = best(timelines)
    body = [synthetic_notice("; ".join(facts)), _cards(timelines, winner)]
    caption = "One row per policy: who decides how many GPUs there are."
    head, *lines = rows(timelines)
    body.append(section("What each policy costs", table(caption, head, lines, chosen=winner.policy, sortable=True)))
    caption = "GPUs held, demand and time per output token; every policy serves the same requests."
    if len(timelines) > 1:
        body.append(section("The day", _drawn(timelines, "days", caption)))
    for number, day in enumerate(timelines):
        body.append(section(f"The day of {day.policy}", _drawn([day], f"day{number}", caption)))
    body.append(section("What the numbers rest on", listing([*COUNTED, *facts])))
    body.append(section("The words", definitions(GLOSSARY)))
    body.append(section("How to get this page again", origin(command)))
    tone = "good" if winner.attainment * 100 >= winner.slo.percentile else "warn"
    return page(title=_headline(timelines, winner), kicker=title, lead=_lead(timelines, winner), tone=tone, body=body)


def _headline(timelines: Sequence[Scored], winner: Scored) -> str:
    used = f"{winner.gpu_hours:,.0f} GPU-hours"
    return f"{winner.policy} serves it with {used}" if len(timelines) == 1 else f"{winner.policy} is cheapest: {used}"


def _lead(timelines: Sequence[Scored], winner: Scored) -> str:
    goal = f"{winner.slo.tpot_ms:g} ms per output token for {winner.slo.percentile:g} % of requests"
    said = f"{winner.attainment:.1%} of requests are as fast as promised (the objective: {goal})"
    most = max(timelines, key=lambda day: day.gpu_hours)
    if most.gpu_hours > winner.gpu_hours:
        said += f"; {most.policy} needs {most.gpu_hours:,.0f} GPU-hours, {most.gpu_hours / winner.gpu_hours - 1:.0%} more"
    return f"{said}."


def _cards(timelines: Sequence[Scored], winner: Scored) -> Markup:
    hours = len(winner.times_s) * winner.window_s / 3600
    lines = [("GPU-hours", f"{winner.gpu_hours:,.0f}", f"over {hours:,.3g} hours")]
    if winner.usd is not None:
        lines.append(("cost", f"${winner.usd:,.2f}", f"over {hours:,.3g} hours"))
    lines.append(("requests as fast as promised", f"{winner.attainment:.1%}", f"goal: {winner.slo.percentile:g} %"))
    lines.append(("GPUs", f"{winner.gpus.min():g} to {winner.gpus.max():g}", f"decided by {winner.policy}"))
    return cards(lines)


def _drawn(timelines: Sequence[Scored], name: str, caption: str) -> Markup:
    alt = f"GPUs, demand and time per output token over hours, for {', '.join(day.policy for day in timelines)}."
    return picture(inline_svg(days(timelines), name, alt), caption)
