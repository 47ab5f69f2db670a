"""What a forward must see of a layer at one moment: the placement, and which stored slot holds which physical one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from janus.types import Placement


@dataclass(frozen=True, eq=False)
class View:
    """A placement and where its physical slots are stored; a forward reads it once and holds to it.

    Attributes:
        placement: which expert sits in which physical slot.
        stored: number of every filled physical slot here -> slot of `ExpertSlots` that holds its weights. Numbers are
            physical ids where all instances are here, else they count from the instance's first.
        to_slot_R: int64 [R + 1], slot by physical id; -1 on another instance, and at the end, where an id of -1
            points. None where every physical id is stored in the slot of its number.
    """

    placement: Placement
    stored: Mapping[int, int]
    to_slot_R: torch.Tensor | None

    @classmethod
    def of(
        cls,
        placement: Placement,
        stored: Mapping[int, int],
        instance: int | None,
        device: torch.device,
    ) -> View:
        """Make the table, for the slots of one instance or of all.

        Example:
            >>> p = Placement([[0, 1], [1, 2]], num_experts=3)
            >>> view = View.of(p, {0: 0, 1: 2}, instance=1, device=torch.device("cpu"))
            >>> view.local(torch.tensor([[0, 2], [3, -1]])).tolist()
            [[-1, 0], [2, -1]]
        """
        if instance is None and all(number == slot for number, slot in stored.items()):
            return cls(placement, stored, None)
        C = placement.slots_per_instance
        to_slot_R = torch.full((placement.num_instances * C + 1,), -1, dtype=torch.long)
        for number, slot in stored.items():
            to_slot_R[(instance or 0) * C + number] = slot
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
        number: of the physical slot, as in `View.stored`.
        expert: logical.
        slot: of `ExpertSlots`, to be filled.
    """

    number: int
    expert: int
    slot: int


def wanted(placement: Placement, layer: int, instance: int | None) -> dict[int, int]:
    """Expert of every filled physical slot, ascending, numbered as in `View.stored`: of one instance, or of all."""
    slots_GC = placement.slots[placement.layer(layer)]
    here = slots_GC if instance is None else slots_GC[instance]
    return {number: e for number, e in enumerate(here.reshape(-1).tolist()) if e >= 0}


def find_moves(
    new: Mapping[int, int],
    old: Mapping[int, int],
    held: Mapping[int, int],
    free: Collection[int],
) -> tuple[dict[int, int], tuple[Move, ...]] | None:
    """What to load for a placement, in its order: physical slots that keep their expert stay where they are.

    Args:
        new: expert of every physical slot wanted.
        old: expert of every physical slot now.
        held: slot of `ExpertSlots` in which each of them is stored.
        free: slots that may be overwritten, where no slot that stays is.

    Returns:
        Where the physical slots will be stored, and the moves; None if there are not enough free slots.

    Example:
        >>> find_moves({0: 7, 1: 9}, old={0: 7, 1: 8}, held={0: 0, 1: 1}, free={2})
        ({0: 0, 1: 2}, (Move(number=1, expert=9, slot=2),))
    """
    stored = {n: held[n] for n, e in new.items() if old.get(n) == e}
    left = set(free) - set(stored.values())
    lacking = [n for n in new if n not in stored]
    if len(lacking) > len(left):
        return None
    for n in lacking:  # its own slot where that is free
        if held.get(n) in left:
            stored[n] = held[n]
            left.remove(held[n])
    stored |= zip([n for n in lacking if n not in stored], sorted(left), strict=False)
    return {n: stored[n] for n in new}, tuple(Move(n, new[n], stored[n]) for n in lacking)
