"""JanusMoELayer: take the place of a model's routed experts; `convert` does it for a whole model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.checkpoint import Checkpoint
from janus.experts.layout import ExpertLayout
from janus.experts.loading import block_of
from janus.experts.placed import PlacedSlots
from janus.experts.seam import count_experts, find_blocks
from janus.experts.slots import ExpertSlots
from janus.sched import Assignment, RooflineCost, balance
from janus.sched.backends import check_method, choose
from janus.types import Placement
from janus.types.checks import integer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


MAX_STAGING = 2**16  # slots; keeps a mistyped number from filling the memory


class JanusMoELayer(PlacedSlots):
    """Routed experts over the physical slots of a placement; drop-in for a model's experts module.

    Args:
        experts: a Hugging Face experts module (transformers >= 5): parameters with a leading expert dimension,
            ``forward(hidden_states, top_k_index, top_k_weights)``. Its parameters are shared where the slots hold the
            experts in their own order, and go on being trained; else they are copied into the slots, and the copies
            take no gradient.
        placement: which expert sits in which slot; default one instance that holds every expert once. All instances
            live in this process.
        balance: method of `janus.sched.balance` that picks the replica of each activated expert.
        cost: of one expert, for ``balance="cost"`` and no other method.
        layer: MoE layer, counted from 0: row of a per-layer placement, and what `load_slots` reads of a folder.
        backend: backend of the balancer.
        compute: how the chosen experts are run: ``"eager"`` (plain torch, bit-equal to transformers' eager forward, takes
            gradients), or ``"auto"``.
        instance: hold only the slots of this expert instance; what the others serve counts nothing in the output.
        staging: spare slots, for `begin_replace`: how many experts a new placement may move while the layer serves.

    Raises:
        JanusError: ``experts.compute`` for a way that cannot run here, ``placement.experts`` if the placement is for another number of experts, ``model.experts`` or
            ``model.mismatch`` if the module's layout is not one we reproduce, ``sched.method`` and ``sched.backend`` for
            unknown names, ``sched.cost``, ``placement.instance``, ``layer.staging``, and on a call ``layer.shape`` and
            ``layer.grad`` (a gradient is asked for that would be wrong).

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
        compute: str = "auto",
        instance: int | None = None,
        staging: int = 0,
    ) -> None:
        placement = check_placement(placement, count_experts(experts), type(self).__name__)
        held = _slots_to_hold(placement, layer, instance, staging)
        check_method(balance, cost)
        slots = ExpertSlots.from_module(experts, held, compute=compute)
        slots.verify()
        super().__init__(slots, placement, layer, instance, filled=True)
        self._balance_by(balance, cost, backend)
        self.train(experts.training)

    @classmethod
    def from_module(
        cls,
        experts: nn.Module,
        placement: Placement | None = None,
        **options: Any,
    ) -> JanusMoELayer:
        """Same as the constructor; reads better where a module is replaced."""
        return cls(experts, placement, **options)

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path | Checkpoint,
        placement: Placement | None = None,
        *,
        layer: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        balance: str = "exact",
        cost: RooflineCost | None = None,
        backend: str = "auto",
        compute: str = "auto",
        instance: int | None = None,
        staging: int = 0,
    ) -> JanusMoELayer:
        """One layer of a model folder, without the model: only the experts of its slots are read, one at a time.

        Args:
            folder: of safetensors, or an open `Checkpoint` of it (for many layers: it is opened once).
            placement: as in the constructor.
            layer: MoE layer, counted from 0.
            dtype: of the slots; default the one the config names.
            device: of the slots.
            balance: as in the constructor.
            cost: as in the constructor.
            backend: as in the constructor.
            compute: as in the constructor.
            instance: as in the constructor.
            staging: as in the constructor.

        Returns:
            The layer, filled, in eval mode; its weights take no gradient.

        Raises:
            JanusError: as the constructor and `load_slots`.
        """
        check_method(balance, cost)
        with nullcontext(folder) if isinstance(folder, Checkpoint) else Checkpoint(folder) as checkpoint:
            block = block_of(checkpoint, layer)
            placement = check_placement(placement, block.num_experts, block.name)
            nothing = [-1] * len(_slots_to_hold(placement, layer, instance, staging))
            of, dtype = ExpertLayout.of(block.experts), dtype or checkpoint.dtype
            slots = ExpertSlots(of, nothing, dtype=dtype, device=device, compute=compute)
            layer_of = cls.__new__(cls)
            PlacedSlots.__init__(layer_of, slots, placement, layer, instance, filled=False)
            layer_of._balance_by(balance, cost, backend)
            return layer_of.load_slots(placement, checkpoint).eval()

    def _balance_by(self, method: str, cost: RooflineCost | None, backend: str) -> None:
        self.method, self.cost, self._asked = check_method(method, cost), cost, backend
        self.backend = choose(backend, method, self.slots.device.type, may_copy=True)
        self.compute = self.slots.compute
        self.last: Assignment | None = None

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
        view = self.now()  # one read: a placement switched to meanwhile is the next call's
        try:
            chosen = {"method": self.method, "cost": self.cost, "backend": self._asked}
            self.last = last = balance(topk_ids, view.placement, layer=self.layer, **chosen)
            return self.slots(hidden, view.local(last.physical_ids), topk_weights)
        finally:
            del view  # a traceback that is kept would keep it too, and the slots it uses


def convert(
    model: nn.Module,
    placement: Placement | None = None,
    *,
    balance: str = "exact",
    cost: RooflineCost | None = None,
    backend: str = "auto",
    compute: str = "auto",
    staging: int = 0,
) -> nn.Module:
    """Swap the routed experts of every MoE layer of a Hugging Face model for a `JanusMoELayer`, in place.

    Args:
        model: a live model; its routers, shared experts and dense layers stay as they are.
        placement: one map per MoE layer, or one for all; default one instance with every expert once.
        balance: method of `janus.sched.balance`.
        cost: of one expert, for ``balance="cost"`` and no other method.
        backend: backend of the balancer.
        compute: as in `JanusMoELayer`.
        staging: as in `JanusMoELayer`, of every layer.

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
        probe = ExpertSlots.from_module(
            block.experts, range(block.num_experts), compute=compute
        )  # shares all, copies none
        probe.verify()
        _ = probe.compute
    for i, block in enumerate(blocks):  # one at a time: at most one layer's weights are held twice
        chosen = {"balance": balance, "cost": cost, "backend": backend, "compute": compute, "staging": staging}
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


def _slots_to_hold(placement: Placement, layer: int, instance: int | None, staging: int) -> list[int]:
    """Expert of each slot of `ExpertSlots`: those of all instances or of one, and empty ones to stage in."""
    slots_GC = placement.slots[placement.layer(layer)]
    if instance is not None:
        slots_GC = slots_GC[integer(instance, "instance", "placement.instance", high=placement.num_instances - 1)]
    return [*slots_GC.reshape(-1).tolist(), *[-1] * integer(staging, "staging", "layer.staging", high=MAX_STAGING)]


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
