"""Model + cluster + routing + SLO to a plan: how many attention and expert GPUs, and whether to split at all.

Works without torch and triton; names resolve on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus.scale.activation import ActivationTable
    from janus.scale.api import plan
    from janus.scale.hardware import Cluster, Hardware
    from janus.scale.latency import Breakdown, Efficiency, LatencyModel
    from janus.scale.model import ModelSpec
    from janus.scale.result import ScalePlan

_HOME = {
    "ActivationTable": "activation",
    "Breakdown": "latency",
    "Cluster": "hardware",
    "Efficiency": "latency",
    "Hardware": "hardware",
    "LatencyModel": "latency",
    "ModelSpec": "model",
    "ScalePlan": "result",
    "plan": "api",
}

__all__ = [
    "ActivationTable",
    "Breakdown",
    "Cluster",
    "Efficiency",
    "Hardware",
    "LatencyModel",
    "ModelSpec",
    "ScalePlan",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"janus.scale.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'janus.scale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
