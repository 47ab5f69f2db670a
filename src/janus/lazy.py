"""Public names that are loaded on first use, so that importing a package loads nothing heavy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

Resolve = Callable[[str], Any]
Listing = Callable[[], list[str]]


def on_first_use(package: str, home: Mapping[str, str], *more: str) -> tuple[Resolve, Listing]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: its ``__name__``.
        home: the module of each public name, absolute or relative (``".api"``); ``"."`` for a module of the package.
        more: names that the package defines itself and lists.

    Example:
        >>> resolve, listing = on_first_use("janus", {"JanusError": ".errors", "sched": "."})
        >>> resolve("JanusError").__name__, resolve("sched").__name__, listing()
        ('JanusError', 'janus.sched', ['JanusError', 'sched'])
    """

    def resolve(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home[name] == ".":
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(home[name], package), name)
        setattr(sys.modules[package], name, value)  # the next use finds it without asking here
        return value

    return resolve, lambda: sorted({*home, *more})
