"""Serving: the runner that every process makes, and the launcher that starts the processes.

Importing this package loads no torch: `DisaggregatedRunner` is resolved on first use, and
`janus.runner.launch` needs the standard library alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.lazy import on_first_use

if TYPE_CHECKING:
    from janus.runner.api import DisaggregatedRunner

__all__ = ["DisaggregatedRunner"]

__getattr__, __dir__ = on_first_use(__name__, {"DisaggregatedRunner": ".api"})
