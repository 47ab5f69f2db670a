"""Sizes as kernels and tables want them."""

from __future__ import annotations


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not less than `n`.

    Example:
        >>> [next_power_of_2(n) for n in (0, 1, 5, 8)]
        [1, 1, 8, 8]
    """
    return 1 << max(0, n - 1).bit_length()
