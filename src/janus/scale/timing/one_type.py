"""The model of times of two pools' GPUs, for a deployment that is not split."""

from __future__ import annotations

from janus.scale.hardware import Cluster
from janus.scale.timing.exchange import ExchangeCost
from janus.scale.timing.latency import LatencyModel
from janus.scale.timing.scaled import ScaledLatencyModel


def on_one_type(latency: LatencyModel, cluster: Cluster) -> LatencyModel:
    """The same kernels, factors and floor where one type of GPU does both pools' work.

    Link times that were assumed or follow from the kernels' tables are taken anew for this type; given ones are kept.

    Args:
        latency: of two pools.
        cluster: the GPUs.

    Example:
        >>> from janus.scale import ModelSpec
        >>> a100, h100 = Cluster("a100-sxm"), Cluster("h100-sxm")
        >>> pools = LatencyModel.roofline(ModelSpec.from_config("deepseek-v2"), h100, a100)
        >>> on_one_type(pools, a100).cluster.gpu.name
        'a100-sxm'
    """
    if isinstance(latency, ScaledLatencyModel):
        return ScaledLatencyModel(on_one_type(latency.base, cluster), latency.terms, latency.points)
    model, kernels, efficiency = latency.model, latency.kernels, latency.efficiency
    if kernels and "comm" in latency.notes:
        return LatencyModel.of_kernels(kernels, model, cluster, efficiency=efficiency)
    assumed = latency.cost.model == ExchangeCost.of(latency.cluster, latency.expert_cluster).model
    cost = ExchangeCost.of(cluster) if assumed else ExchangeCost(latency.cost.model, cluster.node_size)
    return LatencyModel(model, cluster, efficiency, cost, None, kernels, latency.comm_floor_us, latency.notes)
