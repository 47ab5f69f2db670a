"""JanusMoELayer: take the place of a model's routed experts; `convert` does it for a whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.checks import check_call, prepared
from janus.experts.choosing import ReplicaChooser
from janus.experts.op import Handle, traced
from janus.experts.sites import count_experts, find_experts
from janus.experts.slots import ExpertSlots
from janus.experts.tensors import TensorExperts
from janus.sched import Assignment, RooflineCost
from janus.sched.backends import check_method, choose
from janus.types import Placement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
        compute: how the chosen experts are run: ``"eager"`` (plain torch, bit-equal to transformers' eager forward, takes
            gradients), or ``"auto"``.
        check_ids: refuse ids out of range on a GPU too, at the price of a host sync per call; on a CPU they always are.
            Unchecked, such an id counts as -1, and in `bad_ids`.

    Calls of one layer from several threads run one after the other. On a GPU they must come on one stream.

    Raises:
        JanusError: ``experts.compute`` for a way that cannot run here, ``placement.experts`` if the placement is for another number of experts, ``model.experts`` or
            ``model.mismatch`` if the module's layout is not one we reproduce, ``sched.method`` and ``sched.backend`` for
            unknown names, ``sched.cost``. On a wrong call, before anything runs: ``layer.shape``, ``layer.tensor``,
            ``layer.dtype``, ``layer.device``, ``layer.scales``, ``sched.range``.

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
        check_ids: bool = False,
    ) -> None:
        super().__init__()
        num_experts = count_experts(experts)
        self.placement = check_placement(placement, num_experts, self.__class__.__name__)
        self.layer = self.placement.layer(layer)
        self.method, self.cost = check_method(balance, cost), cost
        self._chooser = ReplicaChooser(self.placement, layer, balance, cost, backend, check_ids)
        self.backend = choose(backend, balance, _device_type(experts), may_copy=True)
        slots = self.placement.phy2log[self.layer].tolist()
        self.slots = ExpertSlots.from_module(experts, slots, compute=compute)
        self.slots.verify()
        self.compute = self.slots.compute
        self._handle = Handle(self)

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
    def from_tensors(
        cls,
        gate_proj: torch.Tensor | None,
        up_proj: torch.Tensor,
        down_proj: torch.Tensor,
        placement: Placement | None = None,
        *,
        activation: str | Callable[[torch.Tensor], torch.Tensor] = "silu",
        gate_bias: torch.Tensor | None = None,
        up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
        fused: bool = False,
        **options: Any,
    ) -> JanusMoELayer:
        """A layer from a user's own weights: ``down(activation(gate x) * up x)``, or ``down(activation(up x))``.

        Gate and up are copied into one tensor; everything else is shared where the placement holds the experts in order.

        Args:
            gate_proj: [E, F, H], or None where experts have no gate.
            up_proj: [E, F, H].
            down_proj: [E, H, F].
            placement: as in the constructor.
            activation: ``"silu"``, ``"gelu"``, ``"gelu_tanh"``, ``"relu"``, ``"relu2"``, ``"identity"``, or what takes
                [N, F] and gives [N, F].
            gate_bias: [E, F], or None.
            up_bias: [E, F], or None.
            down_bias: [E, H], or None. Where one bias is given, the others count as zero.
            fused: `up_proj` is [E, 2F, H] and holds gate, then up (`up_bias` too); `gate_proj` is None. Saves the copy.
            options: of the constructor.

        Raises:
            JanusError: ``model.tensors`` for shapes, dtypes or devices that do not fit together, ``model.activation``
                for an activation that is unknown or of another width, and as the constructor.

        Example:
            >>> up, down = torch.ones(2, 3, 4), torch.ones(2, 4, 3)  # 2 experts, F = 3, H = 4
            >>> layer = JanusMoELayer.from_tensors(None, up, down, activation="relu")
            >>> layer(torch.ones(1, 4), torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]))  # 0.75 * 3 * 4
            tensor([[9., 9., 9., 9.]])
        """
        biases = {"gate_bias": gate_bias, "up_bias": up_bias, "down_bias": down_bias}
        experts = TensorExperts(gate_proj, up_proj, down_proj, activation=activation, fused=fused, **biases)
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
        if torch.compiler.is_compiling():
            return traced(self, self._handle.key, hidden, topk_ids, topk_weights)
        return self.run(hidden, topk_ids, topk_weights)

    def run(self, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """As `forward`; what a compiled graph calls too."""
        slots = self.slots
        check_call(slots, self.placement.num_experts, hidden, topk_ids, topk_weights)
        if not topk_ids.numel():
            return torch.zeros_like(hidden, memory_format=torch.contiguous_format)
        with self._handle.lock:
            chooser = self._chooser = self._chooser.serving(self.placement)
            y_TH = slots(prepared(slots, hidden), chooser(topk_ids), topk_weights.contiguous())
        return y_TH if y_TH.dtype is hidden.dtype else y_TH.to(hidden.dtype)

    def assignment(self, topk_ids: torch.Tensor) -> Assignment:
        """Which slot serves which id of a batch, and how evenly: what `janus.sched.balance` tells of this layer.

        Args:
            topk_ids: [T, K], integer logical experts; -1 is passed over.

        Raises:
            JanusError: as `janus.sched.balance`.
        """
        return self._chooser.serving(self.placement).assignment(topk_ids)

    @property
    def bad_ids(self) -> int:
        """Ids out of range that counted as -1 so far, on a GPU without `check_ids`; reading it is a host sync."""
        return self._chooser.bad_ids

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._handle = Handle(self)  # a copy is another layer


def convert(
    model: nn.Module,
    placement: Placement | None = None,
    *,
    balance: str = "exact",
    cost: RooflineCost | None = None,
    backend: str = "auto",
    compute: str = "auto",
    check_ids: bool = False,
) -> nn.Module:
    """Swap the routed experts of every MoE layer of a Hugging Face model for a `JanusMoELayer`, in place.

    Args:
        model: a live model; its routers, shared experts and dense layers stay as they are.
        placement: one map per MoE layer, or one for all; default one instance with every expert once.
        balance: method of `janus.sched.balance`.
        cost: of one expert, for ``balance="cost"`` and no other method.
        backend: backend of the balancer.
        compute: as in `JanusMoELayer`.
        check_ids: as in `JanusMoELayer`.

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
    sites = find_experts(model)
    choose(backend, balance, _device_type(model), may_copy=True)
    check_layers(placement, [site.layer_id for site in sites])
    for site in sites:  # every refusal comes before the first swap
        check_placement(placement, count_experts(site.experts), site.name)
        probe = ExpertSlots.from_module(site.experts, [0], compute=compute)
        probe.verify()
        _ = probe.compute
    for i, site in enumerate(sites):  # one at a time: at most one layer's weights are held twice
        chosen = {"balance": balance, "cost": cost, "backend": backend, "compute": compute, "check_ids": check_ids}
        site.replace(JanusMoELayer(site.experts, placement, **chosen, layer=i))
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


def _device_type(module: nn.Module) -> str:
    first = next(module.parameters(), None)
    return "cpu" if first is None else first.device.type
