"""Rows out to the experts and back: an `Exchange` over a `Topology`, whatever the sizes of the two pools.

Importing this module loads no torch; each name is loaded on first use, and `janus.comm.cost` never needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.lazy import on_first_use

if TYPE_CHECKING:
    from janus.comm.api import Exchange
    from janus.comm.collective import all_to_all
    from janus.comm.comparison import explain
    from janus.comm.cost import CostModel
    from janus.comm.group import rendezvous
    from janus.comm.terms import LinkTraffic, Step, Timeouts

_HOME = {
    "CostModel": ".cost",
    "Exchange": ".api",
    "LinkTraffic": ".terms",
    "Step": ".terms",
    "Timeouts": ".terms",
    "all_to_all": ".collective",
    "explain": ".comparison",
    "rendezvous": ".group",
}

__all__ = ["CostModel", "Exchange", "LinkTraffic", "Step", "Timeouts", "all_to_all", "explain", "rendezvous"]

__getattr__, __dir__ = on_first_use(__name__, _HOME)
