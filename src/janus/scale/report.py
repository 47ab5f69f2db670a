"""The plan in words and tables, for people."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from janus.errors import known
from janus.scale.offers import offers

if TYPE_CHECKING:
    from janus.scale.result import ScalePlan

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
    both = offers(plan)
    lines = [("deployment", *(o.name if o else "-" for o in both)), ("GPUs", *(str(o.gpus) if o else "-" for o in both))]
    if any(o and o.usd_per_hour is not None for o in both):
        lines.append(("dollars per hour", *(_usd(o and o.usd_per_hour) for o in both)))
        lines.append(("dollars per million tokens", *(_usd(o and o.usd_per_million) for o in both)))
    lines += [
        ("expert slots per GPU", str(plan.problem.slots), str(both[1].slots) if both[1] else "-"),
        ("requests in flight", *(str(o.batch) if o else "-" for o in both)),
        ("TPOT, ms", *(f"{o.tpot_ms:.1f}" if o else "-" for o in both)),
    ]
    if any(o and o.tail_ms is not None for o in both):
        lines.append((f"P{plan.slo.percentile:g} TPOT, ms", *(_ms(o and o.tail_ms) for o in both)))
    lines += [
        ("tokens/s", *(f"{o.throughput:.0f}" if o else "-" for o in both)),
        ("tokens/s/GPU", *(f"{o.tokens_per_gpu_s:.0f}" if o else "-" for o in both)),
    ]
    for part in _PARTS:
        sign = "-" if part == "overlap" else ""
        lines.append((f"  {part}, ms", *(f"{sign}{getattr(o.breakdown, part):.2f}" if o else "-" for o in both)))
    return lines


def notes(plan: ScalePlan) -> list[str]:
    """What the numbers rest on."""
    p = plan.problem
    asked = f"batch {p.batch}" if plan.demand is None else f"{plan.demand:g} tokens/s x headroom {plan.headroom:g}"
    prompts = (
        "prefill is NOT counted (done elsewhere)" if plan.prefill == "elsewhere" else "prefill is counted (same GPUs)"
    )
    lines = [
        f"{p.latency.model.name} on {p.latency.cluster.gpu.name}; {asked}; context {p.context:g} tokens; {prompts}.",
        f"SLO: mean TPOT <= {plan.slo.tpot_ms:g} ms; percentile {plan.slo.percentile:g} is not modelled.",
        f"Activated experts measured on {plan.routing}; balancer {p.table.method!r}. Times: roofline, not measured.",
    ]
    rejected = ", ".join(f"{name} {count}" for name, count in plan.rejections.items()) or "none"
    lines.append(f"{len(plan.candidates)} candidates; rejected by: {rejected}.")
    return lines if plan.feasible else [*lines, f"No pair of pools is feasible; binding constraint: {plan.binding}."]


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


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
