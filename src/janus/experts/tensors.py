"""Tensors of a model folder by their names on disk, part by part; FP8 ones together with their scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from janus.errors import JanusError
from janus.experts.folder import INDEX, SINGLE
from janus.experts.quantized import dequantize
from janus.experts.stored_scales import FP8, as_float32, scale_of

ALL = slice(None)


class TensorFiles:
    """The safetensors files of a folder, headers read on opening.

    Args:
        folder: holds ``model.safetensors``, or shards with their index.

    Raises:
        JanusError: ``checkpoint.missing`` (a file or tensor that should be there), ``checkpoint.corrupt``.
    """

    def __init__(self, folder: Path) -> None:
        self._files = _tensor_files(folder)
        self.scale_of = scale_of(self._files)  # name -> name of its scales
        self.names = self._files.keys() - set(self.scale_of.values())
        self._open = ExitStack()
        self._handles: dict[Path, Any] = {}

    def close(self) -> None:
        """Unmap the files."""
        self._open.close()
        self._handles.clear()

    def read(self, key: str, rows: slice = ALL) -> torch.Tensor:
        """What rows of the first dimension stand for: as stored, or float32 where it is stored in FP8."""
        stored = self.stored(key, rows)
        if key not in self.scale_of and not _is_byte_float(stored):
            return stored
        return dequantize(stored, self.scales(key, rows), FP8)

    def scales(self, key: str, rows: slice = ALL) -> torch.Tensor:
        """Scales of a tensor stored in FP8, in float32: [.., ceil(out / 128), ceil(in / 128)].

        Raises:
            JanusError: ``checkpoint.missing`` without scales, ``checkpoint.corrupt`` if they are not those of the tensor.
        """
        stored = self.stored(key, rows)
        if key not in self.scale_of:
            raise JanusError(
                "checkpoint.missing",
                f"{self._files[key]}: {key} is stored as {stored.dtype}, and its scales are missing; the checkpoint is not "
                "complete, or of another format",
            )
        return as_float32(key, stored, self.stored(self.scale_of[key], rows))

    def stored(self, key: str, rows: slice = ALL) -> torch.Tensor:
        """Rows as they lie in the file."""

        def part(handle: Any) -> torch.Tensor:
            whole = handle.get_slice(key)
            return whole[rows] if whole.get_shape() else handle.get_tensor(key)

        return self._ask(key, part)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._ask(key, lambda handle: tuple(handle.get_slice(key).get_shape()))

    def check_scaled(self, key: str) -> None:
        """Refuse a tensor in 8 bits without scales, from the header alone (``checkpoint.missing``)."""
        if key not in self.scale_of and self._ask(key, lambda handle: handle.get_slice(key).get_dtype()).startswith(
            "F8"
        ):
            self.scales(key, slice(0, 0))

    def _ask(self, key: str, question: Callable[[Any], Any]) -> Any:
        """What the file of tensor `key` answers; it stays open."""
        from safetensors import SafetensorError, safe_open

        path = self._files[key]
        try:
            if path not in self._handles:
                self._handles[path] = self._open.enter_context(safe_open(path, framework="pt"))
            return question(self._handles[path])
        except (SafetensorError, OSError) as error:
            raise JanusError("checkpoint.corrupt", f"{path}: cannot read {key}: {error}") from error


def _is_byte_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() == 1


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the headers; every file of the index is opened."""
    index = folder / INDEX
    if not index.is_file():
        return dict.fromkeys(_header(folder / SINGLE), folder / SINGLE)
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        wanted = {str(key): folder / str(name) for key, name in weight_map.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise JanusError("checkpoint.corrupt", f"{index} is not an index of safetensors shards: {error!r}") from error
    outside = next((path for path in wanted.values() if path.parent != folder), None)
    if outside is not None:
        raise JanusError("checkpoint.corrupt", f"{index} names {outside}, which lies outside the model folder")
    for path in sorted(set(wanted.values())):
        lacking = {key for key, p in wanted.items() if p == path} - _header(path)
        if lacking:
            raise JanusError(
                "checkpoint.missing", f"{path} lacks {len(lacking)} tensors that {INDEX} names, e.g. {min(lacking)}"
            )
    return wanted


def _header(path: Path) -> set[str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise JanusError("checkpoint.missing", f"weight file {path} is missing; download the folder again")
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise JanusError("checkpoint.corrupt", f"{path} is not a whole safetensors file: {error}") from error
