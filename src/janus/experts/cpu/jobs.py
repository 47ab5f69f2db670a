"""What the parts of a call are told, and how their code is compiled: once per machine, kept on disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import numba
import numpy as np
from numba.core import types

from janus.experts.cpu.vectors import carray, pointer, tile

# All int64. A stride is in bytes; a slot's matrix has `rows` results of `n` terms each.
FIELDS = (
    "counter", "done",  # number of the next item, and of those finished: first and second, threads change them
    "code",  # address of what takes its items
    "items", "blocks", "block_rows",  # of all; of one slot (up); results of each
    "active", "slots", "starts", "tokens", "factors",  # activated slots, and addresses of what `preparing` says of them
    "matrix", "slot_stride", "row_stride", "rows", "n",
    "scales", "scale_slot_stride", "scale_row_stride", "scale_rows",  # scale_rows: rows that share a scale
    "bias", "bias_stride", "x", "x_stride", "out", "out_stride", "cleared",  # cleared: of float32 [rows, n], set to zero
)  # fmt: skip
JOB = np.dtype([(name, np.int64) for name in FIELDS])
JOB_BYTES = JOB.itemsize
DONE = 8  # bytes from the start of a job to its number of finished items
TOKENS = 4  # of a tile
NUM_PHASES = 5
WIDEN, UP, ACTIVATE, DOWN, NARROW = range(NUM_PHASES)  # a call's jobs, in their order in memory and time
tile_1 = tile_2 = tile_3 = tile_4 = cast("Any", tile)  # bound by `by_tokens`


def _entries_of_job(d: Any) -> Any:
    """Slots [A], where their entries start [A + 1], and each entry's token and routing weight [N], of a job."""
    starts = carray(pointer(d.starts), (d.active + 1,), np.int64)
    total = starts[d.active]
    slots, tokens = carray(pointer(d.slots), (d.active,), np.int64), carray(pointer(d.tokens), (total,), np.int64)
    return slots, starts, tokens, carray(pointer(d.factors), (total,), np.float32)


def bound(function: Callable[..., Any], name: str, **names: Any) -> Any:
    """`function` with `names` among its globals, and a name of its own.

    numba keeps compiled code on disk by a function's name and the time of its file; what a closure holds it would not
    find again in another process. So the name says on what else the code depends: the files beside it, and the tile.
    """
    made = FunctionType(function.__code__, function.__globals__ | names, f"{function.__name__}_{name}_{_sources()}")
    made.__qualname__, made.__module__ = made.__name__, function.__module__
    return made


@functools.cache
def _sources() -> str:
    files = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(files + repr(tile()).encode()).hexdigest()[:8]


def _by_tokens(tokens: Any, *arguments: Any) -> None:
    if tokens == 4:
        tile_4(*arguments)
    elif tokens == 3:
        tile_3(*arguments)
    elif tokens == 2:
        tile_2(*arguments)
    else:
        tile_1(*arguments)


@functools.cache
def by_tokens(tile_of: Callable[..., Any], kind: str, rows: int) -> Any:
    """Tiles of so many weight rows, for compiled code: (tokens, and what the tile of 1 to `TOKENS` tokens takes)."""
    tiles = {f"tile_{n}": tile_of(kind, rows, n) for n in range(1, TOKENS + 1)}
    return inlined(_by_tokens, f"{tile_of.__name__}_{kind}_{rows}".replace(" ", "_"), **tiles)


@functools.cache
def entries_of() -> Any:
    """For compiled code: slots [A], where their entries start, tokens and routing weights of a job."""
    return inlined(_entries_of_job, "all")


def inlined(function: Callable[..., Any], name: str, **names: Any) -> Any:
    """Such a function for compiled code to call."""
    return numba.njit(error_model="numpy")(bound(function, name, **names))


def c_function(function: Callable[..., Any], result: Any = types.void, arguments: int = 1) -> Any:
    """A C function of int64 arguments."""
    signature = result(*[types.int64] * arguments)
    try:
        return numba.cfunc(signature, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder that numba may write to: each process compiles anew, in seconds
        return numba.cfunc(signature, error_model="numpy")(function)
