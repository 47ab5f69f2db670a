"""Rows out to the experts and back: an `Exchange` over a `Topology`, whatever the sizes of the two pools.

Importing this module loads no torch; each name is loaded on first use, and `janus.comm.cost` never needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus.comm.api import Exchange
    from janus.comm.cost import CostModel
    from janus.comm.group import rendezvous
    from janus.comm.terms import LinkTraffic, Step, Timeouts

_HOME = {
    "CostModel": "cost",
    "Exchange": "api",
    "LinkTraffic": "terms",
    "Step": "terms",
    "Timeouts": "terms",
    "rendezvous": "group",
}

__all__ = ["CostModel", "Exchange", "LinkTraffic", "Step", "Timeouts", "rendezvous"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"janus.comm.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'janus.comm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
