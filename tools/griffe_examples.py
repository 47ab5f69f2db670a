"""For the documentation build: the docstrings' `Example:` is the section that the parser calls `Examples:`."""

from __future__ import annotations

import re
from typing import Any

import griffe


class OneExample(griffe.Extension):
    """Without it the parser takes an example for running text, and its prompt for a quotation."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section once an object has been read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
