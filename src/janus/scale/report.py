"""The plan in words and tables, for people."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from janus.errors import known
from janus.scale.latency import Breakdown

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
    a, c = plan.pick, plan.colocated
    lines = [
        ("deployment", a.name if a else "-", f"{c.copies} x EP{c.width}" if c else "-"),
        ("GPUs", str(a.gpus) if a else "-", str(c.gpus) if c else "-"),
        ("expert slots per GPU", str(plan.problem.slots), str(c.slots) if c else "-"),
        ("requests in flight", str(a.batch) if a else "-", str(c.batch * c.copies) if c else "-"),
        ("TPOT, ms", f"{a.tpot_ms:.1f}" if a else "-", f"{c.tpot_ms:.1f}" if c else "-"),
        (f"TPOT P{plan.slo.percentile:g}, ms", f"{a.tail_ms:.1f}" if a else "-", f"{c.tail_ms:.1f}" if c else "-"),
        ("tokens/s", f"{a.throughput:.0f}" if a else "-", f"{c.throughput:.0f}" if c else "-"),
        ("tokens/s/GPU", f"{plan.tokens_per_gpu_s:.0f}" if a else "-", f"{c.tokens_per_gpu_s:.0f}" if c else "-"),
    ]
    for part in _PARTS:
        sign = "-" if part == "overlap" else ""
        lines.append((f"  {part}, ms", _part(a and a.breakdown, part, sign), _part(c and c.breakdown, part, sign)))
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
        f"SLO: P{plan.slo.percentile:g} of TPOT <= {plan.slo.tpot_ms:g} ms; KV lengths vary by {p.context_cv:.0%}.",
        f"Activated experts measured on {plan.routing}; balancer {p.table.method!r}. Times: roofline, not measured.",
    ]
    rejected = ", ".join(f"{name} {count}" for name, count in plan.rejections.items()) or "none"
    lines.append(
        f"{len(plan.candidates)} candidates; rejected by: {rejected}. {plan.proof[0].upper()}{plan.proof[1:]}."
    )
    return lines if plan.feasible else [*lines, f"No pair of pools is feasible; binding constraint: {plan.binding}."]


def _part(breakdown: Breakdown | None, part: str, sign: str) -> str:
    return f"{sign}{getattr(breakdown, part):.2f}" if breakdown else "-"


def _plain(plan: ScalePlan) -> str:
    table = [("", "disaggregated", "colocated"), *rows(plan)]
    lines = [f"{what:<22}{ours:>14}{alone:>14}".rstrip() for what, ours, alone in table]
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
