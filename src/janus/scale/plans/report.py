"""The plan in words and tables, for people."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from janus.errors import known
from janus.scale.plans.offers import Offer, offers
from janus.scale.timing.scaled import ScaledLatencyModel

if TYPE_CHECKING:
    from janus.scale.plans.result import ScalePlan

_PARTS = ("attention", "moe", "comm", "other", "overlap")


def render(plan: ScalePlan, style: str = "auto") -> Any:
    """The plan as a rich renderable, or as plain text.

    Args:
        plan: from `janus.scale.plan`.
        style: ``"rich"``, ``"plain"``, or ``"auto"``: rich where it is installed.
    """
    known(style, ("auto", "rich", "plain"), "style", "scale.style")
    if style == "plain" or (style == "auto" and find_spec("rich") is None):
        return _plain(plan)
    return _rich(plan)


def rows(plan: ScalePlan) -> list[tuple[str, str, str]]:
    """Lines of the comparison: (what, disaggregated, colocated)."""
    split, alone = offers(plan)

    def line(what: str, value: Callable[[Offer], Any], form: str = "{}") -> tuple[str, str, str]:
        ours, other = (offer and value(offer) for offer in (split, alone))
        return what, "-" if ours is None else form.format(ours), "-" if other is None else form.format(other)

    lines = [line("deployment", lambda o: o.name), line("GPUs", lambda o: o.gpus)]
    if any(offer and offer.usd_per_hour is not None for offer in (split, alone)):
        lines.append(line("dollars per hour", lambda o: o.usd_per_hour, "{:.2f}"))
        lines.append(line("dollars per million tokens", lambda o: o.usd_per_million, "{:.2f}"))
    lines += [
        line("expert slots per GPU", lambda o: o.slots),
        line("requests in flight", lambda o: o.batch),
        line("TPOT, ms", lambda o: o.tpot_ms, "{:.1f}"),
        line(f"TPOT P{plan.slo.percentile:g}, ms", lambda o: o.tail_ms, "{:.1f}"),
        line("tokens/s", lambda o: o.throughput, "{:.0f}"),
        line("tokens/s/GPU", lambda o: o.tokens_per_gpu_s, "{:.0f}"),
    ]
    for part in _PARTS:
        sign = "-" if part == "overlap" else ""
        lines.append(line(f"  {part}, ms", lambda o, part=part: getattr(o.breakdown, part), sign + "{:.2f}"))
    return lines


def notes(plan: ScalePlan) -> list[str]:
    """What the numbers rest on."""
    p = plan.problem
    asked = f"batch {p.batch}" if plan.demand is None else f"{plan.demand:g} tokens/s x headroom {plan.headroom:g}"
    prompts = (
        "prefill is NOT counted (done elsewhere)" if plan.prefill == "elsewhere" else "prefill is counted (same GPUs)"
    )
    lines = [
        f"{p.latency.model.name} on {_hardware(plan)}; {asked}; context {_context(plan)}; {prompts}.",
        f"SLO: P{plan.slo.percentile:g} of TPOT <= {plan.slo.tpot_ms:g} ms; KV lengths vary by {p.context_cv:.0%}.",
        f"Activated experts measured on {plan.routing}; balancer {p.table.method!r}. {times(plan)}",
    ]
    rejected = ", ".join(f"{name} {count}" for name, count in plan.rejections.items()) or "none"
    lines.append(
        f"{len(plan.candidates)} candidates; rejected by: {rejected}. {plan.proof[0].upper()}{plan.proof[1:]}."
    )
    if plan.feasible:
        return lines
    if plan.binding == "time_limit":
        return [*lines, "No feasible pair of pools was found in the time there was; there may be one."]
    return [*lines, f"No pair of pools is feasible; binding constraint: {plan.binding}."]


def times(plan: ScalePlan) -> str:
    """In a sentence, whether the times were measured, and what was fitted on top."""
    latency = plan.problem.latency
    how = {part: source.partition(":")[0] for part, source in latency.provenance.items()}
    more = f"; {latency.explain()}" if isinstance(latency, ScaledLatencyModel) else ""
    if set(how.values()) <= {"roofline"}:
        return f"Times: roofline, not measured{more}."
    return f"Times: {', '.join(f'{part} {source}' for part, source in how.items())}{more}."


def _context(plan: ScalePlan) -> str:
    more = plan.asked.headroom.length
    return f"{plan.asked.context:g} tokens" + (f" x headroom {more:g}" if more != 1 else "")


def _hardware(plan: ScalePlan) -> str:
    """The GPUs of both pools; where there was a choice and nothing is feasible, all that were tried."""
    tried = [plan.problem] if plan.feasible else plan.problems
    attention, experts = (list(dict.fromkeys(p.kinds[side] for p in tried)) for side in (0, 1))
    if attention == experts:
        return " or ".join(attention)
    return f"{' or '.join(attention)} (attention) and {' or '.join(experts)} (experts)"


def _plain(plan: ScalePlan) -> str:
    table = [("", "disaggregated", "colocated"), *rows(plan)]
    lines = [f"{what:<28}{ours:>14}{alone:>14}".rstrip() for what, ours, alone in table]
    return "\n".join([plan.verdict, "", *lines, "", *notes(plan)])


def _rich(plan: ScalePlan) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("", "disaggregated", "colocated")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in rows(plan):
        table.add_row(*line)
    colour = "green" if plan.disaggregate else "yellow" if plan.colocated else "red"
    return Group(Text(plan.verdict, style=f"bold {colour}"), table, Text("\n".join(notes(plan)), style="dim"))
