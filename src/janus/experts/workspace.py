"""Memory the GPU kernels work in: one block per device, shared by all layers, and never moved under a captured graph."""

from __future__ import annotations

from typing import Any

import torch

from janus.errors import JanusError

ALIGNED = 256  # bytes; more than any vector load needs
COUNTERS = 4096  # blocks of columns: a hidden size of 65,536 in the narrowest cut


class Workspace:
    """Scratch of one device. Calls that share it run one after another: in one stream, or in streams that wait.

    Args:
        device: where it lies.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._block = torch.empty(0, dtype=torch.uint8, device=device)
        self._captured: list[torch.Tensor] = []  # graphs hold addresses: what one has seen stays where it is
        self._stream: Any = None
        with torch.inference_mode(False):
            self.arrived = torch.zeros(COUNTERS, dtype=torch.int32, device=device)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.arrived.nbytes + self._block.nbytes + sum(block.nbytes for block in self._captured)

    def take(self, *parts: tuple[tuple[int, ...], torch.dtype]) -> list[torch.Tensor]:
        """Tensors of these shapes and types, uninitialised, that hold until the next call.

        Raises:
            JanusError: ``experts.workspace`` if the block is too small and a CUDA graph is being captured.
        """
        sizes = [-(-_count(shape) * dtype.itemsize // ALIGNED) * ALIGNED for shape, dtype in parts]
        capturing = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if sum(sizes) > self._block.nbytes:
            self._grow(sum(sizes), capturing)
        if self.device.type == "cuda":
            self._in_turn(capturing)
        out, at = [], 0
        for (shape, dtype), size in zip(parts, sizes, strict=True):
            out.append(self._block[at : at + _count(shape) * dtype.itemsize].view(dtype).view(shape))
            at += size
        return out

    def _grow(self, size: int, capturing: bool) -> None:
        if capturing:
            raise JanusError(
                "experts.workspace",
                f"a batch in a CUDA graph must fit the workspace: it holds {self._block.nbytes} bytes, {size} are needed; "
                "run one batch of this size before the capture",
            )
        with torch.inference_mode(False):
            self._block = torch.empty(size, dtype=torch.uint8, device=self.device)

    def _in_turn(self, capturing: bool) -> None:
        stream = torch.cuda.current_stream(self.device)
        if capturing:  # a capture begins after a synchronisation of its own, and must not wait for others
            if not any(block is self._block for block in self._captured):
                self._captured.append(self._block)
            return
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream


_OF: dict[torch.device, Workspace] = {}


def workspace_of(device: torch.device) -> Workspace:
    """The one of a device."""
    if device not in _OF:
        _OF[device] = Workspace(device)
    return _OF[device]


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
