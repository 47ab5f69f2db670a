"""A plan as a page for the person who pays: the verdict, the comparison, the pictures, what it all rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from janus.scale.html.page import Markup, cards, definitions, listing, origin, page, picture, section, table, tag
from janus.scale.html.words import ASSUMPTIONS, GLOSSARY, RULES, synthetic_notice
from janus.scale.offers import Offer, offers
from janus.scale.pictures import PICTURES
from janus.scale.pictures.breakdown import NAMES, parts
from janus.scale.pictures.canvas import inline_svg
from janus.scale.report import notes, rows

if TYPE_CHECKING:
    from janus.scale.result import ScalePlan
    from janus.scale.solve import Candidate

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
    kinds = dict.fromkeys(kind for offer in offers(plan) if offer for kind in offer.kinds)
    hardware = " and ".join(kinds) or problem.latency.cluster.gpu.name
    kicker = f"{problem.latency.model.name} on {hardware}: how many GPUs, and is splitting worth it?"
    body = [part for part in _body(plan, command) if part]
    tone = "bad" if not any(offers(plan)) else "good" if plan.disaggregate else "warn"
    return page(title=headline(plan), kicker=kicker, lead=lead(plan), tone=tone, body=body)


def headline(plan: ScalePlan) -> str:
    """The verdict in a few words."""
    split, alone = offers(plan)
    if split is None and alone is None:
        return "No deployment meets the objective"
    if plan.disaggregate:
        return f"Split the model: {plan.n_attention} attention + {plan.n_experts} expert GPUs"
    assert alone is not None
    return f"Do not split the model: {alone.gpus} GPU{'s serve' if alone.gpus > 1 else ' serves'} it whole"


def lead(plan: ScalePlan) -> str:
    """The verdict in plain sentences: what was asked, what each way needs, what the difference is."""
    split, alone = offers(plan)
    asked = (
        f"{plan.demand:,.0f} output tokens per second" if plan.demand else f"{plan.problem.batch} requests in flight"
    )
    tail = any(offer and offer.tail_ms is not None for offer in (split, alone))
    whom = f" for {plan.slo.percentile:g} % of requests" if tail else ""
    goal = f"To serve {asked} with at most {plan.slo.tpot_ms:g} ms per output token{whom}"
    if split is None and alone is None:
        rule = RULES.get(plan.binding, plan.binding)
        return f"{goal}, no pools up to {_searched(plan)} suffice. What stands in the way: {rule}."
    if split is None or alone is None:
        have, name, other = (split, "split", "unsplit") if split else (alone, "unsplit", "split")
        assert have is not None
        return f"{goal}, the model needs {have.gpus} GPUs {name}; {other} there is no deployment that meets it."
    return f"{goal}, the model needs {split.gpus} GPUs split and {alone.gpus} unsplit{_difference(split, alone)}."


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
    yield section("The words", definitions(GLOSSARY))
    yield section("How to get this page again", origin(command))


def _cards(plan: ScalePlan) -> Markup:
    split, alone = offers(plan)
    ours, other = (split, alone) if plan.disaggregate else (alone, split)
    if ours is None:
        return Markup()
    names = ("unsplit", "split") if plan.disaggregate else ("split", "unsplit")
    lines = [("GPUs", str(ours.gpus), str(other.gpus) if other else "")]
    if ours.usd_per_hour is not None:
        lines.append(("per hour", f"${ours.usd_per_hour:,.2f}", _dollars(other and other.usd_per_hour)))
        lines.append(
            ("per million output tokens", _dollars(ours.usd_per_million), _dollars(other and other.usd_per_million))
        )
    if ours.tail_ms is not None:
        tail = f"{other.tail_ms:.1f} ms" if other and other.tail_ms is not None else ""
        lines.append((f"time per output token, P{plan.slo.percentile:g}", f"{ours.tail_ms:.1f} ms", tail))
    lines.append(("mean time per output token", f"{ours.tpot_ms:.1f} ms", f"{other.tpot_ms:.1f} ms" if other else ""))
    lines.append(
        ("output tokens/s per GPU", f"{ours.tokens_per_gpu_s:,.0f}", f"{other.tokens_per_gpu_s:,.0f}" if other else "")
    )
    return cards((what, mine, f"{names[0]}: {theirs or 'not feasible'}") for what, mine, theirs in lines)


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
        return tag("p", "Every pair that was tried meets every rule.")
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
    lines = [(c.name, str(c.gpus), plan.explain(c.name).partition(": ")[2]) for c in near]
    caption = "The pairs next to the one that was chosen." if plan.pick else "The pairs that came closest."
    return section(
        "Why not a little more or less?", table(caption, ("pair", "GPUs", "what became of it"), lines, words=[2])
    )


def nearest(plan: ScalePlan) -> list[Candidate]:
    """The pairs one instance away from the pick; without a pick, the five that broke the last rule by the least."""
    if plan.pick:
        a, e = plan.n_attention, plan.n_experts
        wanted = [(a - 1, e), (a, e - 1), (a + 1, e - 1), (a - 1, e + 1), (a + 1, e), (a, e + 1)]
        found = {(c.n_a, c.n_e): c for c in plan.candidates}
        return [found[pair] for pair in wanted if pair in found]
    stopped = [c for c in plan.candidates if c.rejected == plan.binding]
    return sorted(stopped, key=lambda c: (c.tpot_ms if c.tpot_ms == c.tpot_ms else 0.0, c.gpus))[:5]


def _feasible(plan: ScalePlan) -> Markup:
    found = sorted((c for c in plan.candidates if not c.rejected), key=lambda c: (c.gpus, c.tpot_ms))
    if not found:
        return Markup()
    lines = [
        (c.name, str(c.gpus), str(c.batch), f"{c.tpot_ms:.1f}", f"{c.throughput:,.0f}", f"{c.throughput / c.gpus:,.0f}")
        for c in found[:MOST_PAIRS]
    ]
    head = ("pair", "GPUs", "requests in flight", "TPOT, ms", "tokens/s", "tokens/s per GPU")
    shown = (
        f"The {len(lines)} with the fewest GPUs of {len(found):,}" if len(found) > len(lines) else f"All {len(lines)}"
    )
    chosen = plan.pick.name if plan.pick else ""
    return section("Pairs that meet the objective", table(f"{shown}.", head, lines, chosen=chosen, sortable=True))


def _assumptions(plan: ScalePlan) -> Markup:
    latency = plan.problem.latency
    cluster, efficiency = latency.cluster, latency.efficiency
    lines = [(ASSUMPTIONS.get(f.name, f.name), f"{getattr(efficiency, f.name):g}") for f in fields(efficiency)]
    lines += [
        ("device memory planned with", f"{cluster.usable_bytes / 2**30:.1f} GiB per GPU"),
        ("GPUs per node", str(cluster.node_size)),
        ("network per GPU", f"{cluster.inter_node_gbps:g} Gbit/s"),
        ("largest batch", str(plan.problem.max_batch)),
    ]
    return table("Assumptions; every one can be replaced by a measurement.", ("assumption", "value"), lines)


def _provenance(plan: ScalePlan) -> Markup:
    provenance: dict[str, str] = getattr(plan.problem.latency, "provenance", {})
    if not provenance:
        return Markup()
    return table("Where each time comes from.", ("part", "source"), list(provenance.items()), words=[1])
