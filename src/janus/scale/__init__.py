"""Model + cluster + routing + SLO to a plan: how many attention and expert GPUs, and whether to split at all.

Works without torch and triton; names resolve on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.lazy import on_first_use

if TYPE_CHECKING:
    from janus.scale.activation import ActivationTable
    from janus.scale.api import plan
    from janus.scale.decisions import Decision, Observation
    from janus.scale.hardware import Cluster, Hardware
    from janus.scale.latency import Breakdown, Efficiency, LatencyModel
    from janus.scale.model import ModelSpec
    from janus.scale.points import StepPoint, fitted_to
    from janus.scale.result import ScalePlan
    from janus.scale.simulation import simulate
    from janus.scale.timeline import Timeline

_HOME = {
    "ActivationTable": ".activation",
    "Breakdown": ".latency",
    "Cluster": ".hardware",
    "Decision": ".decisions",
    "Efficiency": ".latency",
    "Hardware": ".hardware",
    "LatencyModel": ".latency",
    "ModelSpec": ".model",
    "Observation": ".decisions",
    "ScalePlan": ".result",
    "Timeline": ".timeline",
    "StepPoint": ".points",
    "fitted_to": ".points",
    "plan": ".api",
    "simulate": ".simulation",
}

__all__ = [
    "ActivationTable",
    "Breakdown",
    "Cluster",
    "Decision",
    "Efficiency",
    "Hardware",
    "LatencyModel",
    "ModelSpec",
    "Observation",
    "ScalePlan",
    "StepPoint",
    "Timeline",
    "fitted_to",
    "plan",
    "simulate",
]

__getattr__, __dir__ = on_first_use(__name__, _HOME)
