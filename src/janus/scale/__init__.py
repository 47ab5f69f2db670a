"""Model + cluster + routing + SLO to a plan: how many attention and expert GPUs, and whether to split at all.

Works without torch and triton; names resolve on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.lazy import on_first_use

if TYPE_CHECKING:
    from janus.scale.activation import ActivationTable
    from janus.scale.api import plan
    from janus.scale.autoscaler import Autoscaler
    from janus.scale.decisions import Decision, Observation
    from janus.scale.engine import EngineCoefficients, EngineModel
    from janus.scale.engine_config import EngineConfig
    from janus.scale.hardware import Cluster, Hardware
    from janus.scale.latency import Breakdown, Efficiency, LatencyModel
    from janus.scale.model import ModelSpec
    from janus.scale.points import StepPoint, fitted_to
    from janus.scale.result import ScalePlan
    from janus.scale.saved import SavedPlan
    from janus.scale.tuning import Tuning

_HOME = {
    "ActivationTable": ".activation",
    "Autoscaler": ".autoscaler",
    "Breakdown": ".latency",
    "Cluster": ".hardware",
    "Decision": ".decisions",
    "Efficiency": ".latency",
    "EngineCoefficients": ".engine",
    "EngineConfig": ".engine_config",
    "EngineModel": ".engine",
    "Hardware": ".hardware",
    "LatencyModel": ".latency",
    "ModelSpec": ".model",
    "Observation": ".decisions",
    "ScalePlan": ".result",
    "SavedPlan": ".saved",
    "StepPoint": ".points",
    "fitted_to": ".points",
    "Tuning": ".tuning",
    "plan": ".api",
}

__all__ = [
    "ActivationTable",
    "Autoscaler",
    "Breakdown",
    "Cluster",
    "Decision",
    "Efficiency",
    "EngineCoefficients",
    "EngineConfig",
    "EngineModel",
    "Hardware",
    "LatencyModel",
    "ModelSpec",
    "Observation",
    "SavedPlan",
    "ScalePlan",
    "StepPoint",
    "Tuning",
    "fitted_to",
    "plan",
]

__getattr__, __dir__ = on_first_use(__name__, _HOME)
