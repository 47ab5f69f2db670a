"""JanusMoELayer: the routed experts of one MoE layer, in place of a model's own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from janus.experts.checkpoint import Checkpoint
from janus.experts.checks import check_call
from janus.experts.choosing import ReplicaChooser
from janus.experts.layout import ExpertLayout
from janus.experts.loading import block_of
from janus.experts.members import ExpertGroup
from janus.experts.op import Handle, traced
from janus.experts.own_tensors import TensorExperts
from janus.experts.parallel import ParallelExperts
from janus.experts.placed import PlacedSlots, check_placement
from janus.experts.sites import count_experts
from janus.experts.slots import ExpertSlots
from janus.sched import Assignment, RooflineCost
from janus.sched.backends import check_method, choose
from janus.types import Placement
from janus.types.checks import integer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


MAX_STAGING = 2**16  # slots; keeps a mistyped number from filling the memory


class JanusMoELayer(PlacedSlots):
    """Routed experts over the physical slots of a placement; drop-in for a model's experts module.

    Args:
        experts: a Hugging Face experts module (transformers >= 5): parameters with a leading expert dimension,
            ``forward(hidden_states, top_k_index, top_k_weights)``. Its parameters are shared where the slots hold the
            experts in their own order, and go on being trained; else they are copied into the slots, and the copies
            take no gradient.
        placement: which expert sits in which slot; default every expert once. Without `group` and `instance` all
            instances live in this process.
        balance: method of `janus.sched.balance` that picks the replica of each activated expert.
        cost: of one expert, for ``balance="cost"`` and no other method.
        layer: MoE layer, counted from 0: row of a per-layer placement, and what `load_slots` reads of a folder.
        backend: backend of the balancer.
        compute: how the chosen experts are run: ``"auto"``, the fastest way there is (on a CPU ``"mixed"``, on a GPU
            ``"triton"``), or one by name: ``"eager"`` (plain torch, bit-equal to transformers' eager forward, takes
            gradients), ``"numba"`` (CPU), ``"mixed"`` (CPU, busy experts by torch), ``"triton"``.
        quantize: keep the matrices of the slots in 8 bits: ``"int8"`` (a scale per 128 inputs of an output) or ``"fp8"``
            (e4m3, a scale per 128 x 128 block); default as the module has them. Never shared with the module.
        check_ids: refuse ids out of range on a GPU too, at the price of a host sync per call; on a CPU they always are.
            Unchecked, such an id counts as -1, and in `bad_ids`.
        instance: hold only the slots of this expert instance; what the others serve counts nothing in the output.
        staging: spare slots, for `begin_replace`: how many experts a new placement may move while the layer serves.
        group: ranks that share the experts, one instance each: an `ExpertGroup`, a process group or a `Topology`; every
            rank then makes the layer, and calls it as often as the others. None: this process alone.

    Calls of one layer from several threads run one after the other. On a GPU they must come on one stream.

    Raises:
        JanusError: ``experts.compute`` for a way that cannot run here, ``experts.quantize`` for an unknown format or
            weights that are not finite, ``placement.experts`` if the placement is for another number of experts,
            ``placement.instance``, ``model.experts`` or ``model.mismatch`` if the module's layout is not one we reproduce,
            ``sched.method`` and ``sched.backend`` for unknown names, ``sched.cost``, ``layer.staging``. On a wrong call,
            before anything runs: ``layer.shape``, ``layer.tensor``, ``layer.dtype``, ``layer.device``, ``layer.scales``,
            ``sched.range``, and ``layer.grad`` (a gradient is asked for that would be wrong). With `group` also
            ``comm.contract``, ``placement.instances``, ``experts.call``, ``experts.refused``.
        PeerLost: with `group`; a rank was lost or silent.

    Example:
        >>> import torch
        >>> from transformers import MixtralConfig
        >>> from transformers.models.mixtral.modeling_mixtral import MixtralExperts
        >>> config = MixtralConfig(hidden_size=8, intermediate_size=16, num_local_experts=4)
        >>> config._experts_implementation = "eager"
        >>> experts = MixtralExperts(config).requires_grad_(False)
        >>> _ = [torch.nn.init.normal_(p) for p in experts.parameters()]
        >>> layer = JanusMoELayer.from_module(experts)
        >>> x, ids, weights = torch.randn(3, 8), torch.tensor([[0, 1], [1, 2], [3, 0]]), torch.full((3, 2), 0.5)
        >>> torch.allclose(layer(x, ids, weights), experts(x, ids, weights), atol=1e-5)
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
        quantize: str | None = None,
        check_ids: bool = False,
        instance: int | None = None,
        staging: int = 0,
        group: Any = None,
    ) -> None:
        members = None if group is None else ExpertGroup.of(group)
        instances = 1 if members is None else members.world
        placement = check_placement(placement, count_experts(experts), type(self).__name__, instances)
        check_method(balance, cost)
        if members is not None:
            alike = {"balance": balance, "cost": cost, "quantize": quantize}
            instance = members.own_instance(experts, placement, placement.layer(layer), instance, **alike)
        held = _slots_to_hold(placement, layer, instance, staging)
        slots = ExpertSlots.from_module(experts, held, quantize=quantize, compute=compute)
        slots.verify()
        super().__init__(slots, placement, layer, instance, filled=True)
        self._serve(ReplicaChooser(placement, layer, balance, cost, backend, check_ids), members)
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
        quantize: str | None = None,
        check_ids: bool = False,
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
            quantize: as in the constructor; a folder in FP8 gives its bytes and scales to ``"fp8"`` unchanged.
            check_ids: as in the constructor.
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
            kind = {"dtype": dtype or checkpoint.dtype, "device": device, "quantize": quantize, "compute": compute}
            slots = ExpertSlots(ExpertLayout.of(block.experts), nothing, **kind)
            made = cls.__new__(cls)
            PlacedSlots.__init__(made, slots, placement, layer, instance, filled=False)
            made._serve(ReplicaChooser(placement, layer, balance, cost, backend, check_ids))
            return made.load_slots(placement, checkpoint).eval()

    def _serve(self, chooser: ReplicaChooser, members: ExpertGroup | None = None) -> None:
        self._chooser, self._members, self._handle = chooser, members, Handle(self)
        self.method, self.cost = chooser.method, chooser.cost
        self.backend = choose(chooser.backend, chooser.method, self.slots.device.type, may_copy=True)
        self.compute = self.slots.compute
        self.parallel: ParallelExperts | None = None
        if members is not None:
            self.parallel = ParallelExperts(members, chooser.placed, self.layer, self._check, self.assignment)

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
        view, slots = self.now(), self.slots  # one read: a placement switched to meanwhile is the next call's
        try:
            if self.parallel is not None:
                parallel = self.parallel = self.parallel.serving(view.placement)
                return parallel.run(slots, view, hidden, topk_ids, topk_weights)
            self._check(hidden, topk_ids, topk_weights)
            if not topk_ids.numel():
                return torch.zeros_like(hidden, memory_format=torch.contiguous_format)
            with self._handle.lock:
                if self._chooser.placed is not view.placement:  # setting a module's attribute costs microseconds
                    self._chooser = self._chooser.serving(view.placement)
                slots_TK = view.local(self._chooser(topk_ids))
                return slots(hidden, slots_TK, topk_weights.contiguous())
        finally:
            del view  # a traceback that is kept would keep it too, and the slots it uses

    def assignment(self, topk_ids: torch.Tensor) -> Assignment:
        """Which slot serves which id of a batch, and how evenly: what `janus.sched.balance` tells of this layer.

        Args:
            topk_ids: [T, K], integer logical experts; -1 is passed over.

        Raises:
            JanusError: as `janus.sched.balance`.
        """
        return self._chooser.serving(self.placement).assignment(topk_ids)

    def workspace_bytes(self, tokens: int, top_k: int) -> int:
        """Bytes that a call takes at most beside the slots, its arguments and its output; on a GPU they are kept.

        Args:
            tokens: T of the call.
            top_k: K of the call.
        """
        return self.slots.engine().needed(tokens, top_k)

    @property
    def bad_ids(self) -> int:
        """Ids out of range that counted as -1 so far, on a GPU without `check_ids`; reading it is a host sync."""
        return self._chooser.bad_ids

    def idle(self) -> None:
        """Take part in a call of the other ranks of the group without tokens; nothing to do without a group."""
        if self.parallel is not None:
            hidden = torch.empty(0, self.slots.layout.hidden_size, dtype=self.slots.dtype, device=self.slots.device)
            self(hidden, hidden.new_empty(0, 1, dtype=torch.long), hidden[:, :1])

    def _check(self, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> None:
        check_call(self.slots, self.num_experts, hidden, topk_ids, topk_weights)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._handle = Handle(self)  # a copy is another layer


def _slots_to_hold(placement: Placement, layer: int, instance: int | None, staging: int) -> list[int]:
    """Expert of each slot of `ExpertSlots`: those of all instances or of one, and empty ones to stage in."""
    slots_GC = placement.slots[placement.layer(layer)]
    if instance is not None:
        slots_GC = slots_GC[integer(instance, "instance", "placement.instance", high=placement.num_instances - 1)]
    return [*slots_GC.reshape(-1).tolist(), *[-1] * integer(staging, "staging", "layer.staging", high=MAX_STAGING)]
