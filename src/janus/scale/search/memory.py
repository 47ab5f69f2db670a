"""What fits: requests per attention instance, expert slots per expert instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus.scale.hardware import Cluster
from janus.scale.model import ModelSpec, dtype_bytes

if TYPE_CHECKING:
    from janus.scale.search.solve import Problem


def request_bytes(model: ModelSpec, context: float) -> float:
    """Memory of one request on an attention instance, bytes: KV cache, float32 logits, eight rows of activations."""
    return model.kv_bytes(context) + 4 * model.vocab + 8 * model.hidden * dtype_bytes("bf16")


def attention_capacity(model: ModelSpec, cluster: Cluster, context: float, *, held_bytes: float = 0.0) -> int:
    """Requests of `context` cached tokens that one attention instance holds beside its weights; 0 when none fits.

    Args:
        held_bytes: memory that something else on the same GPU takes (a colocated deployment's experts).
    """
    free = cluster.usable_bytes - model.attention_side_bytes - held_bytes
    return max(0, int(free // request_bytes(model, context)))


def pool_memory(problem: Problem, n_a: int, batch: int) -> dict[str, dict[str, float]]:
    """Bytes per GPU of both pools: usable, and what the weights, the requests of `batch` and the buffers take."""
    m, latency = problem.latency.model, problem.latency
    requests = -(-batch // n_a) * request_bytes(m, problem.context)
    attention = {"usable": latency.cluster.usable_bytes, "weights": m.attention_side_bytes, "requests": requests}
    buffers = gate_bytes(m, problem.max_batch)
    experts = {
        "usable": latency.expert_cluster.usable_bytes,
        "weights": problem.slots * slot_bytes(m),
        "routers_and_buffers": buffers,
    }
    return {"attention": attention, "experts": experts}


def slot_bytes(model: ModelSpec) -> float:
    """One expert slot: one expert in every MoE layer, bytes."""
    return model.moe_layers * model.expert_bytes


def gate_bytes(model: ModelSpec, max_batch: int) -> float:
    """Routers of all layers, and exchange buffers for `max_batch` rows (bf16 in, float32 out); bytes."""
    return model.moe_layers * model.router_params * dtype_bytes("bf16") + max_batch * model.hidden * 6


def expert_slots(model: ModelSpec, cluster: Cluster, max_batch: int) -> int:
    """C: expert slots one expert instance holds, at most E; 0 when not even one fits.

    Example:
        >>> expert_slots(ModelSpec.from_config("deepseek-v2"), Cluster("h100-sxm"), 16384)
        27
    """
    free = cluster.usable_bytes - gate_bytes(model, max_batch)
    return min(model.experts, max(0, int(free // slot_bytes(model))))
