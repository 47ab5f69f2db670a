"""What all pictures share: the figure, its colours, and its way into a file or a page."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from janus.errors import JanusError

FORMATS = (".png", ".svg", ".pdf")
# Colours of text, lines and background. On a page they become its own, so that they follow its light or dark theme.
INK, MUTED, PAPER = "#1f2430", "#6b7281", "#fffffe"
THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", PAPER: "var(--paper)"}
ON_DATA = "#20242f"  # dark whatever the page: for lines and words on coloured areas
SPLIT, ALONE, LIMIT = "#3b7dd8", "#c9812a", "#d1344b"  # the split pools, the colocated ones, what may not be crossed
PARTS = {"attention": "#3b7dd8", "moe": "#2a9d8f", "comm": "#e9a23b", "other": "#8d99ae", "prompts": "#b07cc6"}
LINES = ("#3b7dd8", "#c9812a", "#2a9d8f", "#b07cc6", "#d1344b", "#8d99ae", "#7a9e3d")

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def check_format(path: str | Path) -> None:
    """Raise a `JanusError` for a path that does not end like a picture."""
    if Path(path).suffix not in FORMATS:
        raise JanusError("scale.plot", f"a picture ends in one of {', '.join(FORMATS)}; got {str(path)!r}")


@contextlib.contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """An empty matplotlib figure in the house style, inches; the style holds inside the block.

    Raises:
        JanusError: ``scale.plot`` without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise JanusError("scale.plot", "drawing needs matplotlib: pip install 'janus-moe[plot]'") from error
    with rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made


def write(made: Any, path: str | Path) -> None:
    """Save a figure; the ending names the format.

    Raises:
        JanusError: ``scale.plot`` for a path that cannot be written.
    """
    from matplotlib import rc_context

    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(path).suffix)  # same plan, same bytes
    try:
        with rc_context({"svg.hashsalt": "janus"}):
            made.savefig(path, dpi=130, metadata=metadata)
    except OSError as error:
        raise JanusError("scale.plot", f"cannot write {path}: {error.strerror or error}") from error


def inline_svg(made: Any, name: str, alt: str) -> str:
    """The figure as an `<svg>` element to put into a page: words stay words, colours are those of the page.

    Args:
        made: the figure.
        name: letters and digits, one per figure of the page; put before every id inside.
        alt: what it shows, for those who cannot see it; escaped here.
    """
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "janus"}):
        made.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in THEMED.items():
        text = text.replace(colour, variable)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    label = f'role="img" aria-labelledby="{name}-alt"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} {label}>' + (
        f'<title id="{name}-alt">{escape(alt)}</title>{body.rstrip()}'
    )
