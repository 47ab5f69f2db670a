"""JanusMoELayer: take the place of a model's routed experts; `convert` does it for a whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.seam import count_experts, find_blocks
from janus.experts.slots import ExpertSlots
from janus.sched import Assignment, RooflineCost, balance
from janus.sched.backends import check_method, choose
from janus.types import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence


class JanusMoELayer(nn.Module):
    """Routed experts over the physical slots of a placement; drop-in for a model's experts module.

    Args:
        experts: a Hugging Face experts module (transformers >= 5): parameters with a leading expert dimension,
            ``forward(hidden_states, top_k_index, top_k_weights)``. Its weights are copied into the slots, or shared where
            the slots hold the experts in their own order.
        placement: which expert sits in which slot; default one instance that holds every expert once. All instances
            live in this process.
        balance: method of `janus.sched.balance` that picks the replica of each activated expert.
        cost: of one expert, for ``balance="cost"`` and no other method.
        layer: row of a per-layer placement.
        backend: backend of the balancer.
        quantize: keep the matrices of the slots in 8 bits: ``"int8"`` (a scale per 128 inputs of an output) or ``"fp8"``
            (e4m3, a scale per 128 x 128 block); default as the module has them. Never shared with the module.
        compute: how the chosen experts are run: ``"eager"`` (plain torch, bit-equal to transformers' eager forward, takes
            gradients), or ``"auto"``.

    Raises:
        JanusError: ``experts.compute`` for a way that cannot run here, ``experts.quantize`` for an unknown format or
            weights that are not finite, ``placement.experts`` if the placement is for another number of experts, ``model.experts`` or
            ``model.mismatch`` if the module's layout is not one we reproduce, ``sched.method`` and ``sched.backend`` for
            unknown names, ``sched.cost``, ``layer.shape`` on a wrong call.

    Example:
        >>> import torch
        >>> from transformers import MixtralConfig
        >>> from transformers.models.mixtral.modeling_mixtral import MixtralExperts
        >>> config = MixtralConfig(hidden_size=8, intermediate_size=16, num_local_experts=4)
        >>> config._experts_implementation = "eager"
        >>> experts = MixtralExperts(config)
        >>> _ = [torch.nn.init.normal_(p) for p in experts.parameters()]
        >>> layer = JanusMoELayer.from_module(experts)
        >>> x, ids, weights = torch.randn(3, 8), torch.tensor([[0, 1], [1, 2], [3, 0]]), torch.full((3, 2), 0.5)
        >>> torch.equal(layer(x, ids, weights), experts(x, ids, weights))
        True
    """

    def __init__(
        self,
        experts: nn.Module,
        placement: Placement | None = None,
        *,
        balance: str = "exact",
        cost: RooflineCost | None = None,
        layer: int = 0,
        backend: str = "auto",
        quantize: str | None = None,
        compute: str = "auto",
    ) -> None:
        super().__init__()
        num_experts = count_experts(experts)
        self.placement = check_placement(placement, num_experts, self.__class__.__name__)
        self.layer = self.placement.layer(layer)
        self.method, self.cost, self._asked = check_method(balance, cost), cost, backend
        self.backend = choose(backend, balance, _device_type(experts), may_copy=True)
        self.last: Assignment | None = None
        slots = self.placement.phy2log[self.layer].tolist()
        self.slots = ExpertSlots.from_module(experts, slots, quantize=quantize, compute=compute)
        self.slots.verify()
        self.compute = self.slots.compute

    @classmethod
    def from_module(
        cls,
        experts: nn.Module,
        placement: Placement | None = None,
        **options: Any,
    ) -> JanusMoELayer:
        """Same as the constructor; reads better where a module is replaced."""
        return cls(experts, placement, **options)

    def forward(self, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """Run the chosen experts of each token and sum their outputs by routing weight.

        Args:
            hidden: [T, H], float.
            topk_ids: [T, K], integer logical experts; -1 is passed over.
            topk_weights: [T, K], float.

        Returns:
            [T, H] in the dtype of `hidden`.
        """
        _check_call(self.slots.layout.hidden_size, hidden, topk_ids, topk_weights)
        chosen = {"method": self.method, "cost": self.cost, "backend": self._asked}
        self.last = balance(topk_ids, self.placement, layer=self.layer, **chosen)
        return self.slots(hidden, self.last.physical_ids, topk_weights)


def convert(
    model: nn.Module,
    placement: Placement | None = None,
    *,
    balance: str = "exact",
    cost: RooflineCost | None = None,
    backend: str = "auto",
    quantize: str | None = None,
    compute: str = "auto",
) -> nn.Module:
    """Swap the routed experts of every MoE layer of a Hugging Face model for a `JanusMoELayer`, in place.

    Args:
        model: a live model; its routers, shared experts and dense layers stay as they are.
        placement: one map per MoE layer, or one for all; default one instance with every expert once.
        balance: method of `janus.sched.balance`.
        cost: of one expert, for ``balance="cost"`` and no other method.
        backend: backend of the balancer.
        quantize: as in `JanusMoELayer`; one layer after the other, so that one layer is held twice at most.
        compute: as in `JanusMoELayer`.

    Returns:
        `model` itself.

    Raises:
        JanusError: ``model.no_experts``, ``placement.layers``, or what `JanusMoELayer` raises; the model is then
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
    blocks = find_blocks(model)
    choose(backend, balance, _device_type(model), may_copy=True)
    check_layers(placement, [block.layer_id for block in blocks])
    for block in blocks:  # every refusal comes before the first swap
        check_placement(placement, block.num_experts, block.name)
        probe = ExpertSlots.from_module(block.experts, [0], quantize=quantize, compute=compute)
        probe.verify()
        _ = probe.compute
    for i, block in enumerate(blocks):  # one at a time: at most one layer's weights are held twice
        chosen = {"balance": balance, "cost": cost, "backend": backend, "quantize": quantize, "compute": compute}
        block.replace(block.experts_attr, JanusMoELayer(block.experts, placement, **chosen, layer=i))
    return model


def check_placement(placement: Placement | None, num_experts: int, who: str) -> Placement:
    """The placement, or the default one; refuses one made for another number of experts."""
    if placement is None:
        return Placement.contiguous(num_experts, 1)
    if not isinstance(placement, Placement):
        raise JanusError("placement.type", f"placement must be a janus.Placement, got {type(placement).__name__}")
    if placement.num_experts != num_experts:
        raise JanusError(
            "placement.experts",
            f"{who}: the model has {num_experts} experts per layer, the placement is for {placement.num_experts}",
        )
    return placement


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


def _check_call(hidden_size: int, *call: Any) -> None:
    shapes = [tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in call]
    hidden, ids, weights = shapes
    if (len(hidden), len(ids)) != (2, 2) or ids != weights or hidden != (ids[0], hidden_size):
        raise JanusError(
            "layer.shape",
            f"forward takes tensors hidden [T, H = {hidden_size}], topk_ids [T, K], topk_weights [T, K]; got "
            f"{', '.join(map(str, shapes))}",
        )


def _device_type(module: nn.Module) -> str:
    first = next(module.parameters(), None)
    return "cpu" if first is None else first.device.type
