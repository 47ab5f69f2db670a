"""Turn what a user passed into plain numbers and arrays, or into a `JanusError`; never into another exception."""

from __future__ import annotations

import math
import operator
import reprlib
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError

INT64_MAX = 2**63 - 1
T = TypeVar("T")


class Frozen:
    """A value that cannot be changed once `_freeze` was called; its arrays stay read-only through pickle and copy."""

    _frozen: ClassVar[bool] = False

    def _freeze(self) -> None:
        for value in self.__dict__.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        self.__dict__["_frozen"] = True

    def __setattr__(self, name: str, value: object) -> None:
        if self._frozen:
            raise AttributeError(f"{type(self).__name__} is frozen; make a new one instead of setting {name}")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen; {name} stays")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._freeze()  # NumPy forgets the read-only flag when it pickles


def shown(value: object) -> str:
    """A short form of any value for a message, whatever its size or its `repr`."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return reprlib.repr(value)


def instance(value: Any, kind: type[T], what: str, code: str, remedy: str) -> T:
    """Return `value` if it is a `kind`; `what` is the rule for the message, `remedy` says how to make one.

    Example:
        >>> instance(3, int, "layers must be an int", "x.type", "give a number")
        3
    """
    if not isinstance(value, kind):
        raise JanusError(code, f"{what}, got {shown(value)}; {remedy}")
    return value


def integer(value: Any, what: str, code: str, low: int = 0, high: int = INT64_MAX) -> int:
    """Return `value` as an int in low..high; booleans and floats are not integers.

    Example:
        >>> integer(np.int8(3), "layers", "x.range")
        3
    """
    rule = f"{what} must be an integer {f'in {low}..{high}' if high < INT64_MAX else f'>= {low}'}"
    try:
        number = operator.index(value)
    except Exception:  # a foreign object's __index__ may raise anything
        number = None
    if number is None or isinstance(value, (bool, np.bool_)) or not low <= number <= high:
        raise JanusError(code, f"{rule}, got {shown(value)}")
    return number


def integers(value: Any, rule: str, code: str, ndim: tuple[int, ...]) -> npt.NDArray[np.integer[Any]]:
    """Return `value` as an integer array of one of the dimensions `ndim`; its range is the caller's to check.

    Args:
        value: anything array-like; an empty list counts as integers.
        rule: what it must be, for the message ("slots must be integers [L, G, C] or [G, C]").
        code: of the error.
        ndim: allowed numbers of dimensions.
    """
    raw = _array(value, rule, code)
    if raw.size == 0 and raw.dtype == np.float64:
        raw = raw.astype(np.int64)
    if raw.ndim not in ndim or not np.issubdtype(raw.dtype, np.integer):
        raise JanusError(code, f"{rule}; got {raw.dtype} {raw.shape}")
    return raw


def floats(value: Any, rule: str, code: str) -> npt.NDArray[np.float64]:
    """Return `value` as a new 1-D float64 array of finite numbers."""
    raw = _array(value, rule, code)
    if raw.ndim != 1 or raw.dtype.kind not in "iuf":
        raise JanusError(code, f"{rule}; got {raw.dtype} {raw.shape}")
    out = raw.astype(np.float64)
    if not np.isfinite(out).all():
        at = int(np.argmin(np.isfinite(out)))
        raise JanusError(code, f"{rule}; got {out[at]} at position {at}")
    return out


def number(value: Any, rule: str, code: str) -> float:
    """Return `value` as a finite float."""
    try:
        good = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        out = float(value) if good else math.nan
    except OverflowError:  # an int beyond the range of a float
        out = math.nan
    if not math.isfinite(out):
        raise JanusError(code, f"{rule}, got {shown(value)}")
    return out


def first_outside(array: npt.NDArray[Any], low: int, high: int) -> tuple[int, ...] | None:
    """Index of the first element outside low..high, or None; exact for every integer type."""
    if array.size == 0 or (int(array.min()) >= low and int(array.max()) <= high):
        return None  # the common case builds no mask
    info = np.iinfo(array.dtype)
    bad = (array < max(low, int(info.min))) | (array > min(high, int(info.max)))
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))


def _array(value: Any, rule: str, code: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:  # ragged lists, tensors of another device, foreign __array__ methods
        raise JanusError(code, f"{rule}; got {type(value).__name__} that is no full array ({error})") from None
