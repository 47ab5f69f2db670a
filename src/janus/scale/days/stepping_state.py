"""What the simulator's loops work on: a clock, the requests, the attention instances, and the pools that are paid."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from janus.types import RequestTrace

# of `Run.count`
STEP, HEAD, ARRIVED, FLIGHT, TOKENS = range(5)
# of `Run.clock`
NOW, GPU_S, TOKEN_MS = range(3)


class Run(NamedTuple):
    """All that changes while time passes, and the requests. N requests, I attention instances, M steps in the ring."""

    times_s: Any
    """float64 [N]: arrivals."""
    inputs: Any
    """int64 [N], tokens."""
    outputs: Any
    """int64 [N], tokens; the first is the prefill's, the others are made here."""
    held_bytes: Any
    """int64 [N]: memory of the request at its full length."""
    home: Any
    """int32 [N]: attention instance, -1 before it joins."""
    joined_s: Any
    """float64 [N]: beginning of the first step it took part in, nan before."""
    finished_s: Any
    """float64 [N]: end of its last step, nan before."""
    first: Any
    """int64 [M]: a request that finishes in the step, -1 for none."""
    following: Any
    """int64 [N]: the next request that finishes in the same step, -1 for none."""
    requests: Any
    """int64 [I]: in flight on the instance."""
    cached: Any
    """int64 [I]: tokens in its cache."""
    reserved: Any
    """int64 [I]: bytes promised to its requests."""
    count: Any
    """int64: step number, head of the queue, requests that have arrived, in flight, tokens made."""
    clock: Any
    """float64: now (s), GPU-seconds paid, milliseconds times tokens."""


class Pools(NamedTuple):
    """What serves and what is paid between two changes."""

    serving: int
    """Attention instances that take new requests: 0..serving-1. Those above it drain."""
    paid: int
    """Attention instances paid whether or not they hold requests (those that start up included)."""
    others: int
    """GPUs paid beside them: the expert pool."""
    capacity: int
    """Bytes for requests on one attention instance."""
    max_batch: int
    """Most requests in flight."""


def fresh(requests: RequestTrace, held_bytes: npt.NDArray[np.int64], instances: int) -> Run:
    """Time zero, nobody has arrived.

    Args:
        requests: arrivals and lengths.
        held_bytes: int64 [N], memory of every request at its full length.
        instances: I.
    """
    n = requests.num_requests
    return Run(
        times_s=np.array(requests.times_s),
        inputs=np.array(requests.input_tokens),
        outputs=np.array(requests.output_tokens),
        held_bytes=held_bytes,
        home=np.full(n, -1, dtype=np.int32),
        joined_s=np.full(n, np.nan),
        finished_s=np.full(n, np.nan),
        first=np.full(int(requests.output_tokens.max()), -1, dtype=np.int64),
        following=np.full(n, -1, dtype=np.int64),
        requests=np.zeros(instances, dtype=np.int64),
        cached=np.zeros(instances, dtype=np.int64),
        reserved=np.zeros(instances, dtype=np.int64),
        count=np.zeros(5, dtype=np.int64),
        clock=np.zeros(3),
    )


def widened(run: Run, instances: int) -> Run:
    """The same run with room for at least so many attention instances."""
    more = instances - len(run.requests)
    if more <= 0:
        return run
    grown = {name: np.pad(getattr(run, name), (0, more)) for name in ("requests", "cached", "reserved")}
    return run._replace(**grown)
