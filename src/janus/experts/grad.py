"""Where gradients flow: through the eager way, and only where they would be those of the model undivided."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from janus.errors import JanusError

if TYPE_CHECKING:
    from janus.experts.slots import ExpertSlots


def way_for_grad(slots: ExpertSlots, x_TH: torch.Tensor, weights_TK: torch.Tensor) -> str:
    """``"eager"`` where this call has to be differentiable, else nothing: the fused ways have no backward.

    Args:
        slots: to be run.
        x_TH: [T, H], input.
        weights_TK: [T, K], routing weights.

    Raises:
        JanusError: ``layer.grad`` if a fused way was asked for by name, if the slots' own weights take gradients and an
            expert may sit in several slots, whose copies would be trained apart, or if the layer is trained with frozen
            copies of weights that took gradients.
    """
    if not torch.is_grad_enabled():
        return ""
    matrices = any(p.requires_grad for p in slots._parameters.values() if p is not None)  # walking a module costs time
    trained = matrices or (bool(slots._modules) and any(p.requires_grad for p in slots.parameters()))
    if matrices and slots.experts != tuple(range(slots.num_slots)):
        raise JanusError(
            "layer.grad",
            f"weights that take gradients must sit in one slot per expert, in order, or replicas would be trained apart; "
            f"the slots hold {_shown(slots.experts)}; {FREEZE}, or use the default placement to train",
        )
    if slots.copies_trained and slots.training:
        raise JanusError(
            "layer.grad",
            "in training mode the experts would silently stay as they are: the slots hold copies of weights that took "
            "gradients; use the default placement, which shares them, or freeze the experts before they are copied "
            "(requires_grad_(False)), or call .eval()",
        )
    if not (trained or x_TH.requires_grad or weights_TK.requires_grad):
        return ""
    if slots.asked not in ("auto", "eager"):
        raise JanusError(
            "layer.grad",
            f"compute={slots.asked!r} has no backward, and a gradient is asked for; {FREEZE}, or take compute='auto', "
            "which runs such calls in plain torch",
        )
    return "eager"


FREEZE = "run it under torch.inference_mode() or freeze the weights (requires_grad_(False))"


def _shown(experts: tuple[int, ...]) -> str:
    return str(list(experts)) if len(experts) <= 16 else f"{list(experts[:16])} ... ({len(experts)} slots)"
