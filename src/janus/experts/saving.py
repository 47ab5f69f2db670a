"""A layer's state dict: that of the experts module it took the place of, whatever the placement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from janus.experts.view import wanted

if TYPE_CHECKING:
    from janus.experts.placed import PlacedSlots


def save_as_module(layer: PlacedSlots) -> None:
    """Have `layer` write and read the names and shapes of the module it replaced, so that either loads the other's.

    A layer that does not hold every expert, or holds them quantized, keeps the names and shapes of its slots. Where the
    slots are not the experts in their own order, what is written is a copy of their weights in that order.
    """
    layer.register_state_dict_post_hook(_written)
    layer.register_load_state_dict_pre_hook(_read)


def _slot_of(layer: PlacedSlots) -> list[int] | None:
    """Slot of each expert, in order; None where the layer cannot stand for the whole module."""
    view, slots = layer.view, layer.slots
    if view is None or set(dict(slots.named_parameters(recurse=False))) != set(slots.layout.shapes):
        return None
    experts = wanted(view.placement, layer.layer, layer.instance)
    first = {experts[number]: view.stored[number] for number in sorted(experts, reverse=True)}
    return [first[e] for e in range(layer.num_experts)] if len(first) == layer.num_experts else None


def _written(layer: PlacedSlots, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    slot_of = _slot_of(layer)
    if slot_of is None:
        return
    in_order = slot_of == list(range(layer.slots.num_slots))
    for name in layer.slots.layout.shapes:
        whole = state.pop(f"{prefix}slots.{name}")
        state[prefix + name] = whole if in_order else whole[torch.tensor(slot_of, device=whole.device)]
    _rename(state, f"{prefix}slots.", prefix, layer.slots.layout.parts)


def _read(layer: PlacedSlots, state: dict[str, Any], prefix: str, *_: Any) -> None:
    names = layer.slots.layout.shapes
    if _slot_of(layer) is None or not any(prefix + name in state for name in names):
        return
    layer.check_idle()
    experts = [max(e, 0) for e in layer.slots.experts]
    in_order = experts == list(range(layer.num_experts))
    for name in names:
        if prefix + name in state:
            given = state.pop(prefix + name)
            fits = not in_order and len(given) == layer.num_experts  # torch names the shapes that do not
            state[f"{prefix}slots.{name}"] = given[torch.tensor(experts, device=given.device)] if fits else given
    _rename(state, prefix, f"{prefix}slots.", layer.slots.layout.parts)


def _rename(state: dict[str, Any], old: str, new: str, parts: Iterable[str]) -> None:
    """Move what belongs to the family's own parts, which all experts share."""
    starts = tuple(f"{old}{part}." for part in parts)
    for key in [key for key in state if key.startswith(starts)]:
        state[new + key.removeprefix(old)] = state.pop(key)
