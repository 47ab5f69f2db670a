"""What every rank must agree on before the first token, checked where a difference would be silent."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from janus.comm import Exchange
from janus.conversion import check_layers
from janus.errors import JanusError
from janus.experts.live import ExpertSource
from janus.experts.placed import check_placement
from janus.runner.expert import ExpertServer
from janus.types import Placement, Topology

# One or two tokens take other matrix kernels than many; a router must agree with itself on both.
CHECK_TOKENS = (1, 64)
VOLATILE = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "experts_implementation")


def checked_placement(placement: Placement | None, source: ExpertSource, topology: Topology) -> Placement:
    """The placement for this model and topology; default: experts in order, one replica each.

    Raises:
        JanusError: ``placement.experts``, ``placement.layers``, or ``placement.instances``.
    """
    num_experts = source.blocks[0].num_experts
    if placement is None:
        return Placement.contiguous(num_experts, topology.n_experts)
    check_placement(placement, num_experts, "DisaggregatedRunner")
    check_layers(placement, [block.layer_id for block in source.blocks])
    if placement.num_instances != topology.n_experts:
        raise JanusError(
            "placement.instances",
            f"the placement is for {placement.num_instances} expert instances, the topology {topology} has {topology.n_experts}",
        )
    return placement


def check_source(source: ExpertSource, gate: str) -> None:
    """Refuse, before any weight is read, a model with layers that differ or a router that cannot be moved."""
    first = source.blocks[0]
    for block in source.blocks:
        sizes = (block.num_experts, block.hidden_size, block.top_k, block.weights_dtype)
        if sizes != (first.num_experts, first.hidden_size, first.top_k, first.weights_dtype):
            raise JanusError(
                "model.layers",
                f"all MoE layers must have one (E, H, K, weights dtype); {first.name} and {block.name} differ",
            )
        if gate == "experts":
            block.need_router()
    if gate == "experts" and getattr(source.config, "output_router_logits", False):
        raise JanusError(
            "model.router",
            "output_router_logits=True needs the routers, which gate='experts' moves to the expert ranks; set it to False or "
            "use gate='attention'",
        )
    source.check_experts()


def contract(source: ExpertSource, placement: Placement, options: dict[str, Any]) -> dict[str, Any]:
    """The fields all ranks must share beyond those of the exchange."""
    config = {k: v for k, v in source.config.to_dict().items() if k not in VOLATILE}
    return {
        "model": _digest(config),
        "moe_layers": len(source.blocks),
        "experts": source.blocks[0].num_experts,
        "weights": _sample(source),
        "placement": _digest(placement.to_dict()),
        **options,
    }


def agree_ready(ex: Exchange, server: ExpertServer | None, failure: JanusError | None, topology: Topology) -> None:
    """Every rank says whether its part stands, and expert ranks how their routers route; one verdict for all.

    Raises:
        JanusError: on every rank: this rank's `failure`, else that of the first rank that has one, else
            ``router.disagree``.
    """
    mine: dict[str, Any] = {"failure": failure and [failure.code, failure.message], "routes": []}
    if server is not None and server.routers:
        mine["routes"] = [_route_digest(server, layer) for layer in range(len(server.slots))]
    # Loading takes as long as it takes, and differs between ranks; one that dies or gives up meanwhile is noticed at once.
    seen = ex.share("ready", mine, timeout_s=ex.timeouts.idle_s)
    if failure is not None:
        raise failure
    for rank, said in seen.items():
        if said["failure"]:
            code, message = said["failure"]
            raise JanusError(code, f"rank {rank} ({topology.role(rank)}): {message}")
    _compare_routes({rank: seen[rank]["routes"] for rank in topology.expert_ranks})


def _compare_routes(routes: dict[int, list[str]]) -> None:
    """Expert ranks route a fixed batch; a replica chosen from other ids would silently corrupt outputs."""
    first = min(routes)
    for rank, digests in routes.items():
        layers = [layer for layer, (a, b) in enumerate(zip(routes[first], digests, strict=True)) if a != b]
        if layers:
            raise JanusError(
                "router.disagree",
                f"expert ranks {first} and {rank} route the same tokens differently in MoE layer {layers[0]} "
                f"({len(layers)} layers in all); a float32 router depends on threads, machine and library versions: give all "
                "expert ranks the same torch.set_num_threads, torch version and processor kind, or use gate='attention'",
            )


@torch.inference_mode()
def _route_digest(server: ExpertServer, layer: int) -> str:
    block = server.blocks[layer]
    generator = torch.Generator().manual_seed(layer)
    digest = hashlib.sha256()
    for tokens in CHECK_TOKENS:
        x_TH = torch.randn(tokens, block.hidden_size, generator=generator).to(server.slots[layer].dtype)
        # Weights too: where their last bits differ, some later token's ids will, though these few may agree.
        for part in server.route(layer, x_TH):
            digest.update(_bytes(part))
    return digest.hexdigest()


def _sample(source: ExpertSource) -> str:
    """Digest of one expert's first rows in the first and last MoE layer: another model of the same shape differs."""
    digest = hashlib.sha256()
    for block in (source.blocks[0], source.blocks[-1]):
        for part in source.expert(block, 0).values():
            digest.update(_bytes(part[:1]))
    return digest.hexdigest()[:16]


def _bytes(part: torch.Tensor) -> bytes:
    return part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
