"""A plan as a page for the person who pays: the verdict, the comparison, the pictures, what it all rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from janus.scale.html.page import Markup, cards, definitions, listing, origin, page, picture, section, table, tag
from janus.scale.html.words import ASSUMPTIONS, GLOSSARY, MEMORY, RULES, synthetic_notice
from janus.scale.pictures import PICTURES
from janus.scale.pictures.breakdown import NAMES, parts
from janus.scale.pictures.canvas import inline_svg
from janus.scale.plans.offers import Offer, offers
from janus.scale.plans.report import notes, rows

if TYPE_CHECKING:
    from janus.scale.plans.result import ScalePlan
    from janus.scale.search.solve import Candidate

MOST_PAIRS = 20


def plan_page(plan: ScalePlan, command: Sequence[str] = ()) -> str:
    """The whole HTML document.

    Args:
        plan: from `janus.scale.plan`.
        command: words of the command line that made it, or none.

    Raises:
        JanusError: ``scale.plot`` without matplotlib.
    """
    problem = plan.problem
    kinds = [kind for offer in offers(plan) if offer for kind in offer.kinds]
    kinds = kinds or [kind for each in plan.problems for kind in each.kinds]  # nothing is feasible: all that were tried
    hardware = " and ".join(dict.fromkeys(kinds))
    kicker = f"{problem.latency.model.name} on {hardware}: how many GPUs, and is splitting worth it?"
    body = [part for part in _body(plan, command) if part]
    tone = "bad" if not any(offers(plan)) else "good" if plan.disaggregate else "warn"
    return page(title=headline(plan), kicker=kicker, lead=lead(plan), tone=tone, body=body)


def headline(plan: ScalePlan) -> str:
    """The verdict in a few words."""
    split, alone = offers(plan)
    if split is None and alone is None:
        undecided = plan.binding == "time_limit"
        return "No deployment was found in time" if undecided else "No deployment meets the objective"
    if plan.disaggregate:
        assert plan.pick is not None
        of = [f" ({kind})" if len(set(plan.pick.kinds)) > 1 else "" for kind in plan.pick.kinds]
        return f"Split the model: {plan.n_attention} attention{of[0]} + {plan.n_experts} expert GPUs{of[1]}"
    assert alone is not None
    return f"Do not split the model: {alone.gpus} GPU{'s serve' if alone.gpus > 1 else ' serves'} it whole"


def lead(plan: ScalePlan) -> str:
    """The verdict in plain sentences: what was asked, what each way needs, what the difference is."""
    split, alone = offers(plan)
    asked = (
        f"{plan.demand:,.0f} output tokens per second" if plan.demand else f"{plan.problem.batch} requests in flight"
    )
    whom = f"{plan.slo.percentile:g}% of requests"
    goal = f"To serve {asked} with at most {plan.slo.tpot_ms:g} ms per output token for {whom}"
    if split is None and alone is None:
        rule = RULES.get(plan.binding, plan.binding)
        if plan.binding == "time_limit":
            return f"{goal}, nothing was found in the time there was: {rule}."
        return f"{goal}, no pools up to {_searched(plan)} suffice. What stands in the way: {rule}."
    if split is None or alone is None:
        have, name, other = (split, "split", "unsplit") if split else (alone, "unsplit", "split")
        assert have is not None
        return f"{goal}, the model needs {_gpus(have.gpus)} {name}; {_none(plan, other)}."
    return f"{goal}, the model needs {_gpus(split.gpus)} split and {alone.gpus} unsplit{_difference(split, alone)}."


def _gpus(number: int) -> str:
    return f"{number} GPU{'s' if number > 1 else ''}"


def _none(plan: ScalePlan, name: str) -> str:
    """That one of the two ways has no deployment, and why, where the plan knows."""
    if name == "unsplit":
        return "unsplit there is no deployment that meets it"
    rule = RULES.get(plan.binding, plan.binding)
    found = "was found" if plan.binding == "time_limit" else "meets it"
    return f"split, no deployment {found}: {rule}"


def _difference(split: Offer, alone: Offer) -> str:
    fewer = alone.gpus - split.gpus
    if not fewer:
        return "; the better of the two is recommended"
    less = "fewer" if fewer > 0 else "more"
    said = f"; splitting takes {abs(fewer)} GPU{'s' if abs(fewer) > 1 else ''} {less} ({abs(fewer) / alone.gpus:.0%})"
    if split.usd_per_hour is not None and alone.usd_per_hour is not None:
        saved = alone.usd_per_hour - split.usd_per_hour
        said += f" and ${abs(saved):,.2f} per hour {'less' if saved > 0 else 'more'}"
    return said


def _searched(plan: ScalePlan) -> str:
    return f"{plan.problem.max_attention} attention and {plan.problem.max_experts} expert GPUs"


def _body(plan: ScalePlan, command: Sequence[str]) -> Iterator[Markup]:
    yield synthetic_notice(plan.routing)
    yield _cards(plan)
    if any(offers(plan)):
        yield section("Side by side", _comparison(plan))
        caption = "The parts of one decode step. What runs at the same time as something else hangs left of zero."
        yield section("Where the time goes", _drawn(plan, "breakdown", caption), _times(plan))
    yield section("Every size that was tried", _drawn(plan, "space", _space_caption(plan)), _rejections(plan))
    yield _neighbours(plan)
    yield _feasible(plan)
    caption = (
        "More expert GPUs share the experts of a batch, so the busiest one reads fewer. Bands: two standard errors."
    )
    yield section("How many experts a batch touches", _drawn(plan, "activation", caption))
    yield section("What the numbers rest on", listing(notes(plan)), _assumptions(plan), _provenance(plan))
    yield _memory(plan)
    yield section("The words", definitions(GLOSSARY))
    yield section("How to get this page again", origin(command))


def _cards(plan: ScalePlan) -> Markup:
    split, alone = offers(plan)
    ours, other = (split, alone) if plan.disaggregate else (alone, split)
    if ours is None:
        return Markup()
    without = "not found in time" if plan.binding == "time_limit" else "not feasible"
    names = ("unsplit", "split") if plan.disaggregate else ("split", "unsplit")
    lines = [("GPUs", str(ours.gpus), str(other.gpus) if other else "")]
    if ours.usd_per_hour is not None:
        lines.append(("per hour", f"${ours.usd_per_hour:,.2f}", _dollars(other and other.usd_per_hour)))
        lines.append(
            ("per million output tokens", _dollars(ours.usd_per_million), _dollars(other and other.usd_per_million))
        )
    tail = f"time per output token, {plan.slo.percentile:g}% of requests"
    lines.append((tail, f"{ours.tail_ms:.1f} ms", f"{other.tail_ms:.1f} ms" if other else ""))
    lines.append(("mean time per output token", f"{ours.tpot_ms:.1f} ms", f"{other.tpot_ms:.1f} ms" if other else ""))
    lines.append(
        ("output tokens/s per GPU", f"{ours.tokens_per_gpu_s:,.0f}", f"{other.tokens_per_gpu_s:,.0f}" if other else "")
    )
    return cards((what, mine, f"{names[0]}: {theirs or without}") for what, mine, theirs in lines)


def _dollars(value: float | None) -> str:
    return "" if value is None else f"${value:,.2f}"


def _comparison(plan: ScalePlan) -> Markup:
    """The rows of the text report that are about the whole deployment; the parts of a step follow further down."""
    lines = [(what, ours, alone, _change(ours, alone)) for what, ours, alone in rows(plan) if not what.startswith(" ")]
    caption = "The best split deployment beside the best unsplit one, by the same model of times."
    return table(caption, ("", "split", "unsplit", "difference"), lines)


def _change(ours: str, alone: str) -> str:
    """How much larger the first number is, in percent; nothing where one of them is no number."""
    try:
        return f"{float(ours) / float(alone) - 1:+.0%}"
    except (ValueError, ZeroDivisionError):
        return ""


def _times(plan: ScalePlan) -> Markup:
    bars = parts(plan)
    lines = [
        (name, *(f"{bar[part]:.2f}" for _, bar, _ in bars))
        for part, name in NAMES.items()
        if any(bar[part] for _, bar, _ in bars)
    ]
    lines.append(("less what runs at the same time", *(f"-{bar['overlap']:.2f}" for _, bar, _ in bars)))
    lines.append(("time per output token", *(f"{tpot:.2f}" for _, _, tpot in bars)))
    head = ("part", *(f"{name}, ms" for name, _, _ in bars))
    return table("The same in numbers.", head, lines, chosen=lines[-1][0])


def _drawn(plan: ScalePlan, what: str, caption: str) -> Markup:
    return picture(inline_svg(PICTURES[what](plan), what, f"{plan.verdict} {caption}"), caption)


def _space_caption(plan: ScalePlan) -> str:
    feasible = sum(not c.rejected for c in plan.candidates)
    said = f"{feasible:,} of {len(plan.candidates):,} pairs of pools meet every rule."
    return f"{said} Lines in the coloured area: output tokens per second and GPU." if feasible else said


def _rejections(plan: ScalePlan) -> Markup:
    lines = [(name, f"{count:,}", RULES.get(name, "")) for name, count in plan.rejections.items()]
    if not lines:
        return tag("p", "Every pair that was tried meets every rule." if plan.candidates else "No pair was tried.")
    return table(
        "Pairs that fell out, counted under the first rule they break.",
        ("rule", "pairs", "what it says"),
        lines,
        words=[2],
    )


def _neighbours(plan: ScalePlan) -> Markup:
    near = nearest(plan)
    if not near:
        return Markup()
    lines = [(f"{a}A{e}E", str(a + e), _why(plan, f"{a}A{e}E")) for a, e in near]
    caption = "The pairs next to the one that was chosen." if plan.pick else "The pairs that came closest."
    head = ("pair", "GPUs", "what became of it")
    return section("Why not a little more or less?", table(caption, head, lines, words=[2]))


def _why(plan: ScalePlan, name: str) -> str:
    """`plan.explain` without the name, which stands before it; with several types of GPU all of its lines."""
    said = plan.explain(name)
    return said if "\n" in said else said.partition(": ")[2]


def nearest(plan: ScalePlan) -> list[tuple[int, int]]:
    """The pairs (n_a, n_e) one instance away from the pick; without one, the five that broke the last rule by the least."""
    if plan.pick:
        a, e = plan.n_attention, plan.n_experts
        near = [(a - 1, e), (a, e - 1), (a + 1, e - 1), (a - 1, e + 1), (a + 1, e), (a, e + 1)]
        most = plan.problem.max_attention, plan.problem.max_experts
        return [(n_a, n_e) for n_a, n_e in near if 1 <= n_a <= most[0] and 1 <= n_e <= most[1]]
    stopped = [c for c in plan.candidates if c.rejected == plan.binding]
    stopped.sort(key=lambda c: (c.tpot_ms if c.tpot_ms == c.tpot_ms else 0.0, c.gpus))
    return list(dict.fromkeys((c.n_a, c.n_e) for c in stopped))[:5]


def _feasible(plan: ScalePlan) -> Markup:
    found = sorted(
        (c for c in plan.candidates if not c.rejected), key=lambda c: (c.cost(plan.objective), c.gpus, c.tpot_ms)
    )
    if not found:
        return Markup()
    priced = found[0].usd_per_hour is not None
    head = ("pair", "GPUs", *(["$ per hour"] if priced else []), "requests in flight", "TPOT, ms")
    head += (f"P{plan.slo.percentile:g}, ms", "tokens/s", "tokens/s per GPU")
    several = len(plan.problems) > 1
    lines = [_row(c, several) for c in found[:MOST_PAIRS]]
    shown = f"The {len(lines)} of least cost of {len(found):,}" if len(found) > len(lines) else f"All {len(lines)}"
    chosen = _named(plan.pick, several) if plan.pick else ""
    return section("Pairs that meet the objective", table(f"{shown}.", head, lines, chosen=chosen, sortable=True))


def _named(c: Candidate, several: bool) -> str:
    return f"{c.name} on {' + '.join(c.kinds)}" if several else c.name


def _row(c: Candidate, several: bool) -> tuple[str, ...]:
    usd = [] if c.usd_per_hour is None else [f"{c.usd_per_hour:,.2f}"]
    times = f"{c.tpot_ms:.1f}", f"{c.tail_ms:.1f}"
    return (
        _named(c, several),
        str(c.gpus),
        *usd,
        str(c.batch),
        *times,
        f"{c.throughput:,.0f}",
        f"{c.throughput / c.gpus:,.0f}",
    )


def _assumptions(plan: ScalePlan) -> Markup:
    latency = plan.problem.latency
    efficiency = latency.efficiency
    lines = [(ASSUMPTIONS.get(f.name, f.name), f"{getattr(efficiency, f.name):g}") for f in fields(efficiency)]
    for cluster in dict.fromkeys((latency.cluster, latency.expert_cluster)):
        lines += [
            (f"memory planned with, {cluster.gpu.name}", f"{cluster.usable_bytes / 2**30:.1f} GiB per GPU"),
            (f"GPUs per node, {cluster.gpu.name}", str(cluster.node_size)),
            (f"network, {cluster.gpu.name}", f"{cluster.inter_node_gbps:g} Gbit/s per GPU"),
        ]
    lines.append(("largest batch", str(plan.problem.max_batch)))
    return table("Assumptions; every one can be replaced by a measurement.", ("assumption", "value"), lines)


def _provenance(plan: ScalePlan) -> Markup:
    provenance = plan.problem.latency.provenance
    if not provenance:
        return Markup()
    return table("Where each time comes from.", ("part", "source"), list(provenance.items()), words=[1])


def _memory(plan: ScalePlan) -> Markup:
    """What fills a GPU of either pool; nothing where nothing is feasible."""
    if not plan.memory:
        return Markup()
    lines = [
        (f"{pool} GPU, {MEMORY.get(name, name)}", f"{bytes_ / 2**30:,.1f}")
        for pool, taken in (("attention", plan.memory["attention"]), ("expert", plan.memory["experts"]))
        for name, bytes_ in taken.items()
    ]
    return section("What fills the GPUs", table("Memory of one GPU of the split pools.", ("what", "GiB"), lines))
