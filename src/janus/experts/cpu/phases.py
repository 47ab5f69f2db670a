"""One call in compiled code: its phases one after the other on all threads, and what stands before them.

Between phases threads wait until every item of the last one is finished, not for a number of threads: items are only
taken by threads that run, so however few there are, the wait ends.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NamedTuple, cast

import numpy as np

from janus.experts.activation import Activation
from janus.experts.cpu import columns, rows
from janus.experts.cpu.activating import activate
from janus.experts.cpu.jobs import (
    ACTIVATE,
    DONE,
    DOWN,
    JOB,
    JOB_BYTES,
    NARROW,
    UP,
    WIDEN,
    bound,
    entry,
    inlined,
)  # fmt: skip
from janus.experts.cpu.vectors import SIZES, carray, fetch_and_add, give_way, loaded, pointer, read_shared, stored

SPINS = 2000  # looks at a counter before another thread gets the core: microseconds
# Bound by `phases`.
widen = up = act = down = narrow = load = store = cast("Any", pointer)
load_size = store_size = 0


class Kinds(NamedTuple):
    """What the numbers of a call are; keys of `vectors.SIZES`.

    Attributes:
        matrix: of the weights.
        plain: of biases, and of the hidden states that come.
        inner: what the products take: tokens' rows, and the activation's results.
        between: results of the first product.
        result: what goes out.
    """

    matrix: str
    plain: str
    inner: str
    between: str
    result: str


def _phases(jobs: Any) -> None:
    widen(jobs + JOB_BYTES * WIDEN)
    _wait(jobs + JOB_BYTES * WIDEN)
    up(jobs + JOB_BYTES * UP)
    _wait(jobs + JOB_BYTES * UP)
    act(jobs + JOB_BYTES * ACTIVATE)
    _wait(jobs + JOB_BYTES * ACTIVATE)
    down(jobs + JOB_BYTES * DOWN)
    _wait(jobs + JOB_BYTES * DOWN)
    narrow(jobs + JOB_BYTES * NARROW)


def _wait_for(job: Any) -> None:
    """Until all items of a job are finished."""
    items, spins = carray(pointer(job), (1,), JOB)[0].items, 0
    while read_shared(job + DONE) < items:
        spins += 1
        if spins > SPINS:
            give_way()


_wait = inlined(_wait_for, "all")


def _copy(job: Any) -> None:
    """Rows of numbers of one kind to another; clears as many float32 rows beside them."""
    d = carray(pointer(job), (1,), JOB)[0]
    while True:
        item = fetch_and_add(job)
        if item >= d.items:
            break
        if d.cleared:
            carray(pointer(d.cleared + 4 * item * d.n), (d.n,), np.float32)[:] = 0
        if d.out:
            for i in range(d.n):
                store(d.out + item * d.out_stride + i * store_size, load(d.x + item * d.x_stride + i * load_size))
        fetch_and_add(job + DONE)


def _nothing(_job: Any) -> None:
    """Of an activation that compiled code does not know: its job has no items."""


@functools.cache
def phases(kinds: Kinds, activation: Activation | None, is_transposed: bool) -> Any:
    """A C function of the address of a call's jobs, which threads run side by side.

    Args:
        kinds: of numbers.
        activation: between the products; None has no items in its job, and is run by someone else.
        is_transposed: matrices are [in, out].
    """
    made = columns if is_transposed else rows
    name = "_".join([*kinds, repr(activation), str(is_transposed)])
    name = f"{kinds.matrix}_{hashlib.sha256(name.encode()).hexdigest()[:8]}".replace(" ", "_")
    parts = {
        "widen": _copying(kinds.plain, kinds.inner),
        "up": made.up(kinds.matrix, kinds.plain, kinds.between),
        "act": activate(activation, kinds.inner) if activation else inlined(_nothing, name),
        "down": made.down(kinds.matrix, kinds.plain),
        "narrow": _copying("float32", kinds.result),
    }
    return entry(bound(_phases, name, **parts))


def _copying(given: str, wanted: str) -> Any:
    names = {"load": loaded(given), "load_size": SIZES[given], "store": stored(wanted), "store_size": SIZES[wanted]}
    return inlined(_copy, f"{given}_{wanted}", **names)
