"""The parts a page is put together from. Every word from outside is escaped here, so that no caller has to remember.

A value of type `Markup` is HTML that was made here; a plain string is text.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from janus import __version__

PARTS = Path(__file__).parents[2] / "data" / "report"


class Markup(str):
    """HTML made by this module; what is no Markup is escaped before it gets into a page."""

    __slots__ = ()


def text(value: object) -> Markup:
    """The value as HTML that shows it; Markup passes through.

    Example:
        >>> text("<b> & 'c'")
        '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def tag(name: str, *inside: object, **attributes: str) -> Markup:
    """One element; `class_` and `aria_label` stand for class and aria-label.

    Example:
        >>> tag("p", "a < b", class_="lead")
        '<p class="lead">a &lt; b</p>'
    """
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{words}>{''.join(map(text, inside))}</{name}>")


def joined(*parts: Markup, between: str = "\n") -> Markup:
    """Several pieces as one; the empty ones leave no trace."""
    return Markup(between.join(part for part in parts if part))


def section(title: str, *inside: Markup) -> Markup:
    """A heading and what belongs under it."""
    return joined(tag("h2", title), *inside)


def listing(items: Iterable[object]) -> Markup:
    """A list with one point per item."""
    return tag("ul", *(tag("li", item) for item in items))


def cards(values: Iterable[tuple[str, str, str]]) -> Markup:
    """Large numbers: (what it is, the number, what to compare it with)."""

    def card(what: str, value: str, beside: str) -> Markup:
        names = ((what, "what"), (value, "value"), (beside, "beside"))
        return tag("li", *(tag("span", word, class_=name) for word, name in names))

    return tag("ul", *(card(*value) for value in values), class_="cards")


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    words: Sequence[int] = (),
    chosen: str = "",
    sortable: bool = False,
) -> Markup:
    """A table whose first column names the rows.

    Args:
        caption: what it holds, in a sentence.
        head: names of the columns.
        rows: cells as text.
        words: columns that hold sentences and are not aligned like numbers.
        chosen: first cell of the row to set in bold.
        sortable: a click on a column's name sorts by it.
    """

    def style(column: int) -> dict[str, str]:
        return {"class_": "words"} if column in words else {}

    def row(cells: Sequence[str]) -> Markup:
        first, *others = cells
        data = (tag("td", cell, **style(i)) for i, cell in enumerate(others, 1))
        return tag("tr", tag("th", first, scope="row"), *data, **({"class_": "chosen"} if first == chosen else {}))

    columns = tag("thead", tag("tr", *(tag("th", name, scope="col", **style(i)) for i, name in enumerate(head))))
    body = tag("tbody", *(Markup("\n" + row(cells)) for cells in rows))
    inside = tag("table", tag("caption", caption), columns, body, **({"class_": "sortable"} if sortable else {}))
    return _scrolled(inside, caption)


def picture(svg: str, caption: str) -> Markup:
    """An `<svg>` element from `janus.scale.pictures.canvas.inline_svg`, with a caption under it."""
    return tag("figure", _scrolled(Markup(svg), caption), tag("figcaption", caption))


def definitions(words: Mapping[str, str]) -> Markup:
    """Words and what they mean."""
    return tag("dl", *(joined(tag("dt", word), tag("dd", meaning)) for word, meaning in words.items()))


def _scrolled(inside: Markup, label: str) -> Markup:
    """What may be wider than a phone scrolls by itself, with the keyboard too."""
    return tag("div", inside, class_="scroll", role="region", aria_label=label, tabindex="0")


def origin(command: Sequence[str]) -> Markup:
    """How to get the page again: the command line, and the versions that ran it."""
    versions = f"janus {__version__}, Python {platform.python_version()}, NumPy {np.__version__}"
    if not command:
        return tag("p", f"Made from Python with {versions}.")
    return joined(tag("pre", tag("code", shlex.join(command))), tag("p", f"Made with {versions}."))


def page(*, title: str, kicker: str, lead: str, tone: str, body: Iterable[Markup]) -> str:
    """The whole document.

    Args:
        title: the verdict.
        kicker: what it is about, above the title.
        lead: the verdict in plain words.
        tone: ``"good"``, ``"warn"`` or ``"bad"``: the colour beside the verdict.
        body: sections.
    """
    script = (PARTS / "sort.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template((PARTS / "page.html").read_text()).substitute(
        title=text(title),
        kicker=text(kicker),
        lead=text(lead),
        tone=text(tone),
        body="\n".join(body),
        footer=text(f"janus {__version__}. The page loads nothing from elsewhere and sends nothing."),
        generator=text(f"janus {__version__}"),
        css=(PARTS / "page.css").read_text(),
        script=script,
        script_hash=f"sha256-{digest}",  # nothing but this script may run, whatever a name in the page contains
    )
