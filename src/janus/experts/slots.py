"""The weights of the physical slots of one MoE layer on this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.backends import Engine, choose, make
from janus.experts.cpu.pages import enlarge
from janus.experts.grad import way_for_grad
from janus.experts.layout import ExpertLayout, Weights
from janus.experts.quantized import Format, named
from janus.experts.sites import count_experts
from janus.experts.storage import decode, encode, keeping, parameters


class ExpertSlots(nn.Module):
    """S physical slots of one MoE layer on this process, and the weighted sum of what they compute.

    Args:
        layout: of the family.
        experts: logical expert of each slot; -1 leaves it empty.
        dtype: of the weights, and of what is computed with them.
        device: of the weights.
        quantize: keep matrices in 8 bits, ``"int8"`` or ``"fp8"`` (see `janus.experts.quantized`); their scales are further
            parameters, named as the matrix with ``_scale`` behind it. Neither follows a change of dtype.
        compute: how the chosen slots are run: ``"auto"``, ``"eager"``, ``"numba"``, ``"mixed"``, ``"triton"``.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        experts: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        quantize: str | None = None,
        compute: str = "auto",
    ) -> None:
        super().__init__()
        self.layout = layout
        self.format: Format | None = None if quantize is None else named(quantize)
        self.experts = tuple(int(e) for e in experts)
        self.asked = compute
        # by device and dtype too: both may change under the slots
        self._chosen: dict[tuple[torch.device, torch.dtype], str] = {}
        self._engines: dict[tuple[str, torch.device, torch.dtype], Engine] = {}
        self.down_proj: torch.Tensor  # a parameter: cheaper to reach by attribute than by get_parameter
        self.shared = False  # the parameters are a module's own
        self.copies_trained = False  # the weights are copies of ones that took gradients
        self.rank_S: torch.Tensor  # goes where the weights go, and is not saved with them
        self.register_buffer("rank_S", _rank_by_expert(self.experts), persistent=False)
        self.computed_0: torch.Tensor  # no values: the compute dtype, which follows .to() where stored bytes do not
        self.register_buffer("computed_0", torch.empty(0, dtype=dtype, device=device), persistent=False)
        for name, (shape, stored) in parameters(layout, self.format, dtype).items():
            empty = torch.empty((len(self.experts), *shape), dtype=stored, device=device)
            enlarge(empty, now=False)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        for name, part in layout.parts.items():  # so that it moves, and is saved, with the weights
            self.add_module(name, part)

    @classmethod
    def from_module(
        cls,
        experts: nn.Module,
        slots: Sequence[int],
        *,
        quantize: str | None = None,
        compute: str = "auto",
    ) -> ExpertSlots:
        """Slots filled from a live experts module.

        Parameters are shared, not copied, where slots = 0, 1, ..., E - 1: an optimizer that holds them goes on training
        them. Copies take no gradient, and quantized ones are never shared.
        """
        first = next(experts.parameters())
        shared = quantize is None and list(slots) == list(range(count_experts(experts)))
        device = "meta" if shared else first.device
        layout = ExpertLayout.of(experts)
        made = cls(layout, slots, dtype=first.dtype, device=device, quantize=quantize, compute=compute)
        for name, p in experts.named_parameters(recurse=False):
            if shared:
                made.register_parameter(name, p)
        for slot, e in enumerate(slots):
            if e >= 0 and not shared:
                made.fill(slot, slice_expert(experts, e))
        made.rank_S, made.computed_0 = made.rank_S.to(first.device), first.new_empty(0)
        made.shared = shared
        made.copies_trained = not shared and any(p.requires_grad for p in experts.parameters())
        if shared:  # parts that the slots share stay in the mode they are in
            made.training = experts.training
            return made
        return made.train(experts.training)

    @property
    def num_slots(self) -> int:
        """S."""
        return len(self.experts)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights as they are computed with."""
        here = self._parameters["down_proj"] if self.format is None else self._buffers["computed_0"]  # see `device`
        assert here is not None
        return here.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights; looked up where modules keep them, because their attributes cost a microsecond each."""
        down_proj = self._parameters["down_proj"]
        assert down_proj is not None
        return down_proj.device

    @property
    def nbytes(self) -> int:
        """Bytes of all slots' parameters, scales included."""
        return sum(p.nbytes for p in self.parameters())

    def fill(self, slot: int, weights: Weights) -> None:
        """Copy one expert's weights into `slot`, in the slot's format: quantized here unless they come in it.

        Raises:
            JanusError: ``experts.quantize``, as `janus.experts.storage.encode`.
        """
        with torch.no_grad():
            for name, part in encode(weights, self.layout, self.format).items():
                self.get_parameter(name)[slot].copy_(part)

    def like(self, experts: Sequence[int]) -> ExpertSlots:
        """Empty slots of the same kind, in the same place; they take no gradient."""
        kind = {"quantize": self.format and self.format.name, "compute": self.asked}
        made = ExpertSlots(self.layout, experts, dtype=self.dtype, device=self.device, **kind)
        made.copies_trained = self.copies_trained or any(p.requires_grad for p in self.parameters())
        return made.train(self.training)

    def hold(self, experts: Sequence[int], keys: Sequence[int]) -> None:
        """Note which expert each slot holds from now on; replicas of one expert are run in the order of their keys.

        A call in progress sees the old order of its slots or the new one: both put any two slots that keep their expert
        and key in the same order.
        """
        self.experts = tuple(int(e) for e in experts)
        self.rank_S = _rank_by_expert(self.experts, keys).to(self.rank_S.device)

    def weights(self, slot: int) -> Weights:
        """One slot's weights in the compute dtype: views, or the dequantized matrices of this one expert."""
        stored = {name: p[slot] for name, p in self.named_parameters(recurse=False)}
        return stored if self.format is None else decode(stored, self.layout, self.format, self.dtype)

    def _apply(self, fn: Callable[[torch.Tensor], Any], recurse: bool = True) -> ExpertSlots:
        quantized = self.format is not None
        kept = {id(p) for name, p in self.named_parameters(recurse=False) if quantized and not name.endswith("_bias")}
        return super()._apply(keeping(kept, fn), recurse)

    @property
    def compute(self) -> str:
        """How the chosen slots are run where no gradient is asked for."""
        now = self.device, self.dtype
        if now not in self._chosen:
            self._chosen[now] = choose(self.asked, self)
        return self._chosen[now]

    def engine(self, name: str = "") -> Engine:
        """The way to run of that name, made once; the one that `compute` names if none is given."""
        now = name, self.device, self.dtype
        if now not in self._engines:
            self._engines[now] = make(name, self) if name else self.engine(self.compute)
        return self._engines[now]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engines": {}, "_chosen": {}}  # buffers and compiled code are made anew

    def forward(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Run the chosen slots and sum per token.

        Args:
            x_TH: [T, H], in the dtype of the slots but under autocast: the eager way is left to that, as the eager forward
                of transformers is, and fused ways compute in the dtype of the weights, as transformers' grouped_mm does.
            slots_TK: integer [T, K], local slot of each choice; -1 where the choice is served elsewhere.
            weights_TK: [T, K] routing weights, in the dtype the router gave them.

        Returns:
            [T, H] in the dtype of `x_TH`; zero for a token none of whose choices is here.

        Raises:
            JanusError: ``layer.grad`` where a gradient is asked for that cannot be right.
        """
        way, given = way_for_grad(self, x_TH, weights_TK), x_TH.dtype
        if given is not self.dtype and (way or self.compute) != "eager":
            x_TH = x_TH.to(self.dtype)
        y_TH = self.engine(way)(x_TH.contiguous(), slots_TK, weights_TK)
        return y_TH if y_TH.dtype is given else y_TH.to(given)

    def verify(self, atol: float = 1e-5) -> None:
        """Compare one filled slot with the family's own forward on a few tokens.

        Raises:
            JanusError: ``model.mismatch`` naming the class and the largest difference; the layout then has a rule
                we do not know, and serving it would be silently wrong.
        """
        slot = next((s for s, e in enumerate(self.experts) if e >= 0), None)
        if slot is None:
            return
        weights = self.weights(slot)
        hidden = self.layout.hidden_size
        x = torch.linspace(-2, 2, 4 * hidden).reshape(4, hidden).to(weights["down_proj"])
        with torch.no_grad():
            ours, theirs = self.layout.run(weights, x), self.layout.reference(weights, x)
        scale = float(theirs.abs().max()) + 1e-30
        worst = float((ours - theirs).abs().max()) / scale
        # Same operations in the same order: float32 agrees to rounding; half types carry 8 bits or fewer.
        if not worst <= (atol if x.dtype == torch.float32 else 2e-2):
            raise JanusError(
                "model.mismatch",
                f"{type(self.layout.template).__name__} computes something else than its layout says: relative difference "
                f"{worst:.1e} on a test batch; this family is not supported",
            )


def slice_expert(experts: nn.Module, e: int) -> Weights:
    """Views of expert `e`'s part of every parameter of a live experts module."""
    return {name: p.detach()[e] for name, p in experts.named_parameters(recurse=False)}


def _rank_by_expert(experts: tuple[int, ...], keys: Sequence[int] | None = None) -> torch.Tensor:
    keys = keys or range(len(experts))
    order = sorted(range(len(experts)), key=lambda slot: (experts[slot], keys[slot]))
    rank = torch.empty(len(experts), dtype=torch.long)
    rank[torch.tensor(order, dtype=torch.long)] = torch.arange(len(experts))
    return rank
