"""Janus: serve Mixture-of-Experts models with attention and experts on separate GPU pools.

Importing this module loads nothing heavy; each public name is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.lazy import on_first_use

if TYPE_CHECKING:
    from janus import comm, experts, scale, sched
    from janus.comm import Exchange
    from janus.conversion import convert
    from janus.errors import JanusError, PeerLost
    from janus.layer import JanusMoELayer
    from janus.runner import DisaggregatedRunner
    from janus.scale import plan
    from janus.sched import Balancer, balance
    from janus.types import Placement, RequestTrace, RoutingTrace, Slo, Topology

__version__ = "0.1.0"

_HOME = {
    "JanusError": "janus.errors",
    "PeerLost": "janus.errors",
    "Placement": "janus.types",
    "RequestTrace": "janus.types",
    "RoutingTrace": "janus.types",
    "Slo": "janus.types",
    "Topology": "janus.types",
    "Balancer": "janus.sched",
    "balance": "janus.sched",
    "Exchange": "janus.comm",
    "plan": "janus.scale",
    "JanusMoELayer": "janus.layer",
    "convert": "janus.conversion",
    "DisaggregatedRunner": "janus.runner",
    "comm": ".",
    "experts": ".",
    "sched": ".",
    "scale": ".",
}

__all__ = [
    "Balancer",
    "DisaggregatedRunner",
    "Exchange",
    "JanusError",
    "JanusMoELayer",
    "PeerLost",
    "Placement",
    "RequestTrace",
    "RoutingTrace",
    "Slo",
    "Topology",
    "balance",
    "comm",
    "convert",
    "experts",
    "plan",
    "scale",
    "sched",
]

__getattr__, __dir__ = on_first_use(__name__, _HOME, "__version__")
