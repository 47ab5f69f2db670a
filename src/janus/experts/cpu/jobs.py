"""What a job is told, and how it is compiled: once per machine, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba.core import types

from janus.experts.cpu.vectors import tile

# All int64. A stride is in bytes; a slot's matrix has `rows` results of `n` terms each.
FIELDS = (
    "counter",  # address of the number of the next item
    "blocks", "block_rows",  # items of a slot (up) or of all (down), and results of each
    "active", "slots", "starts", "tokens", "factors",  # `Runs`: their number, and addresses; float32 routing weights
    "matrix", "slot_stride", "row_stride", "rows", "n",
    "scales", "scale_slot_stride", "scale_row_stride", "scale_rows",  # scale_rows: rows that share a scale
    "bias", "bias_stride", "x", "x_stride", "out", "out_stride",
)  # fmt: skip
JOB = np.dtype([(name, np.int64) for name in FIELDS])


def bound(function: Callable[..., Any], name: str, **names: Any) -> Any:
    """`function` with `names` among its globals, and a name of its own.

    numba keeps compiled code on disk by a function's name and the time of its file; what a closure holds it would not
    find again in another process. So the name says on what else the code depends: the files beside it, and the tile.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    digest = hashlib.sha256(sources + repr(tile()).encode()).hexdigest()[:8]
    made = FunctionType(function.__code__, function.__globals__ | names, f"{function.__name__}_{name}_{digest}")
    made.__qualname__, made.__module__ = made.__name__, function.__module__
    return made


def compiled_job(function: Callable[..., Any]) -> Any:
    """A C function of one pointer to a `JOB`, which threads run side by side."""
    signature = types.void(types.voidptr)
    try:
        return numba.cfunc(signature, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder that numba may write to: each process compiles anew, in seconds
        return numba.cfunc(signature, error_model="numpy")(function)
