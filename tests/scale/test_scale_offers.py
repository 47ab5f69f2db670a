"""Both answers of a plan in the same terms, and simulated days ranked."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_days import day

from janus.scale.days.scores import best, kept, rows
from janus.scale.plans.offers import offers
from janus.scale.plans.report import rows as compared


def with_price(p, usd):
    pick, alone = p.pick, p.colocated
    return replace(
        p, pick=replace(pick, usd_per_hour=usd * pick.gpus), colocated=replace(alone, usd_per_hour=usd * alone.gpus)
    )  # fmt: skip


def test_the_offers_are_the_plan_s_two_answers(small_plan):
    split, alone = offers(small_plan)
    c = small_plan.colocated
    assert (split.name, split.gpus, split.batch, split.tpot_ms) == (
        small_plan.pick.name, small_plan.gpus, small_plan.batch, small_plan.tpot_ms,
    )  # fmt: skip
    assert (alone.name, alone.gpus, alone.batch) == (f"{c.copies} x EP{c.width}", c.gpus, c.batch * c.copies)
    assert split.tokens_per_gpu_s == pytest.approx(small_plan.tokens_per_gpu_s)
    assert alone.tokens_per_gpu_s == pytest.approx(c.tokens_per_gpu_s)
    assert split.kinds == alone.kinds == ("toy",)
    assert (split.tail_ms, alone.tail_ms) == (small_plan.tpot_percentile_ms, c.tail_ms)


def test_without_prices_there_are_no_dollars(small_plan):
    assert [(o.usd_per_hour, o.usd_per_million) for o in offers(small_plan)] == [(None, None)] * 2
    assert not any("dollars" in what for what, _, _ in compared(small_plan))


def test_dollars_are_gpus_times_price_and_per_million_tokens(small_plan):
    priced = with_price(small_plan, 2.0)
    (split, _), said = offers(priced), {what: ours for what, ours, _ in compared(priced)}
    assert split.usd_per_hour == 2.0 * priced.gpus
    assert split.usd_per_million == pytest.approx(2.0 * priced.gpus / (priced.throughput * 3600) * 1e6)
    assert said["dollars per hour"] == f"{2.0 * priced.gpus:.2f}"
    assert said["dollars per million tokens"] == f"{split.usd_per_million:.2f}"


def test_what_is_infeasible_offers_nothing(small_plan):
    assert offers(replace(small_plan, pick=None))[0] is None
    assert offers(replace(small_plan, colocated=None))[1] is None
    none = replace(small_plan, pick=None, colocated=None)
    assert all(ours == alone == "-" for what, ours, alone in compared(none) if what != "expert slots per GPU")


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.5, 0.98, 0.99, 1.0])), min_size=1, max_size=6))
def test_the_best_day_is_the_cheapest_that_keeps_its_promise_else_the_one_that_misses_least(made):
    days = [day(f"p{i}", (n, n), (n, n), attainment=a) for i, (n, a) in enumerate(made)]
    winner = best(days)
    good = [d for d in days if kept(d)]
    assert kept(winner) == bool(good)
    if good:
        assert winner.gpu_hours == min(d.gpu_hours for d in good)
    else:
        assert winner.attainment == max(d.attainment for d in days)


def test_dollars_decide_where_there_are_some():
    dear, cheap = day("few dear ones", usd=90.0), day("many cheap ones", (9, 9, 9, 9), usd=50.0)
    assert best([dear, cheap]) is cheap
    assert best([replace(dear, usd=None), replace(cheap, usd=None)]).policy == dear.policy


def test_the_rows_of_days():
    plain = rows([day("janus"), day("static", (9, 9, 9, 9), (6, 6, 6, 6))])
    assert plain[0] == ("policy", "GPU-hours", "against the best", "attainment", "GPUs, fewest", "most")
    assert plain[1] == ("janus", "8.5", "+0.0%", "100.00%", "7", "11")
    assert plain[2] == ("static", "15.0", "+76.5%", "100.00%", "15", "15")
    priced = rows([day("janus", usd=21.25), day("static", efficiency=0.8)])
    assert priced[0][2] == "dollars"
    assert priced[0][-1] == "assumed efficiency"
    assert [line[2] for line in priced[1:]] == ["21.25", "-"]
    assert [line[-1] for line in priced[1:]] == ["1", "0.8"]
    assert len({len(line) for line in priced}) == 1
    assert np.isfinite(day("janus").gpu_hours)
