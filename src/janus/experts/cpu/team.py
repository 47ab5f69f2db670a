"""Run compiled code on all of torch's threads.

A job is a C function of one pointer that takes items of work from a counter until there are none, so it may be run by
any number of threads at once. They are those of torch's own OpenMP pool where its runtime can be found in the process:
a pool of our own would fight for the cores with threads of torch that wait for their next operation.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


@functools.cache
def _openmp() -> Callable[..., Any] | None:
    """GOMP_parallel(function, data, threads, flags) of the runtime that torch has loaded, if it has it."""
    try:
        found = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError):
        return None
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return found


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="janus-experts")


def run(job: Any, data: int, *, alone: bool = False) -> None:
    """Run `job` (a numba cfunc) on the data at address `data`, on one thread if `alone`; returns when all is done."""
    threads = 1 if alone else torch.get_num_threads()
    if threads == 1:
        job.ctypes(data)  # lets go of the interpreter's lock, like the others
    elif parallel := _openmp():
        parallel(job.address, data, threads, 0)
    else:
        others = [_pool().submit(job.ctypes, data) for _ in range(threads - 1)]
        job.ctypes(data)
        for each in others:
            each.result()
