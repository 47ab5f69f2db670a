"""Serving: the runner that every process makes, and the launcher that starts the processes.

Importing this package loads no torch: `DisaggregatedRunner` is resolved on first use, and
`janus.runner.launch` needs the standard library alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus.runner.api import DisaggregatedRunner

__all__ = ["DisaggregatedRunner"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        value = getattr(importlib.import_module("janus.runner.api"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'janus.runner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
