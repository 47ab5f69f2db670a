"""What a forward must see of a layer at one moment: the placement, and which stored slot holds which physical one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from janus.types import Placement

At = tuple[int, int]  # instance g, slot c of the placement


@dataclass(frozen=True, eq=False)
class View:
    """A placement and where its physical slots are stored; a forward reads it once and holds to it.

    Attributes:
        placement: which expert sits in which physical slot.
        stored: (g, c) of every filled physical slot here -> slot of `ExpertSlots` that holds its weights.
        to_slot_R: int64 [R + 1], the same by physical id; -1 on another instance, and at the end, where an id of -1
            points. None where every physical id is stored in the slot of its number.
    """

    placement: Placement
    stored: Mapping[At, int]
    to_slot_R: torch.Tensor | None

    @classmethod
    def of(cls, placement: Placement, stored: Mapping[At, int], *, all_here: bool, device: torch.device) -> View:
        """Make the table.

        Example:
            >>> p, here = Placement([[0, 1], [1, 2]], num_experts=3), {(1, 0): 0, (1, 1): 2}
            >>> view = View.of(p, here, all_here=False, device=torch.device("cpu"))
            >>> view.local(torch.tensor([[0, 2], [3, -1]])).tolist()
            [[-1, 0], [2, -1]]
        """
        C = placement.slots_per_instance
        if all_here and all(slot == g * C + c for (g, c), slot in stored.items()):
            return cls(placement, stored, None)
        to_slot_R = torch.full((placement.num_instances * C + 1,), -1, dtype=torch.long)
        for (g, c), slot in stored.items():
            to_slot_R[g * C + c] = slot
        return cls(placement, stored, to_slot_R.to(device))

    def local(self, physical_TK: torch.Tensor) -> torch.Tensor:
        """Physical ids -> slots of `ExpertSlots`; -1 where the choice is served elsewhere."""
        return physical_TK if self.to_slot_R is None else self.to_slot_R[physical_TK.long()]

    def to(self, device: torch.device) -> View:
        """The same on another device."""
        return self if self.to_slot_R is None else replace(self, to_slot_R=self.to_slot_R.to(device))


@dataclass(frozen=True)
class Move:
    """One expert's weights that have to be loaded.

    Attributes:
        at: instance and slot of the new placement.
        expert: logical.
        slot: of `ExpertSlots`, to be filled.
    """

    at: At
    expert: int
    slot: int


def wanted(placement: Placement, layer: int, instance: int | None) -> dict[At, int]:
    """(g, c) -> expert of every filled physical slot, ascending: of one instance, or of all."""
    slots_GC = placement.slots[placement.layer(layer)].tolist()
    return {(g, c): e for g, row in enumerate(slots_GC) if instance in (None, g) for c, e in enumerate(row) if e >= 0}


def find_moves(
    new: Mapping[At, int],
    old: Mapping[At, int],
    held: Mapping[At, int],
    free: Collection[int],
) -> tuple[dict[At, int], tuple[Move, ...]] | None:
    """What to load for a placement, in its order: physical slots that keep their expert stay where they are.

    Args:
        new: expert of every physical slot wanted.
        old: expert of every physical slot now.
        held: slot of `ExpertSlots` in which each of them is stored.
        free: slots that may be overwritten, where no slot that stays is.

    Returns:
        Where the physical slots will be stored, and the moves; None if there are not enough free slots.

    Example:
        >>> find_moves({(0, 0): 0, (0, 1): 2}, {(0, 0): 0, (0, 1): 1}, {(0, 0): 0, (0, 1): 1}, {2})
        ({(0, 0): 0, (0, 1): 2}, (Move(at=(0, 1), expert=2, slot=2),))
    """
    stored = {at: held[at] for at, e in new.items() if old.get(at) == e}
    left = set(free) - set(stored.values())
    lacking = [at for at in new if at not in stored]
    if len(lacking) > len(left):
        return None
    for at in lacking:  # its own slot where that is free
        if held.get(at) in left:
            stored[at] = held[at]
            left.remove(held[at])
    stored |= zip([at for at in lacking if at not in stored], sorted(left), strict=False)
    return {at: stored[at] for at in new}, tuple(Move(at, new[at], stored[at]) for at in lacking)
