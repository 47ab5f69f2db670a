"""Janus as one of transformers' ways to run experts: ``experts_implementation="janus"``."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.checks import check_call
from janus.experts.op import Handle, traced
from janus.experts.sites import count_experts
from janus.experts.slots import ExpertSlots

NAME = "janus"
_OPAQUE = "_janus_opaque"  # attribute of an experts module


@dataclass(frozen=True, eq=False)
class _Made:
    slots: ExpertSlots
    dtype: torch.dtype  # of the weights when the slots were made
    device: torch.device

    def fits(self, experts: nn.Module) -> bool:
        # A parameter that was assigned anew is another object; one that moved is the same with another device or dtype.
        mine = self.slots._parameters
        same = all(p is mine.get(name) for name, p in experts._parameters.items() if p is not None)
        return same and (self.dtype, self.device) == (self.slots.dtype, self.slots.device)


_MADE: MutableMapping[nn.Module, _Made] = WeakKeyDictionary()  # of an experts module


def register() -> None:
    """Make ``experts_implementation="janus"`` known to transformers; a second call changes nothing.

    A model that is built, loaded or switched with this name then computes its experts as `JanusMoELayer` does on one
    device. Weights stay the parameters of the model: nothing is copied, and training reaches them. The first forward
    raises a `JanusError` (``model.experts``, ``model.mismatch``) for experts whose layout is not supported. Families
    whose experts are not decorated for transformers' registry ignore the name; `janus.convert` is for those. Under
    `torch.compile` there is no graph break where the model has run once before and no gradient is asked for.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> register()
        >>> config = MixtralConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        ...                        num_key_value_heads=1, vocab_size=32, num_local_experts=4)
        >>> model = MixtralForCausalLM(config)
        >>> model.set_experts_implementation("janus")
        >>> model(torch.arange(5)[None]).logits.shape
        torch.Size([1, 5, 32])
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS  # takes seconds: not before it is asked for

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def experts_forward(
    experts: nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """What transformers calls in place of the family's own forward.

    Args:
        experts: the family's module.
        hidden_states: [T, H].
        top_k_index: integer [T, K]; E and above, and negative ones, stand for experts that other ranks hold.
        top_k_weights: [T, K].

    Returns:
        [T, H] in the dtype of `hidden_states`.

    Raises:
        JanusError: ``model.experts`` or ``model.mismatch``, for a layout that is not supported; ``layer.shape``,
            ``layer.tensor``, ``layer.dtype`` or ``layer.device``, for a wrong call.
    """
    opaque = getattr(experts, _OPAQUE, None) if torch.compiler.is_compiling() else None
    if opaque is not None and not _needs_grad(experts, hidden_states, top_k_weights):
        layer: Any = experts  # all that is asked of it here are its parameters
        return traced(layer, opaque.handle.key, hidden_states, top_k_index, top_k_weights)
    return _run(experts, hidden_states, top_k_index, top_k_weights)


def _needs_grad(experts: nn.Module, *inputs: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *experts.parameters()))


class _Opaque:
    """What a compiled graph calls: the experts module itself stays the owner, and may be copied and saved.

    Args:
        experts: held weakly.
    """

    def __init__(self, experts: nn.Module) -> None:
        self._experts = weakref.ref(experts)
        self.handle = Handle(self)

    def belongs_to(self, experts: nn.Module) -> bool:
        """False in a copy of the module it was made for."""
        return self._experts() is experts

    def run(self, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """As `experts_forward`, when a graph runs."""
        with self.handle.lock:
            return _run(self._module(), hidden, topk_ids, topk_weights)

    def parameters(self) -> Iterable[nn.Parameter]:
        """Of the module."""
        return self._module().parameters()

    def _module(self) -> nn.Module:
        experts = self._experts()
        if experts is None:
            raise JanusError(
                "layer.gone", "the experts of this compiled graph are no more; keep the model while it is used"
            )
        return experts

    def __reduce__(self) -> tuple[Any, ...]:
        return _Opaque, (nn.Identity(),)  # in a copy it belongs to nothing, until that is run


def _compute(
    experts: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    opaque = getattr(experts, _OPAQUE, None)
    if opaque is None or not opaque.belongs_to(experts):
        setattr(experts, _OPAQUE, _Opaque(experts))
    slots = slots_of(experts)
    check_call(slots, sys.maxsize, hidden_states, top_k_index, top_k_weights)  # K may exceed the experts of this rank
    is_here = (top_k_index >= 0) & (top_k_index < slots.num_slots)
    here_TK = torch.where(is_here, top_k_index.long(), -1)  # unsigned ids have no -1
    return slots(hidden_states, here_TK, top_k_weights.contiguous())


_run: Any = torch.compiler.disable(_compute)  # a graph break: to take gradients, and before the first call by hand


def slots_of(experts: nn.Module) -> ExpertSlots:
    """Slots over the module's own parameters, slot e for expert e; made once, and kept as long as the module lives.

    Args:
        experts: the family's module.
    """
    made = _MADE.get(experts)
    if made is None or not made.fits(experts):
        slots, first = ExpertSlots.from_module(experts, range(count_experts(experts))), next(experts.parameters())
        if not first.is_meta:
            slots.verify()
        made = _MADE[experts] = _Made(slots, first.dtype, first.device)
    return made.slots
