"""The page of a plan: the right words, nothing that could hurt or phone home, and what a reader with other eyes needs."""

import base64
import hashlib
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from made_days import day
from pages import Parsed, addresses

from janus import JanusError
from janus.scale import plan
from janus.scale.html import days_page, plan_page
from janus.scale.html.page import Markup, page, table, tag
from janus.scale.html.plan import MOST_PAIRS, headline, lead, nearest
from janus.scale.html.words import GLOSSARY, RULES
from janus.scale.plans.report import notes
from janus.scale.search.solve import CONSTRAINTS, search

pytest.importorskip("matplotlib")

HOSTILE = "<script>alert('x')</script>\" onload=\"y & \u202e`${z}`"


@pytest.fixture(scope="module")
def infeasible(small_plan):
    candidates = search(replace(small_plan.problem, slo_ms=0.1))
    return replace(small_plan, pick=None, candidates=candidates, colocated=None, placement=None)


def with_latency(p, **changed):
    """The plan with other fields of its model of times."""
    latency = object.__new__(type(p.problem.latency))
    latency.__dict__.update(p.problem.latency.__dict__ | changed)
    return replace(p, problem=replace(p.problem, latency=latency))


def routed(p, source):
    """The plan with other words about its routing."""
    return replace(p, asked=replace(p.asked, routing=replace(p.asked.routing, source=source)))


def renamed(p, where, name):
    """The plan with another name of its model, its GPUs or its routing."""
    if where == "routing":
        return routed(p, name)
    if where == "model":
        return with_latency(p, model=replace(p.problem.latency.model, name=name))
    return replace(p, pick=replace(p.pick, kinds=(name, name)), colocated=replace(p.colocated, kind=name))


def priced(p, usd=2.5):
    pick = replace(p.pick, usd_per_hour=usd * p.pick.gpus)
    candidates = tuple(replace(c, usd_per_hour=usd * c.gpus) for c in p.candidates)
    return replace(
        p, pick=pick, candidates=candidates, colocated=replace(p.colocated, usd_per_hour=usd * p.colocated.gpus)
    )


@pytest.fixture(scope="module")
def parsed(small_plan):
    return Parsed(plan_page(small_plan, ["janus", "plan", "a model", "--slo-ms", "20"]))


# ---- what it says


def test_the_verdict_comes_first_and_in_plain_words(small_plan, parsed):
    assert parsed.under("h1") == [headline(small_plan)]
    assert parsed.words.index(lead(small_plan)) < parsed.words.index("Side by side")
    assert "3,000 output tokens per second with at most 20 ms per output token" in lead(small_plan)


def test_the_words_follow_the_verdict(small_plan, infeasible):
    c = small_plan.colocated
    cases = {
        "good": replace(small_plan, colocated=replace(c, width=small_plan.gpus + 2, copies=1)),
        "warn": replace(small_plan, colocated=replace(c, width=1, copies=1)),
        "bad": infeasible,
    }
    said = {tone: Parsed(plan_page(p)) for tone, p in cases.items()}
    assert all(said[tone].all("header")[0]["class"] == tone for tone in cases)
    split = f"Split the model: {small_plan.n_attention} attention + {small_plan.n_experts} expert GPUs"
    assert said["good"].under("h1") == [split]
    assert said["warn"].under("h1") == ["Do not split the model: 1 GPU serves it whole"]
    assert said["bad"].under("h1") == ["No deployment meets the objective"]
    assert f"splitting takes 2 GPUs fewer ({2 / (small_plan.gpus + 2):.0%})" in said["good"].words
    assert f"splitting takes {small_plan.gpus - 1} GPU" in said["warn"].words
    assert RULES["slo"] in lead(infeasible)
    only = replace(small_plan, colocated=None)
    assert "unsplit there is no deployment that meets it" in lead(only)
    never = replace(infeasible, colocated=c)
    assert headline(never).startswith(f"Do not split the model: {c.gpus} GPU")
    assert lead(never).endswith(f"split, no deployment meets it: {RULES['slo']}.")
    even = replace(small_plan, colocated=replace(c, width=small_plan.gpus, copies=1, tpot_ms=1.0))
    assert lead(even).endswith("; the better of the two is recommended.")
    asked = replace(small_plan.asked, demand=None)
    fixed = replace(small_plan, asked=asked, problem=replace(small_plan.problem, demand=None, batch=17))
    assert "To serve 17 requests in flight" in lead(fixed)


def test_every_line_of_the_comparison_has_both_sides_and_their_difference(small_plan, parsed):
    cells = parsed.under("table")
    at = cells.index("tokens/s/GPU")
    ours, alone = f"{small_plan.tokens_per_gpu_s:.0f}", f"{small_plan.colocated.tokens_per_gpu_s:.0f}"
    assert cells[at + 1 : at + 4] == [ours, alone, f"{float(ours) / float(alone) - 1:+.0%}"]
    assert cells[cells.index("GPUs") :][1:3] == [str(small_plan.gpus), str(small_plan.colocated.gpus)]


def test_prices_appear_when_there_are_some(small_plan, parsed):
    assert "$" not in parsed.words
    p = priced(small_plan)
    words = Parsed(plan_page(p)).words
    hourly = 2.5 * p.gpus
    assert f"${hourly:,.2f}" in words
    assert f"${hourly / (p.throughput * 3600) * 1e6:,.2f}" in words
    assert "$ per hour" in words
    saved = 2.5 * abs(p.colocated.gpus - p.gpus)
    if saved:
        assert f"and ${saved:,.2f} per hour" in lead(p)


def test_the_neighbours_and_the_feasible_pairs_are_told(small_plan, parsed):
    a, e = small_plan.n_attention, small_plan.n_experts
    for n_a, n_e in nearest(small_plan):
        assert small_plan.explain(f"{n_a}A{n_e}E").partition(": ")[2] in parsed.words
        assert abs(n_a - a) <= 1
        assert abs(n_e - e) <= 1
    assert (a, e) not in nearest(small_plan)
    assert (a, e + 1) in nearest(small_plan)
    feasible = sorted((c for c in small_plan.candidates if not c.rejected), key=lambda c: (c.gpus, c.tpot_ms))
    for c in feasible[:MOST_PAIRS]:
        assert c.name in parsed.under("th")
    bold = [attrs for attrs in parsed.all("tr") if attrs.get("class") == "chosen"]
    assert len(bold) == 2  # the pick, and the sum of the parts of a step


def test_an_infeasible_page_shows_who_came_closest(infeasible):
    near = nearest(infeasible)
    assert 0 < len(near) <= 5
    found = {(c.n_a, c.n_e): c.tpot_ms for c in infeasible.candidates if c.rejected == "slo"}
    assert [found[pair] for pair in near] == sorted(found.values())[:5]
    words = Parsed(plan_page(infeasible)).words
    assert infeasible.explain("{}A{}E".format(*near[0])).partition(": ")[2] in words
    assert "Pairs that meet the objective" not in words
    assert "Side by side" not in words


def test_what_the_numbers_rest_on_is_all_there(small_plan, parsed):
    for note in notes(small_plan):
        assert note in parsed.words
    for name, count in small_plan.rejections.items():
        assert f"{name} {count} {RULES[name]}" in parsed.words
    for word in GLOSSARY:
        assert word in parsed.under("dt")
    assert "share of the peak memory bandwidth that a read reaches" in parsed.words
    assert set(CONSTRAINTS) <= set(RULES)


def test_synthetic_routing_is_warned_of_before_any_number(small_plan):
    borrowed = routed(small_plan, "synthetic routing like [recorded: gpt]")
    found = Parsed(plan_page(borrowed))
    notices = [attrs for attrs in found.all("p") if attrs.get("class") == "notice"]
    assert len(notices) == 1
    assert found.words.index("Synthetic routing.") < found.words.index("mean time per output token")
    assert "Synthetic routing" not in Parsed(plan_page(small_plan)).words


def test_where_times_come_from_is_told_when_the_model_of_times_knows(small_plan):
    sources = {"moe": "measured: <on this machine>", "comm": "roofline: peaks"}
    measured = with_latency(small_plan)
    latency = measured.problem.latency
    latency.__class__ = type("Measured", (type(latency),), {"provenance": sources})

    words = Parsed(plan_page(measured)).words
    assert "moe measured: <on this machine>" in words
    assert "Times: moe measured, comm roofline." in words
    assert "Times: roofline, not measured." in Parsed(plan_page(small_plan)).words


def test_it_can_be_made_again(small_plan, parsed):
    assert "janus plan 'a model' --slo-ms 20" in parsed.words
    assert plan_page(small_plan, ["janus"]) == plan_page(small_plan, ["janus"])
    assert "Made from Python" in Parsed(plan_page(small_plan)).words


# ---- what it must not do


def test_a_page_fetches_nothing_and_runs_only_its_own_script(parsed, small_plan):
    assert addresses(parsed) == []
    text = plan_page(small_plan)
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    (policy,) = (m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"


@pytest.mark.parametrize("where", ["model", "gpu", "routing", "command"])
def test_hostile_names_stay_text(small_plan, where):
    hurt = "synthetic routing " + HOSTILE if where == "routing" else HOSTILE
    command = ["janus", HOSTILE] if where == "command" else []
    found = Parsed(plan_page(small_plan if where == "command" else renamed(small_plan, where, hurt), command))
    assert len(found.all("script")) == 1
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    assert "alert('x')" in found.words or "alert" in found.words


def test_hostile_policies_stay_text():
    found = Parsed(days_page([day(HOSTILE, basis={"model": HOSTILE, "routing": f"synthetic routing {HOSTILE}"})]))
    assert len(found.all("script")) == 1
    assert HOSTILE in found.words


def test_whatever_is_no_markup_is_escaped():
    assert tag("p", "<b>", Markup("<i>x</i>"), class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<i>x</i></p>'
    found = Parsed(table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, HOSTILE)], chosen=HOSTILE))
    assert found.words.count("alert") == 4
    assert found.all("script") == []
    whole = Parsed(page(title=HOSTILE, kicker=HOSTILE, lead=HOSTILE, tone='"x', body=[]))
    assert len(whole.all("script")) == 1
    assert whole.all("header") == [{"class": '"x'}]


# ---- for every reader


def test_headings_tables_and_figures_can_be_read_without_seeing(parsed):
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    tables = len(parsed.all("table"))
    assert tables == len(parsed.all("caption")) >= 5
    assert all(attrs.get("scope") in ("row", "col") for attrs in parsed.all("th"))
    svgs, figures = parsed.all("svg"), parsed.all("figure")
    assert len(svgs) == len(figures) == len(parsed.all("figcaption")) == 3
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(svg["role"] == "img" and svg["aria-labelledby"] in ids for svg in svgs)
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in parsed.all("div") if box["class"] == "scroll")
    assert parsed.all("html") == [{"lang": "en"}]
    assert [a["href"] for a in parsed.all("a")] == ["#main"]


def test_it_prints_and_follows_the_reader_s_theme(small_plan):
    text = plan_page(small_plan)
    for rule in ("@media print", "prefers-color-scheme: dark", "@page", "width=device-width"):
        assert rule in text


# ---- files


def test_report_writes_the_page(small_plan, tmp_path):
    small_plan.report(tmp_path / "out.html", ["janus", "plan"])
    assert (tmp_path / "out.html").read_text() == plan_page(small_plan, ["janus", "plan"])
    assert len((tmp_path / "out.html").read_bytes()) < 300_000
    with pytest.raises(JanusError, match=r"scale\.report.*no-folder"):
        small_plan.report(tmp_path / "no-folder" / "out.html")


def test_a_plan_of_a_large_space_stays_small(olmoe, small_cluster, skewed):
    wide = plan(
        olmoe, small_cluster, demand=3000, slo=20, trace=skewed(1, 64), context=400, max_attention=64, max_experts=20,
        max_batch=128,
    )  # fmt: skip
    assert len(plan_page(wide)) < 300_000


# ---- days


def test_the_page_of_one_day(tmp_path):
    found = Parsed(days_page([day("janus", attainment=0.995)], ["janus", "simulate"]))
    assert found.under("h1") == ["The policy janus keeps the objective with 8 GPU-hours"]
    assert "99.5% of requests are as fast as promised" in found.words
    assert "50 ms per output token for 99% of requests" in found.words
    assert len(found.all("svg")) == 1
    assert addresses(found) == []
    assert "janus simulate" in found.under("pre")


def test_the_page_of_several_policies_names_the_cheapest_that_keeps_its_promise():
    policies = [
        day("janus"), day("static", (4, 4, 4, 4), (8, 8, 8, 8)), day("cheap", (1, 1, 1, 1), (5, 5, 5, 5), attainment=0.5)
    ]  # fmt: skip
    found = Parsed(days_page(policies))
    assert found.under("h1") == ["The policy janus keeps the objective at the least cost: 8 GPU-hours"]
    assert "static uses 12 GPU-hours (+41%) and serves 100.0% in time" in found.words
    assert "cheap uses 6 GPU-hours (-29%) and serves 50.0% in time" in found.words
    assert len(found.all("svg")) == 2  # all of them, and the pools of the best
    whole = day("monolithic", (1, 1, 1, 1), (1, 1, 1, 1), colocated=True)
    assert len(Parsed(days_page([*policies, whole])).all("svg")) == 1


def test_a_day_that_misses_the_objective_says_so():
    found = Parsed(days_page([day("janus", attainment=0.9), day("static", attainment=0.8)]))
    assert found.under("h1") == ["Every policy misses the objective; janus comes closest with 8 GPU-hours"]
    assert found.all("header")[0]["class"] == "warn"
    alone = Parsed(days_page([day("janus", attainment=0.9, usd=12.0)]))
    assert alone.under("h1") == ["The objective is missed; janus comes closest with 8 GPU-hours"]
    assert "$12.00" in alone.words
