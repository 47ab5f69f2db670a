"""What the ranks that share a layer must have alike, as JSON values to compare."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn

from janus.types import Placement


def layer_terms(experts: nn.Module, placement: Placement, layer: int, **alike: Any) -> dict[str, Any]:
    """The terms of one layer: shapes and dtype of its weights, but not their values; the placement; options.

    Args:
        experts: the module to be replaced.
        placement: of all ranks.
        layer: row of a per-layer placement.
        alike: options that must be equal, by name.

    Example:
        >>> import torch
        >>> experts = nn.Module()
        >>> experts.down_proj = nn.Parameter(torch.zeros(4, 8, 16))
        >>> terms = layer_terms(experts, Placement.contiguous(4, 2), 0, balance="exact")
        >>> terms["weights"], terms["balance"]
        ({'down_proj': ['float32', 4, 8, 16]}, "'exact'")
    """
    weights = {name: [str(p.dtype).removeprefix("torch."), *p.shape] for name, p in experts.named_parameters()}
    shape = f"{placement.num_instances} instances of {placement.slots_per_instance} slots"
    options = {name: repr(value) for name, value in alike.items()}
    named = f"{shape}, {digest(placement.slots.tolist())}"
    return {"weights": weights, "placement": named, "layer": layer, **options}


def digest(value: Any) -> str:
    """A few hex digits that differ where the JSON values do.

    Example:
        >>> digest([0, 1]) == digest([0, 1]), digest([0, 1]) == digest([1, 0])
        (True, False)
    """
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=6).hexdigest()
