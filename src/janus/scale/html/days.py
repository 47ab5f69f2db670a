"""Simulated days as a page: what each policy costs, whether it keeps the promise, and how the pools follow the demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from janus.scale.days.scores import Scored, best, kept, rows
from janus.scale.html.page import Markup, cards, definitions, listing, origin, page, picture, section, table
from janus.scale.html.words import GLOSSARY, synthetic_notice
from janus.scale.pictures import days
from janus.scale.pictures.canvas import inline_svg

COUNTED = (
    "GPU-hours count every GPU of every pool from its start-up to its end, busy or not.",
    "Attainment is the share of requests whose own time per output token met the objective.",
)


def days_page(timelines: Sequence[Scored], command: Sequence[str] = ()) -> str:
    """The whole HTML document.

    Args:
        timelines: one per policy, of the same requests; at least one.
        command: words of the command line that made it, or none.

    Raises:
        JanusError: ``scale.plot`` without matplotlib.
    """
    winner = best(timelines)
    basis = winner.basis
    body = [part for part in (synthetic_notice(basis.get("routing", "")), _cards(winner)) if part]
    caption = "One row per policy: who decides how many GPUs there are."
    head, *lines = rows(timelines)
    body.append(section("What each policy costs", table(caption, head, lines, chosen=winner.policy, sortable=True)))
    caption = "GPUs held, demand and time per output token; every policy serves the same requests."
    body.append(section("The day", _drawn(timelines, "days", caption)))
    if len(timelines) > 1 and not winner.colocated:  # its two pools, which the comparison adds up
        body.append(section(f"The day of {winner.policy}", _drawn([winner], "winner", caption)))
    body.append(section("What the numbers rest on", listing(COUNTED), _basis(basis)))
    body.append(section("The words", definitions(GLOSSARY)))
    body.append(section("How to get this page again", origin(command)))
    tone = "good" if kept(winner) else "warn"
    kicker = f"{basis.get('model', 'A model')}: GPUs over time"
    return page(title=_headline(timelines, winner), kicker=kicker, lead=_lead(timelines, winner), tone=tone, body=body)


def _headline(timelines: Sequence[Scored], winner: Scored) -> str:
    used = f"{winner.gpu_hours:,.0f} GPU-hours"
    if not kept(winner):
        missed = "The objective is missed" if len(timelines) == 1 else "Every policy misses the objective"
        return f"{missed}; {winner.policy} comes closest with {used}"
    if len(timelines) == 1:
        return f"The policy {winner.policy} keeps the objective with {used}"
    return f"The policy {winner.policy} keeps the objective at the least cost: {used}"


def _lead(timelines: Sequence[Scored], winner: Scored) -> str:
    goal = f"{winner.slo.tpot_ms:g} ms per output token for {winner.slo.percentile:g}% of requests"
    said = f"{winner.attainment:.1%} of requests are as fast as promised (the objective: {goal})"
    return "; ".join([said, *(_beside(day, winner) for day in timelines if day is not winner)]) + "."


def _beside(day: Scored, winner: Scored) -> str:
    change = f" ({day.gpu_hours / winner.gpu_hours - 1:+.0%})" if winner.gpu_hours else ""
    return f"{day.policy} uses {day.gpu_hours:,.0f} GPU-hours{change} and serves {day.attainment:.1%} in time"


def _cards(winner: Scored) -> Markup:
    hours = len(winner.times_s) * winner.window_s / 3600
    lines = [("GPU-hours", f"{winner.gpu_hours:,.0f}", f"over {hours:,.3g} hours")]
    if winner.usd is not None:
        lines.append(("cost", f"${winner.usd:,.2f}", f"over {hours:,.3g} hours"))
    lines.append(("requests as fast as promised", f"{winner.attainment:.1%}", f"goal: {winner.slo.percentile:g}%"))
    lines.append(("GPUs", f"{winner.gpus.min():.0f} to {winner.gpus.max():.0f}", f"decided by {winner.policy}"))
    return cards(lines)


def _basis(basis: Mapping[str, str]) -> Markup:
    return table("What was simulated.", ("", "what was taken"), list(basis.items()), words=[1])


def _drawn(timelines: Sequence[Scored], name: str, caption: str) -> Markup:
    alt = f"GPUs, demand and time per output token over hours, for {', '.join(day.policy for day in timelines)}."
    return picture(inline_svg(days(timelines), name, alt), caption)
