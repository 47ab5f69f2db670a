"""`convert`: every MoE layer of a model at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from janus.errors import JanusError
from janus.experts.members import ExpertGroup
from janus.experts.placed import check_placement
from janus.experts.sites import count_experts, find_experts
from janus.experts.slots import ExpertSlots
from janus.layer import JanusMoELayer
from janus.sched.backends import check_method, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from janus.sched import RooflineCost
    from janus.types import Placement


def convert(
    model: nn.Module,
    placement: Placement | None = None,
    *,
    balance: str = "exact",
    cost: RooflineCost | None = None,
    backend: str = "auto",
    compute: str = "auto",
    quantize: str | None = None,
    check_ids: bool = False,
    staging: int = 0,
    group: Any = None,
) -> nn.Module:
    """Swap the routed experts of every MoE layer of a Hugging Face model for a `JanusMoELayer`, in place.

    Args:
        model: a live model; its routers, shared experts and dense layers stay as they are.
        placement: one map per MoE layer, or one for all; default every expert once.
        balance: as in `JanusMoELayer`, as is all that follows.
        cost: of one expert, for ``balance="cost"`` and no other method.
        backend: backend of the balancer.
        compute: how the chosen experts are run.
        quantize: keep matrices in 8 bits; one layer after the other, so that one layer is held twice at most.
        check_ids: refuse ids out of range on a GPU too.
        staging: spare slots of every layer.
        group: ranks that share the experts; every rank converts the same model, and keeps its own slots only.

    Returns:
        `model` itself.

    Raises:
        JanusError: ``model.converted``, ``model.no_experts``, ``placement.layers``, or what `JanusMoELayer` raises; the model is then
            unchanged.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        ...                        num_key_value_heads=1, vocab_size=32, num_local_experts=4)
        >>> model = convert(MixtralForCausalLM(config))
        >>> type(model.model.layers[0].mlp.experts).__name__
        'JanusMoELayer'
    """
    check_method(balance, cost)
    _check_new(model)
    sites = find_experts(model)
    choose(backend, balance, _device_type(model), may_copy=True)
    check_layers(placement, [site.layer_id for site in sites])
    alike: dict[str, Any] = {"balance": balance, "cost": cost, "quantize": quantize}
    members = None if group is None else ExpertGroup.of(group)
    instances = 1 if members is None else members.world
    for i, site in enumerate(sites):  # every refusal comes before the first swap
        found = check_placement(placement, count_experts(site.experts), site.name, instances)
        if members is not None:
            members.own_instance(site.experts, found, found.layer(i), None, **alike)
        _probe(site.experts, quantize, compute)
    chosen = {**alike, "backend": backend, "compute": compute, "check_ids": check_ids, "staging": staging}
    for i, site in enumerate(sites):  # one at a time: at most one layer's weights are held twice
        site.replace(JanusMoELayer(site.experts, placement, **chosen, group=members, layer=i))
    return model


def _check_new(model: nn.Module) -> None:
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    if done := [name for name, module in modules if isinstance(module, JanusMoELayer)]:
        raise JanusError(
            "model.converted",
            f"the experts of {done[0]!r} ({len(done)} in all) are a JanusMoELayer already; convert a model once, and change "
            "its placement by load_slots or begin_replace of each layer",
        )


def check_layers(placement: Placement | None, layer_ids: Sequence[int]) -> None:
    """Refuse a per-layer placement whose layers are not the model's MoE layers."""
    if placement is None or placement.uniform:
        return
    if placement.num_layers != len(layer_ids) or placement.layer_ids not in (None, tuple(layer_ids)):
        raise JanusError(
            "placement.layers",
            f"the model has {len(layer_ids)} MoE layers, numbered {list(layer_ids)}; the placement has "
            f"{placement.num_layers}, numbered {placement.layer_ids}; a 2-D placement serves every layer",
        )


def _probe(experts: nn.Module, quantize: str | None, compute: str) -> None:
    """Refuse what `JanusMoELayer` would, at the price of one expert at most."""
    in_order = range(count_experts(experts))  # shares the weights
    slots = ExpertSlots.from_module(experts, [0] if quantize else in_order, quantize=quantize, compute=compute)
    slots.verify()
    _ = slots.compute


def _device_type(module: nn.Module) -> str:
    first = next(module.parameters(), None)
    return "cpu" if first is None else first.device.type
