"""Routed experts as a model holds them: where they sit, what they compute, how they are read from disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.lazy import on_first_use

if TYPE_CHECKING:
    from janus.experts.registration import register

_HOME = {"register": ".registration"}

__all__ = ["register"]

__getattr__, __dir__ = on_first_use(__name__, _HOME)
