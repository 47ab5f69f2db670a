"""Model + cluster + routing + SLO to a plan: how many attention and expert GPUs, and whether to split at all.

Works without torch and triton; names resolve on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.lazy import on_first_use

if TYPE_CHECKING:
    from janus.scale.activation.table import ActivationTable
    from janus.scale.api import plan
    from janus.scale.days.simulation import simulate
    from janus.scale.days.timeline import Timeline
    from janus.scale.engine.config import EngineConfig
    from janus.scale.engine.model import EngineCoefficients, EngineModel
    from janus.scale.hardware import Cluster, Hardware
    from janus.scale.model import ModelSpec
    from janus.scale.online.autoscaler import Autoscaler
    from janus.scale.online.decisions import Decision, Observation
    from janus.scale.online.tuning import Tuning
    from janus.scale.plans.result import ScalePlan
    from janus.scale.plans.saved import SavedPlan
    from janus.scale.timing.latency import Breakdown, Efficiency, LatencyModel
    from janus.scale.timing.points import StepPoint, fitted_to

_HOME = {
    "ActivationTable": ".activation.table",
    "Autoscaler": ".online.autoscaler",
    "Breakdown": ".timing.latency",
    "Cluster": ".hardware",
    "Decision": ".online.decisions",
    "Efficiency": ".timing.latency",
    "EngineCoefficients": ".engine.model",
    "EngineConfig": ".engine.config",
    "EngineModel": ".engine.model",
    "Hardware": ".hardware",
    "LatencyModel": ".timing.latency",
    "ModelSpec": ".model",
    "Observation": ".online.decisions",
    "ScalePlan": ".plans.result",
    "SavedPlan": ".plans.saved",
    "Timeline": ".days.timeline",
    "StepPoint": ".timing.points",
    "fitted_to": ".timing.points",
    "Tuning": ".online.tuning",
    "plan": ".api",
    "simulate": ".days.simulation",
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
    "Timeline",
    "Tuning",
    "fitted_to",
    "plan",
    "simulate",
]

__getattr__, __dir__ = on_first_use(__name__, _HOME)
