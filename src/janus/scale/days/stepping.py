"""The simulator's loops: one pass per model step, compiled where numba can be imported, else run as they are.

Every request in flight advances one token per step, so the step in which it finishes is known when it joins: it is
listed under that step's number, in a ring of lists, and nothing is searched. The queue is a range of request numbers,
because it is first in, first out. Imported on first use, because numba takes a second.
"""

from __future__ import annotations

from typing import Any

from janus.scale.days.stepping_state import ARRIVED, FLIGHT, GPU_S, HEAD, NOW, STEP, TOKEN_MS, TOKENS, Pools, Run
from janus.scale.days.steptimes import Curve
from janus.sched.search_loops import compiled


@compiled
def advance(run: Run, pools: Pools, curve: Curve, until_s: float, last_s: float) -> None:
    """Step until the clock reaches `until_s`, or, past `last_s`, until nothing is left to do.

    A step that has begun is finished. Without work the clock jumps to the next arrival.
    """
    count, clock, times = run.count, run.clock, run.times_s
    while clock[NOW] < until_s:
        while count[ARRIVED] < len(times) and times[count[ARRIVED]] <= clock[NOW]:
            count[ARRIVED] += 1
        admit(run, pools)
        if count[FLIGHT]:
            took_ms = step_ms(run, curve)
            paid = pools.others + pools.paid + draining(run, pools.paid)
            clock[NOW] += took_ms / 1e3
            clock[GPU_S] += paid * (took_ms / 1e3)
            clock[TOKEN_MS] += took_ms * count[FLIGHT]
            finish(run)
            continue
        stop = until_s
        if count[ARRIVED] < len(times):
            stop = min(until_s, times[count[ARRIVED]])
        elif clock[NOW] >= last_s:
            return
        else:
            stop = min(until_s, last_s)
        clock[GPU_S] += (pools.others + pools.paid) * (stop - clock[NOW])
        clock[NOW] = stop


@compiled
def admit(run: Run, pools: Pools) -> None:
    """The head of the queue joins the instance with the fewest requests that has memory for it; else all wait."""
    count = run.count
    while count[HEAD] < count[ARRIVED]:
        r = count[HEAD]
        made = run.outputs[r] - 1
        if not made:  # its only token came from the prefill
            run.joined_s[r] = run.times_s[r]
            run.finished_s[r] = run.times_s[r]
            count[HEAD] += 1
            continue
        best = -1
        for i in range(pools.serving):
            if run.reserved[i] + run.held_bytes[r] <= pools.capacity and (
                best < 0 or run.requests[i] < run.requests[best]
            ):
                best = i
        if best < 0 or count[FLIGHT] >= pools.max_batch:
            return
        run.home[r] = best
        run.joined_s[r] = run.clock[NOW]
        run.requests[best] += 1
        run.cached[best] += run.inputs[r] + 1
        run.reserved[best] += run.held_bytes[r]
        last = (count[STEP] + made - 1) % len(run.first)
        run.following[r] = run.first[last]
        run.first[last] = r
        count[FLIGHT] += 1
        count[HEAD] += 1


@compiled
def finish(run: Run) -> None:
    """One token for every request in flight; those whose last step this was leave."""
    count = run.count
    count[TOKENS] += count[FLIGHT]
    for i in range(len(run.requests)):
        run.cached[i] += run.requests[i]
    slot = count[STEP] % len(run.first)
    r = run.first[slot]
    run.first[slot] = -1
    while r >= 0:
        i = run.home[r]
        run.finished_s[r] = run.clock[NOW]
        run.requests[i] -= 1
        run.cached[i] -= run.inputs[r] + run.outputs[r]
        run.reserved[i] -= run.held_bytes[r]
        count[FLIGHT] -= 1
        r = run.following[r]
    count[STEP] += 1


@compiled
def draining(run: Run, paid: int) -> int:
    """Attention instances beyond those paid anyway that still hold requests."""
    busy = 0
    for i in range(paid, len(run.requests)):
        busy += run.requests[i] > 0
    return busy


@compiled
def step_ms(run: Run, curve: Curve) -> float:
    """The slowest instance's attention and the rest of the step, milliseconds."""
    slowest = 0.0
    for i in range(len(run.requests)):
        n = run.requests[i]
        if n:
            took = attention_ms(curve, n * curve.instance_share, run.cached[i] / n)
            slowest = max(slowest, took)
    batch = run.count[FLIGHT] * curve.batch_share
    k = piece(curve.batch_knots, batch)
    return slowest + line(curve.batch_knots, curve.rest, k, batch)


@compiled
def attention_ms(curve: Curve, b: float, context: float) -> float:
    """Attention of `b` requests of `context` cached tokens, bilinear between knots, milliseconds."""
    j = piece(curve.contexts, context)
    k = piece(curve.b_knots, b)
    low = line(curve.contexts, curve.attention[k], j, context)
    high = line(curve.contexts, curve.attention[k + 1], j, context)
    part = (b - curve.b_knots[k]) / (curve.b_knots[k + 1] - curve.b_knots[k])
    return low + part * (high - low)


@compiled
def piece(at: Any, x: float) -> int:
    """The i in 0..len-2 with at[i] <= x < at[i + 1], the outer pieces going on beyond both ends."""
    low, high = 0, len(at) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if at[middle] <= x:
            low = middle
        else:
            high = middle
    return low


@compiled
def line(at: Any, values: Any, i: int, x: float) -> float:
    """The line through knots i and i + 1, at x."""
    return values[i] + (x - at[i]) / (at[i + 1] - at[i]) * (values[i + 1] - values[i])
