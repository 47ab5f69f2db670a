"""One call in compiled code: its phases one after the other on all threads, and what stands before them.

Between phases threads wait until every item of the last one is finished, not for a number of threads: items are only
taken by threads that run, so however few there are, the wait ends.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import numpy as np

from janus.experts.activation import Activation
from janus.experts.cpu import columns, rows
from janus.experts.cpu.activating import activate
from janus.experts.cpu.jobs import DONE, JOB, JOB_BYTES, NUM_PHASES, bound, c_function, inlined
from janus.experts.cpu.vectors import SIZES, call, carray, fetch_and_add, give_way, loaded, pointer, read_shared, stored

SPINS = 2000  # looks at a counter before another thread gets the core: microseconds
_wait = load = store = cast("Any", pointer)  # bound by `phases` and `_copying`
load_size = store_size = 0


class Kinds(NamedTuple):
    """What the numbers of a call are; keys of `vectors.SIZES`.

    Attributes:
        matrix: of the weights.
        bias: of what is added to the products.
        plain: of the hidden states that come, and of what goes out unless that is float32.
        inner: what the products take: tokens' rows, and the activation's results.
        between: results of the first product.
    """

    matrix: str
    bias: str
    plain: str
    inner: str
    between: str


def _phases(jobs: Any) -> None:
    for phase in range(NUM_PHASES):
        job = jobs + JOB_BYTES * phase
        d = carray(pointer(job), (1,), JOB)[0]
        if d.items:
            call(d.code, job)
            _wait(job)


def _wait_for(job: Any) -> None:
    """Until all items of a job are finished."""
    items, spins = carray(pointer(job), (1,), JOB)[0].items, 0
    while read_shared(job + DONE) < items:
        spins += 1
        if spins > SPINS:
            give_way()


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


def codes(kinds: Kinds, activation: Activation | None, is_transposed: bool) -> tuple[int, ...]:
    """Address of what each phase of a call runs; each is compiled when a machine first needs it (seconds).

    Args:
        kinds: of numbers.
        activation: between the products; None has no items in its job, and is run by someone else.
        is_transposed: matrices are [in, out].
    """
    made = columns if is_transposed else rows
    parts = (
        _copying(kinds.plain, kinds.inner),
        made.up(kinds.matrix, kinds.bias, kinds.between),
        activate(activation, kinds.inner) if activation else None,
        made.down(kinds.matrix, kinds.bias),
        _copying("float32", kinds.plain),
    )
    return tuple(part.address if part else 0 for part in parts)


@functools.cache
def phases() -> Any:
    """A C function of the address of a call's jobs, which threads run side by side."""
    return c_function(bound(_phases, "all", _wait=inlined(_wait_for, "all")))


@functools.cache
def _copying(given: str, wanted: str) -> Any:
    names = {"load": loaded(given), "load_size": SIZES[given], "store": stored(wanted), "store_size": SIZES[wanted]}
    return c_function(bound(_copy, f"{given}_{wanted}", **names))
