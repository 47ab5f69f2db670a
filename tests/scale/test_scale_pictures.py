"""Pictures show what the plan says: the numbers under every mark are compared with those of the plan."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_days import day

from janus import JanusError
from janus.scale.pictures import PICTURES, draw, draw_days
from janus.scale.pictures.activation import MOST_CURVES, activation, shown_pools
from janus.scale.pictures.breakdown import breakdown, parts
from janus.scale.pictures.canvas import INK, MUTED, PAPER, inline_svg
from janus.scale.pictures.days import days
from janus.scale.pictures.space import _edge, grids, per_gpu, space
from janus.scale.search.solve import CONSTRAINTS, search

pytest.importorskip("matplotlib")

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def infeasible(small_plan):
    candidates = search(replace(small_plan.problem, slo_ms=0.1))
    return replace(small_plan, pick=None, candidates=candidates, colocated=None, placement=None)


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("what", PICTURES)
@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_every_picture_in_every_format_twice_the_same(small_plan, tmp_path, what, ending):
    heads = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for name in ("a", "b"):
        small_plan.plot(tmp_path / f"{name}{ending}", what)
    first, second = ((tmp_path / f"{name}{ending}").read_bytes() for name in "ab")
    assert first.startswith(heads[ending])
    assert first == second


@pytest.mark.parametrize("what", PICTURES)
def test_an_infeasible_plan_has_pictures_too(infeasible, tmp_path, what):
    infeasible.plot(tmp_path / "p.png", what)
    assert (tmp_path / "p.png").stat().st_size > 2000


def test_nonsense_is_refused_before_anything_is_drawn(small_plan, tmp_path):
    for path, what, words in [("p.txt", "space", ".png, .svg, .pdf"), ("p.png", "pie", "activation")]:
        with pytest.raises(JanusError, match=words.replace(".", r"\.")) as error:
            draw(small_plan, tmp_path / path, what)
        assert error.value.code == "scale.plot"
    with pytest.raises(JanusError, match=r"scale\.plot.*no-folder"):
        draw(small_plan, tmp_path / "no-folder" / "p.png")
    with pytest.raises(JanusError, match=r"\.png"):
        draw_days([day("janus")], tmp_path / "p.bmp")
    assert list(tmp_path.iterdir()) == []


# ---- the search space


def test_the_grids_hold_every_candidate_once(small_plan):
    tpot, reasons = grids(small_plan)
    rate = per_gpu(small_plan)
    for c in small_plan.candidates:
        at = c.n_a - 1, c.n_e - 1
        if c.rejected:
            assert np.isnan(tpot[at])
            assert np.isnan(rate[at])
            assert CONSTRAINTS[int(reasons[at])] == c.rejected
        else:
            assert (tpot[at], rate[at]) == (c.tpot_ms, c.throughput / c.gpus)
            assert np.isnan(reasons[at])


def test_a_pair_that_was_not_evaluated_is_blank(small_plan):
    few = replace(small_plan, candidates=(small_plan.pick,))
    tpot, reasons = grids(few)
    assert np.isfinite(tpot).sum() == 1
    assert np.isnan(reasons).all()
    space(few)


def test_the_space_marks_the_pick_and_both_numbers_of_gpus(small_plan):
    figure = space(small_plan)
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    star = lines[f"pick {small_plan.pick.name}: {small_plan.gpus} GPUs, {small_plan.tpot_ms:.1f} ms"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (small_plan.n_experts, small_plan.n_attention)
    for label, gpus in [
        (f"as many GPUs as the pick: {small_plan.gpus}", small_plan.gpus),
        (f"as many GPUs as colocated: {small_plan.colocated.gpus}", small_plan.colocated.gpus),
    ]:
        assert set(np.add(lines[label].get_xdata(), lines[label].get_ydata())) == {gpus}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("expert instances", "attention instances")
    assert {f"rejected: {name}" for name in small_plan.rejections} <= set(labels(figure))


def test_an_infeasible_space_has_no_pick_and_no_scale(infeasible):
    figure = space(infeasible)
    assert len(figure.axes) == 1  # no colour bar
    assert not any(word in label for label in labels(figure) for word in ("pick", "GPUs", "tokens"))


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_the_edge_runs_wherever_a_feasible_pair_meets_another_or_the_border(rows, columns, data):
    cells = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    feasible = np.array(cells).reshape(rows, columns)
    drawn = []
    record = SimpleNamespace(
        hlines=lambda y, x0, x1, **_: drawn.extend(zip(x0, y, x1, y, strict=True)),
        vlines=lambda x, y0, y1, **_: drawn.extend(zip(x, y0, x, y1, strict=True)),
    )
    _edge(record, feasible)
    wanted = set()
    for r, c in np.argwhere(feasible):
        x, y = c + 1.0, r + 1.0  # the middle of the cell
        sides = {
            (-1, 0): (x - 0.5, y - 0.5, x + 0.5, y - 0.5), (1, 0): (x - 0.5, y + 0.5, x + 0.5, y + 0.5),
            (0, -1): (x - 0.5, y - 0.5, x - 0.5, y + 0.5), (0, 1): (x + 0.5, y - 0.5, x + 0.5, y + 0.5),
        }  # fmt: skip
        for (dr, dc), side in sides.items():
            inside = 0 <= r + dr < rows and 0 <= c + dc < columns
            if not (inside and feasible[r + dr, c + dc]):
                wanted.add(side)
    assert {tuple(map(float, line)) for line in drawn} == wanted
    assert len(drawn) == len(wanted)


def test_contours_need_four_known_neighbours(small_plan):
    """One row of pairs has no square to draw a line through, and must not fail."""
    one_row = replace(small_plan.problem, max_attention=1)
    flat = replace(small_plan, problem=one_row, candidates=search(one_row))
    assert "tokens/s per GPU" not in labels(space(flat))
    assert "tokens/s per GPU" in labels(space(small_plan))


# ---- where the time goes


def test_a_bar_begins_at_minus_the_overlap_and_ends_at_the_tpot(small_plan):
    hidden = replace(small_plan.pick.breakdown, overlap=1.5)
    small_plan = replace(small_plan, pick=replace(small_plan.pick, breakdown=hidden, tpot_ms=hidden.tpot))
    figure = breakdown(small_plan)
    bars = [patch for patch in figure.axes[0].patches if patch.get_hatch() is None]
    rows = {round(bar.get_y() + bar.get_height() / 2) for bar in bars}
    assert rows == {0, 1}
    for row, found in enumerate((small_plan.pick, small_plan.colocated)):
        mine = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2) == row and bar.get_width()]
        assert min(bar.get_x() for bar in mine) == pytest.approx(-found.breakdown.overlap)
        assert max(bar.get_x() + bar.get_width() for bar in mine) == pytest.approx(found.tpot_ms)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == [f"{small_plan.tpot_ms:.1f} ms", f"{small_plan.colocated.tpot_ms:.1f} ms"]
    assert f"SLO {small_plan.slo.tpot_ms:g} ms" in labels(figure)
    tails = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_ydata()[0] in (-0.28, 0.72)]
    assert tails == [small_plan.tpot_percentile_ms, small_plan.colocated.tail_ms]


def test_prompts_are_a_part_of_their_own(small_plan):
    slower = replace(small_plan.pick, tpot_ms=small_plan.pick.breakdown.tpot + 7)
    (_, bar, tpot), (_, other, _) = parts(replace(small_plan, pick=slower))
    assert bar["prompts"] == pytest.approx(7)
    assert other["prompts"] == pytest.approx(0, abs=1e-9)
    assert sum(bar.values()) - 2 * bar["overlap"] - bar["tail"] == pytest.approx(tpot)
    assert "prompts" in labels(breakdown(replace(small_plan, pick=slower)))
    assert "prompts" not in labels(breakdown(small_plan))


def test_only_what_is_feasible_has_a_bar(small_plan, infeasible):
    assert [name for name, _, _ in parts(small_plan)] == [f"split: {small_plan.pick.name}", f"colocated: {small_plan.colocated.copies} x EP{small_plan.colocated.width}"]  # fmt: skip
    assert [name for name, _, _ in parts(replace(small_plan, colocated=None))] == [f"split: {small_plan.pick.name}"]
    assert parts(infeasible) == []


# ---- activated experts


def test_the_curves_are_the_table_with_two_standard_errors(small_plan):
    table, slots = small_plan.problem.table, small_plan.problem.slots
    axes = activation(small_plan).axes[0]
    curves = {line.get_label(): line for line in axes.get_lines()}
    bands = axes.collections
    pools = shown_pools(table, slots, small_plan.n_experts)
    assert len(bands) == len(pools)
    for n_e, band in zip(pools, bands, strict=True):
        name = f"{n_e} expert instances" + (" (pick)" if n_e == small_plan.n_experts else "")
        mean = [table.at(n_e, B, slots).a_max for B in table.batch_sizes]
        assert curves[name].get_ydata().tolist() == mean
        low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
        error = [2 * table.stderr(n_e, B, slots) for B in table.batch_sizes]
        assert low == pytest.approx(min(m - e for m, e in zip(mean, error, strict=True)))
        assert high == pytest.approx(max(m + e for m, e in zip(mean, error, strict=True)))
    bound = curves[f"analytic bound, {small_plan.n_experts} instances"].get_ydata()
    assert bound.tolist() == [table.bound(small_plan.n_experts, B, slots) for B in table.batch_sizes]
    assert curves[f"C = {slots} slots per instance"].get_ydata()[0] == slots


@given(st.sets(st.integers(1, 64), min_size=1, max_size=20), st.data())
def test_few_pools_are_shown_the_picked_one_among_them(sizes, data):
    picked = data.draw(st.sampled_from([*sorted(sizes), 0]))
    table = SimpleNamespace(rows={(n, 4): None for n in sizes} | {(n, 5): None for n in (99, 100)})
    shown = shown_pools(table, 4, picked)
    assert shown == sorted(set(shown))
    assert set(shown) <= sizes
    assert len(shown) == min(len(sizes), MOST_CURVES)
    assert picked in shown or picked == 0
    if picked == 0:
        assert (shown[0], shown[-1]) == (min(sizes), max(sizes))


# ---- days


def test_a_day_alone_shows_its_pools_and_several_show_their_gpus():
    alone, several = days([day("janus")]), days([day("janus"), day("static", (9, 9, 9, 9), (6, 6, 6, 6))])
    assert {"attention instances", "expert instances", "GPUs paid"} <= set(labels(alone))
    assert {"janus", "static"} <= set(labels(several))
    static = next(line for line in several.axes[0].get_lines() if line.get_label() == "static")
    assert static.get_ydata().tolist() == [15.0] * 5
    assert static.get_xdata().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]  # hours: the end of the last window too


def test_a_colocated_day_alone_counts_every_gpu_once():
    figure = days([day("monolithic", (16, 16, 32, 16), (16, 16, 32, 16), colocated=True)])
    assert "attention instances" not in labels(figure)
    assert figure.axes[0].get_lines()[0].get_ydata().tolist() == [16, 16, 32, 16, 16]


def test_the_panels_of_a_day_hold_its_numbers(tmp_path):
    one = day("janus", attainment=0.97)
    _, asked, speed, kept = days([one]).axes
    assert asked.get_lines()[0].get_ydata().tolist()[:-1] == one.demand.tolist()
    assert np.array_equal(speed.get_lines()[0].get_ydata()[:-1], one.tpot_ms, equal_nan=True)
    assert kept.get_lines()[0].get_ydata().tolist()[:-1] == [97.0] * 4
    assert [axes.get_lines()[-1].get_ydata()[0] for axes in (speed, kept)] == [50, 99]  # what was promised
    draw_days([one], tmp_path / "d.svg")
    assert (tmp_path / "d.svg").stat().st_size > 2000


# ---- on a page


def test_a_figure_on_a_page_is_well_formed_and_named(small_plan):
    text = inline_svg(space(small_plan), "one", "what <it> shows & says")
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    title = root.find(f"{SVG}title")
    assert (title.text, title.get("id")) == ("what <it> shows & says", root.get("aria-labelledby"))
    assert root.get("width") is None  # its box says its shape, the page its size
    words = " ".join(t.text or "" for t in root.iter(f"{SVG}text"))
    assert "expert instances" in words  # words are words, not outlines


def test_two_figures_on_a_page_share_no_id_and_keep_their_references(small_plan):
    texts = [inline_svg(PICTURES[what](small_plan), what, what) for what in PICTURES]
    seen = [{e.get("id") for e in ET.fromstring(text).iter() if e.get("id")} for text in texts]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
    for what, text, ids in zip(PICTURES, texts, seen, strict=True):
        root = ET.fromstring(text)
        links = [e.get("{http://www.w3.org/1999/xlink}href") for e in root.iter()]
        inside = {link[1:] for link in links if link and link.startswith("#")}
        clips = {e.get("clip-path")[5:-1] for e in root.iter() if e.get("clip-path")}
        assert inside | clips <= ids, what
        assert clips


def test_a_figure_on_a_page_has_the_colours_of_the_page(small_plan):
    text = inline_svg(breakdown(small_plan), "x", "x")
    assert "var(--ink)" in text
    assert not any(colour in text for colour in (INK, MUTED, PAPER))
