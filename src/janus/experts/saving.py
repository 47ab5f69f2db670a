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

    A layer that does not hold every expert, or holds them quantized, keeps the names of its slots. One row is written per
    expert held here, in order of expert, so that a layer under another placement of the same experts reads it right.
    Where the slots are not the experts in that order, what is written is a copy.
    """
    layer.register_state_dict_post_hook(_written)
    layer.register_load_state_dict_pre_hook(_read)


def _slot_of(layer: PlacedSlots) -> dict[int, int]:
    """Every expert held here, ascending -> a slot of it; none while the layer is empty."""
    view = layer.view
    experts = {} if view is None else wanted(view.placement, layer.layer, layer.instance)
    first = {experts[number]: view.stored[number] for number in sorted(experts, reverse=True)} if view else {}
    return dict(sorted(first.items()))


def _names(layer: PlacedSlots) -> tuple[list[str], str]:
    """Of the tensors with a row per slot, and what stands before them: nothing where the layer stands for the module."""
    names = [name for name, _ in layer.slots.named_parameters(recurse=False)]
    is_whole = set(names) == set(layer.slots.layout.shapes) and len(_slot_of(layer)) == layer.num_experts
    return names, "" if is_whole else "slots."


def _written(layer: PlacedSlots, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    rows, (names, before) = list(_slot_of(layer).values()), _names(layer)
    if not rows:
        return
    in_order = rows == list(range(layer.slots.num_slots))
    for name in names:
        whole = state.pop(f"{prefix}slots.{name}")
        state[prefix + before + name] = whole if in_order else whole[torch.tensor(rows, device=whole.device)]
    if not before:
        _rename(state, f"{prefix}slots.", prefix, layer.slots.layout.parts)


def _read(layer: PlacedSlots, state: dict[str, Any], prefix: str, *told: Any) -> None:
    row_of = {e: row for row, e in enumerate(_slot_of(layer))}
    names, before = _names(layer)
    found = [name for name in names if prefix + before + name in state]
    if not row_of or not found:
        return
    layer.check_idle()
    rows = [row_of.get(e, 0) for e in layer.slots.experts]  # no matter what a spare slot gets
    for name in found:
        given, errors = state.pop(prefix + before + name), told[-1]
        if fits := len(given) == len(row_of):
            in_order = rows == list(range(len(row_of)))
            given = given if in_order else given[torch.tensor(rows, device=given.device)]
        state[f"{prefix}slots.{name}"] = given
        if not fits:  # as many rows as there are slots would pass
            wrong = f"size mismatch for {prefix}{before}{name}: one row for each of the {len(row_of)} experts here"
            errors.append(f"{wrong} is needed, got {len(given)}")
    if not before:
        _rename(state, prefix, f"{prefix}slots.", layer.slots.layout.parts)


def _rename(state: dict[str, Any], old: str, new: str, parts: Iterable[str]) -> None:
    """Move what belongs to the family's own parts, which all experts share."""
    starts = tuple(f"{old}{part}." for part in parts)
    for key in [key for key in state if key.startswith(starts)]:
        state[new + key.removeprefix(old)] = state.pop(key)
