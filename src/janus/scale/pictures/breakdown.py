"""Where the time of one step goes, the split pools beside the colocated ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from janus.scale.pictures.canvas import INK, LIMIT, PAPER, PARTS, figure

if TYPE_CHECKING:
    from janus.scale.plans.result import ScalePlan

NAMES = {
    "attention": "attention, shared experts",
    "moe": "routed experts",
    "comm": "exchange",
    "other": "dense layers, head, host",
    "prompts": "prompts",
}


def breakdown(plan: ScalePlan) -> Any:
    """Stacked bars of the parts of a step in ms; what runs at the same time hangs left of 0; the SLO is a line.

    Returns:
        A matplotlib figure.
    """
    bars = parts(plan)
    with figure(8.6, 1.5 + 0.75 * max(1, len(bars))) as made:
        axes = made.add_subplot()
        axes.xaxis.grid(True)
        axes.set_axisbelow(True)
        drawn = [name for name in NAMES if any(bar[name] for _, bar, _ in bars)]
        for row, (_, bar, tpot) in enumerate(bars):
            left = -bar["overlap"]  # so that a bar ends at its TPOT
            for name in drawn:
                label = NAMES[name] if row == 0 else None
                axes.barh(row, bar[name], left=left, color=PARTS[name], height=0.56, label=label)
                left += bar[name]
            if bar["overlap"]:
                hidden = {"color": PAPER, "alpha": 0.55, "hatch": "////", "edgecolor": INK, "linewidth": 0}
                label = "hidden: runs at the same time" if row == 0 else None
                axes.barh(row, -bar["overlap"], height=0.56, label=label, **hidden)
            at = {
                "zorder": 5,
                "xy": (max(tpot, bar["tail"]), row),
                "xytext": (6, 0),
                "textcoords": "offset points",
                "va": "center",
            }
            axes.annotate(f"{tpot:.1f} ms", bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1}, **at)
            label = f"P{plan.slo.percentile:g}" if row == 0 else None
            axes.plot([bar["tail"]] * 2, [row - 0.28, row + 0.28], color=INK, linewidth=2, label=label)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.axvline(plan.slo.tpot_ms, color=LIMIT, linestyle="--", label=f"SLO {plan.slo.tpot_ms:g} ms")
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        axes.set(xlabel="ms per step, which is per output token of every request", ylim=(len(bars) - 0.4, -0.6))
        axes.set_xlim(right=1.12 * max([plan.slo.tpot_ms, *(max(tpot, bar["tail"]) for _, bar, tpot in bars)]))
        made.legend(loc="outside lower center", ncols=4)
    return made


def parts(plan: ScalePlan) -> list[tuple[str, dict[str, float], float]]:
    """Per bar: its name, its parts in ms (`overlap` is to be subtracted), and the mean TPOT they make.

    A deployment that also reads prompts has a part `prompts`: how much longer they make a step. `tail` is no part: the
    TPOT at the percentile of the SLO.
    """
    out = []
    for name, found in (_split(plan), _alone(plan)):
        if found is not None and found.breakdown is not None:
            b = found.breakdown
            bar = {part: getattr(b, part) for part in ("attention", "moe", "comm", "other", "overlap")}
            out.append((name, bar | {"prompts": found.tpot_ms - b.tpot, "tail": found.tail_ms}, found.tpot_ms))
    return out


def _split(plan: ScalePlan) -> tuple[str, Any]:
    return f"split: {plan.pick.name if plan.pick else '-'}", plan.pick


def _alone(plan: ScalePlan) -> tuple[str, Any]:
    c = plan.colocated
    return f"colocated: {c.copies} x EP{c.width}" if c else "", c
