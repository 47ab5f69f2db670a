"""The report in a real browser: laid out, readable, silent, and gone afterwards.

Skipped where there is no Chromium; `make browser` installs it on Debian and Ubuntu.
"""

from dataclasses import replace

import chromium
import numpy as np
import pytest
from made_days import day

from janus.scale.html import days_page, plan_page
from janus.scale.search.solve import search

pytest.importorskip("matplotlib")
if chromium.found() is None:
    pytest.skip("no chromium on this machine: `make browser` installs it on Debian and Ubuntu", allow_module_level=True)

WIDTHS = (1280, 400)
BOXES = """
(function () {
  var box = function (node) {
    var r = node.getBoundingClientRect();
    return {tag: node.tagName, width: r.width, height: r.height, left: r.left, right: r.right};
  };
  return Array.from(document.querySelectorAll(%s)).map(box);
})()
"""
# Every run of text in a figure: its size on the page, and whether it sticks out of the figure.
WORDS = """
Array.from(document.querySelectorAll("figure svg text")).map(function (node) {
  var word = node.getBoundingClientRect(), figure = node.ownerSVGElement.getBoundingClientRect();
  return {word: node.textContent, width: word.width, height: word.height,
          out: Math.max(figure.left - word.left, word.right - figure.right, figure.top - word.top, word.bottom - figure.bottom)};
})
"""
CONTRAST = """
Array.from(document.querySelectorAll("h1, h2, p, li, td, th, dt, dd, span, figcaption, caption, figure svg text"))
  .filter(function (node) { return node.textContent.trim() && node.getBoundingClientRect().width; })
  .map(function (node) {
    var style = getComputedStyle(node), behind = node;
    while (behind && /, 0\\)$|transparent/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    return [node.ownerSVGElement ? style.fill : style.color, getComputedStyle(behind || document.body).backgroundColor,
            node.textContent.trim().slice(0, 40)];
  })
"""


@pytest.fixture(scope="module")
def pages(small_plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    candidates = search(replace(small_plan.problem, slo_ms=0.1))
    never = replace(small_plan, pick=None, candidates=candidates, colocated=None, placement=None)
    source = "synthetic routing like [recorded: <another> model]"
    routing = replace(small_plan.asked.routing, source=source)
    borrowed = replace(small_plan, asked=replace(small_plan.asked, routing=routing))
    long_words = ["janus", "plan", "/a/very/long/path/without/any/blank/" * 8]
    policies = [day("janus"), day("monolithic", (16,) * 4, (16,) * 4, colocated=True), day("a-policy-of-mine")]
    texts = {"plan": plan_page(borrowed, long_words), "infeasible": plan_page(never), "days": days_page(policies)}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def pipe():
    with chromium.browser() as running:
        yield running


@pytest.fixture(scope="module")
def opened(pipe, pages):
    """Any page at any width, opened once."""
    seen = {}

    def open_(name, width=1280, scheme="light"):
        key = name, width, scheme
        if key not in seen:
            seen[key] = chromium.Page(pipe, pages[name], width, scheme)
        return seen[key]

    return open_


NAMES = ("plan", "infeasible", "days")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_of_the_page(opened, name, width):
    page = opened(name, width)
    assert page.value("window.innerWidth") == width
    assert page.value("document.documentElement.scrollWidth") <= width
    for box in page.value(BOXES % "'h1, h2, p, li, pre, figure, .scroll, .cards'"):
        assert box["left"] >= 0, box
        assert box["right"] <= width, box


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_text_tables_and_figures_have_a_size(opened, name, width):
    page = opened(name, width)
    for kind, least_width, least_height in [("h1", 200, 20), ("table", 200, 60), ("figure svg", 340, 90)]:
        found = page.value(BOXES % f"'{kind}'")
        assert found, kind
        assert all(box["width"] >= least_width and box["height"] >= least_height for box in found), found
    rows = page.value(BOXES % "'tbody tr'")
    assert all(box["height"] >= 15 for box in rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_words_of_figures_are_inside_and_large_enough(opened, name, width):
    words = [word for word in opened(name, width).value(WORDS) if word["word"].strip()]
    assert len(words) > 10
    assert max(word["out"] for word in words) < 2, [word for word in words if word["out"] >= 2]
    # a letter is about 0.6 of the line's height; 8 pixels can be read
    assert min(min(word["height"], 100) for word in words) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_the_console_and_the_network_stay_silent(opened, name):
    for width in WIDTHS:
        page = opened(name, width)
        assert page.complaints() == []
        assert page.requests() == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_stands_out_from_what_is_behind_it(opened, name, scheme):
    pairs = opened(name, 1280, scheme).value(CONTRAST)
    assert len(pairs) > 50
    worst = min(pairs, key=lambda pair: contrast(*map(rgb, pair[:2])))
    assert contrast(*map(rgb, worst[:2])) >= 4.5, worst  # the web's rule for text (WCAG 2, level AA)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_screenshot_shows_something_in_the_right_light(opened, tmp_path, scheme):
    image = pytest.importorskip("PIL.Image")
    opened("plan", 1280, scheme).screenshot(tmp_path / "page.png")
    with image.open(tmp_path / "page.png") as shot:
        pixels = np.asarray(shot.convert("RGB"))
    assert pixels.shape[1] == 1280
    assert pixels.shape[0] > 2000
    assert len(np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]))) > 500  # colours
    background = pixels[5, 5].astype(int).sum()
    assert background > 700 if scheme == "light" else background < 120
    same = (pixels == pixels[5, 5]).all(axis=2)
    assert 0.3 < same.mean() < 0.95
    inked = ~same.reshape(-1, same.shape[1]).all(axis=1)
    gaps = np.diff(np.flatnonzero(inked))
    assert gaps.max() < 250  # no screenful without anything in it


def test_a_click_on_a_column_sorts_by_its_numbers(opened):
    page = opened("plan")
    numbers = (
        "Array.from(document.querySelectorAll('table.sortable tbody tr')).map(r => parseFloat(r.cells[3].textContent))"
    )
    before = page.value(numbers)
    button = "document.querySelectorAll('table.sortable thead button')[3]"
    page.value(f"{button}.click()")
    assert page.value(numbers) == sorted(before) != before
    page.value(f"{button}.click()")
    assert page.value(numbers) == sorted(before, reverse=True)
    states = "Array.from(document.querySelectorAll('table.sortable thead th')).map(h => h.getAttribute('aria-sort'))"
    assert page.value(states) == ["none"] * 3 + ["descending"] + ["none"] * 3


def test_it_prints_on_a_few_sheets(opened, tmp_path):
    opened("plan", 1280, "dark").printed(tmp_path / "page.pdf")
    data = (tmp_path / "page.pdf").read_bytes()
    assert data[:5] == b"%PDF-"
    assert 2 <= data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") <= 9


def test_the_checks_see_what_is_wrong(pipe, tmp_path):
    """A page that is too wide, asks for a file and complains; every look above has to notice."""
    (tmp_path / "bad.html").write_text(
        '<body style="margin:0"><h1 style="width:2000px">x</h1><img src="https://example.invalid/x.png" width=0>'
        "<p style='color:#ddd;background:#fff'>pale</p><script>console.error('seen'); nothing.here</script>"
    )
    page = chromium.Page(pipe, tmp_path / "bad.html", 400)
    assert page.value("document.documentElement.scrollWidth") == 2000
    assert page.value(BOXES % "'h1'")[0]["right"] == 2000
    assert page.requests() == ["https://example.invalid/x.png"]
    said = " ".join(page.complaints())
    assert "seen" in said
    assert "Uncaught" in said
    pale = page.value(CONTRAST)[-1]
    assert contrast(*map(rgb, pale[:2])) < 2


def test_the_policy_of_a_page_stops_foreign_scripts_and_addresses(pipe, pages, tmp_path):
    hurt = (
        pages["plan"]
        .read_text()
        .replace("</main>", "<script>window.hurt = 1</script><img src='https://x.invalid/y'></main>")
    )
    (tmp_path / "hurt.html").write_text(hurt)
    page = chromium.Page(pipe, tmp_path / "hurt.html")
    assert page.value("typeof window.hurt") == "undefined"
    assert sum("Content Security Policy" in line for line in page.complaints()) == 2


def test_a_closed_browser_leaves_nothing_behind(pages):
    before = chromium.left_behind()
    with chromium.browser() as running:
        chromium.Page(running, pages["infeasible"])
        assert len(chromium.left_behind()) > len(before)
    with pytest.raises(ZeroDivisionError), chromium.browser():
        1 / 0  # noqa: B018
    assert chromium.left_behind() == before


def rgb(colour):
    """'rgb(1, 2, 3)' or 'rgba(1, 2, 3, 0.5)' as numbers."""
    return [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")][:3]


def contrast(one, other):
    """Contrast ratio of WCAG 2: relative luminances of sRGB, 1 to 21."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
