"""Which experts the model's routers choose, read by forward hooks, and how two sets of choices differ."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel

ROWS = 8


@torch.no_grad()
def chosen_experts(model: PreTrainedModel, ids_BT: torch.Tensor) -> np.ndarray:
    """Chosen experts of every position of `ids_BT` (int64 token ids [B, T]): int16 [B, T, L, K]."""
    parts = []
    with _hooked(model) as seen:
        for rows in ids_BT.split(ROWS):
            seen.clear()
            model(input_ids=rows, use_cache=False)
            parts.append(torch.stack(seen, dim=1).view(*rows.shape, len(seen), -1))
    return torch.cat(parts).numpy().astype(np.int16)


@contextmanager
def _hooked(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """The third output of each layer's gate, `router_indices` [T, K], in layer order."""
    seen: list[torch.Tensor] = []
    gates = [layer.mlp.gate for layer in model.model.layers]
    handles = [gate.register_forward_hook(lambda _gate, _args, out: seen.append(out[2])) for gate in gates]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def stretches(data: np.ndarray, count: int, length: int) -> torch.Tensor:
    """`count` pieces of `length` bytes, evenly spread over `data`: int64 [count, length]."""
    starts = np.linspace(0, len(data) - length, count).astype(int)
    return torch.from_numpy(np.stack([data[s : s + length] for s in starts]).astype(np.int64))


def usage(ids_TLK: np.ndarray, num_experts: int) -> np.ndarray:
    """Share of a layer's assignments that each expert gets: float64 [L, E], rows sum to 1."""
    layers = ids_TLK.swapaxes(0, 1)
    counts = np.stack([np.bincount(layer.ravel(), minlength=num_experts) for layer in layers])
    return counts / counts.sum(axis=1, keepdims=True)


def total_variation(a_LE: np.ndarray, b_LE: np.ndarray) -> np.ndarray:
    """Share of the assignments that would have to move to turn one usage into the other: float64 [L], 0 to 1.

    Example: [0.5, 0.5] and [0.0, 1.0] are 0.5 apart.
    """
    return np.abs(a_LE - b_LE).sum(axis=1) / 2
