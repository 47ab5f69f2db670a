"""What it takes to replace one placement by another: expert weights to load."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from janus.types.placement import IntArray, Placement


@dataclass(frozen=True, eq=False)
class Moves:
    """Slots that must be filled with an expert they did not hold; an emptied slot costs nothing.

    Attributes:
        slots: int32 [L, G], slots to fill per layer and instance; L = 1 when both placements are one map for every
            layer, which then stands for each of the model's layers.
        total: their sum.
        share: `total` over the filled slots of the new placement, 0..1.
        bytes: weights to load in all, or None when the size of an expert was not given.
        max_bytes: weights to load into the instance that has most to load, all layers, or None.
    """

    slots: IntArray
    total: int
    share: float
    bytes: int | None
    max_bytes: int | None

    @classmethod
    def between(cls, new: Placement, old: Placement, expert_bytes: int | None) -> Moves:
        """Compare slot by slot; instances and slots that `old` does not have held nothing."""
        L, (_, G, C) = max(new.num_layers, old.num_layers), new.slots.shape
        held = np.full((L, G, C), -1, dtype=np.int32)
        was = old.slots[:, :G, :C]
        held[:, : was.shape[1], : was.shape[2]] = was  # one map for every layer is repeated
        now = np.broadcast_to(new.slots, held.shape)
        slots = ((now >= 0) & (now != held)).sum(axis=2).astype(np.int32)
        slots.flags.writeable = False
        total, per_instance = int(slots.sum()), slots.sum(axis=0, dtype=np.int64)
        share = total / int((now >= 0).sum())
        if expert_bytes is None:
            return cls(slots, total, share, None, None)
        return cls(slots, total, share, total * expert_bytes, int(per_instance.max()) * expert_bytes)
