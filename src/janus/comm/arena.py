"""Memory that is taken once and handed out again for every layer: a step allocates nothing that grows with H."""

from __future__ import annotations

import math

import torch

ALIGN = 64  # a cache line, and enough for every dtype


def aligned(size: int) -> int:
    """`size` bytes, rounded up to where the next tensor may start.

    Example:
        >>> aligned(1), aligned(64)
        (64, 64)
    """
    return -(-size // ALIGN) * ALIGN


class Arena:
    """A block of bytes that hands out tensors one after another, until `reset` starts it over.

    Args:
        size: bytes; taken from the system at the first use.
        device: where.

    Example:
        >>> arena = Arena(128, torch.device("cpu"))
        >>> rows = arena.take((2, 3), torch.float32)
        >>> rows.shape, arena.used
        (torch.Size([2, 3]), 64)
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.used = size, 0
        self._device = device
        self._block: torch.Tensor | None = None

    def reset(self) -> None:
        """Start over; what was handed out before will be overwritten."""
        self.used = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor without content."""
        if self._block is None:
            self._block = torch.empty(self.size, dtype=torch.uint8, device=self._device)
        size = math.prod(shape) * dtype.itemsize
        start, self.used = self.used, self.used + aligned(size)
        assert self.used <= self.size, f"the arena holds {self.size} bytes, {self.used} are wanted"
        return self._block[start : start + size].view(dtype).view(shape)
