"""How much of a layer a benchmark holds, in which storage, and what that weighs; light, for every process of a GPU too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from shapes import Model

COMPUTE = {  # storage -> dtype of the activations, and of the module that is stored
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.bfloat16,
    "fp8": torch.bfloat16,
}
SCALES = {"int8": 4 / 128, "fp8": 4 / 128**2}  # bytes per weight
QUANTIZED = tuple(SCALES)


@dataclass(frozen=True)
class Held:
    """Experts of one model's layer in one storage.

    Attributes:
        model: sizes of the whole layer.
        storage: a key of `COMPUTE`.
        experts: slots held here.

    Example:
        >>> from shapes import MODELS
        >>> held = Held(MODELS["mixtral-8x7b"], "int8", 2)
        >>> held.whole, held.params, held.flops, held.expert_bytes, held.slot_bytes
        (False, 176160768, 352321536, 176160768, 181665792)
    """

    model: Model
    storage: str
    experts: int

    @property
    def whole(self) -> bool:
        """Whether every expert of the layer is here."""
        return self.experts == self.model.experts

    @property
    def params(self) -> int:
        """Weights of one expert: gate, up and down; biases are not counted."""
        return 3 * self.model.hidden * self.model.inner

    @property
    def flops(self) -> int:
        """Of one entry."""
        return 2 * self.params

    @property
    def held_bytes(self) -> int:
        """Of one expert in the module that all ways share."""
        return self.params * COMPUTE[self.storage].itemsize

    @property
    def expert_bytes(self) -> int:
        """Of one expert as Janus stores it; scales of a quantized one are under 4 % and not counted."""
        return self.params if self.storage in QUANTIZED else self.held_bytes

    @property
    def slot_bytes(self) -> int:
        """Of one slot's matrices, scales included."""
        return self.expert_bytes + round(self.params * SCALES.get(self.storage, 0))
