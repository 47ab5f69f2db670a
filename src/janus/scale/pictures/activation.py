"""The activation table: how many distinct experts the busiest instance reads, over batch sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from janus.scale.pictures.canvas import INK, LINES, MUTED, figure

if TYPE_CHECKING:
    from janus.scale.activation.table import ActivationTable
    from janus.scale.plans.result import ScalePlan

MOST_CURVES = 5


def activation(plan: ScalePlan) -> Any:
    """a_max over B, one curve per pool size with its standard error, and the analytic bound of the picked size.

    Returns:
        A matplotlib figure.
    """
    table, slots = plan.problem.table, plan.problem.slots
    sizes = np.array(table.batch_sizes)
    pools = shown_pools(table, slots, plan.n_experts)
    with figure(8.6, 4.4) as made:
        axes = made.add_subplot()
        axes.grid(True)
        for n_e, colour in zip(pools, LINES, strict=False):
            mean = np.array([table.at(n_e, B, slots).a_max for B in table.batch_sizes])
            error = np.array([table.stderr(n_e, B, slots) for B in table.batch_sizes])
            picked = " (pick)" if n_e == plan.n_experts else ""
            axes.plot(sizes, mean, "o-", color=colour, markersize=3, label=f"{n_e} expert instances{picked}")
            axes.fill_between(sizes, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.25, linewidth=0)
        if pools:
            of = plan.n_experts if plan.n_experts in pools else pools[0]
            bound = [table.bound(of, B, slots) for B in table.batch_sizes]
            axes.plot(sizes, bound, "--", color=INK, linewidth=1.2, label=f"analytic bound, {of} instances")
        axes.axhline(slots, color=MUTED, linewidth=0.8, linestyle=":", label=f"C = {slots} slots per instance")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="requests in flight", ylabel="activated experts, busiest instance", ylim=(0, None))
        made.legend(loc="outside lower center", ncols=3)
    return made


def shown_pools(table: ActivationTable, slots: int, picked: int) -> list[int]:
    """At most five measured pool sizes, spread from the smallest to the largest, the picked one among them."""
    have = sorted(n_e for n_e, c in table.rows if c == slots)
    if len(have) <= MOST_CURVES:
        return have
    spread = {have[i] for i in np.linspace(0, len(have) - 1, MOST_CURVES).round().astype(int)}
    if picked in have and picked not in spread:
        spread = (spread - {min(spread, key=lambda n: abs(n - picked))}) | {picked}
    return sorted(spread)
