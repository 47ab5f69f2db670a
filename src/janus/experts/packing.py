"""Columns of several dtypes side by side as bytes, so that one exchange carries a token with all that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Column = tuple[int, torch.dtype]  # elements per row, dtype


def pack(columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of bytes.

    Args:
        columns: [S, n] each, of any dtype.

    Returns:
        uint8 [S, bytes of all columns].

    Example:
        >>> pack([torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int16)]).shape
        torch.Size([2, 14])
    """
    return torch.cat([column.contiguous().view(torch.uint8) for column in columns], dim=1)


def unpack(rows: torch.Tensor, columns: Sequence[Column]) -> list[torch.Tensor]:
    """What `pack` was given.

    Args:
        rows: uint8 [S, bytes of all columns].
        columns: of what was packed.

    Example:
        >>> columns = [(2, torch.float32), (1, torch.int64)]
        >>> [x.tolist() for x in unpack(pack([torch.ones(1, 2), torch.tensor([[7]])]), columns)]
        [[[1.0, 1.0]], [[7]]]
    """
    parts = rows.split([elements * dtype.itemsize for elements, dtype in columns], dim=1)
    # always into memory of its own, where it is aligned for its dtype
    return [
        part.clone(memory_format=torch.contiguous_format).view(dtype)
        for part, (_, dtype) in zip(parts, columns, strict=True)
    ]


def width(columns: Sequence[Column]) -> int:
    """Bytes of a row."""
    return sum(elements * dtype.itemsize for elements, dtype in columns)
