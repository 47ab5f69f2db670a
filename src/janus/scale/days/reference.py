"""The simulator once more in plain loops: every request an object, every token counted down; for tests, and to read.

Given the decisions that were taken it must find the same joins, the same ends, the same GPU-seconds, to the last bit.
No ring, no tables by number: only the step's knots are shared, looked up here in their own way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.scale.days.stage import Stage
from janus.scale.days.steptimes import Curve
from janus.scale.online.decisions import Decision


@dataclass
class Request:
    """One request: what it asked for, where it is, what is left."""

    number: int
    time_s: float
    prompt: int
    left: int
    held_bytes: int
    made: int = 0
    joined_s: float | None = None
    finished_s: float | None = None


@dataclass
class Replay:
    """The state of the plain simulator, and in the end its result."""

    waiting: deque[Request]
    instances: list[list[Request]]
    now_s: float = 0.0
    gpu_s: float = 0.0
    tokens: int = 0
    steps: int = 0
    done: list[Request] = field(default_factory=list)


def replay(stage: Stage, policy: Any, decisions: Sequence[Decision]) -> Replay:
    """Serve the stage's requests with the pools that a policy decided on."""
    held = stage.held_bytes()
    columns = zip(stage.requests.times_s, stage.requests.input_tokens, stage.requests.output_tokens, held, strict=True)
    queue = deque(Request(n, float(t), int(i), int(o) - 1, int(h)) for n, (t, i, o, h) in enumerate(columns))
    state = Replay(queue, [[] for _ in range(max(d.n_attention for d in decisions))])
    serving, target, answers = decisions[0], None, deque(decisions[1:])
    start_s, end_s = 0.0, stage.requests.duration_s
    while state.waiting or any(state.instances) or state.now_s < end_s:
        stop_s = (start_s // stage.load.window_s + 1) * stage.load.window_s
        if answers and answers[0].time_s <= start_s:
            answer = answers.popleft()
            same = (answer.n_attention, answer.n_experts) == (serving.n_attention, serving.n_experts)
            target = None if same else answer
        if target and target.time_s + target.migration_s < stop_s:
            _until(state, stage, policy, (serving, target), max(target.time_s + target.migration_s, start_s))
            serving, target = target, None
        _until(state, stage, policy, (serving, target or serving), stop_s)
        start_s = stop_s
    return state


def _until(state: Replay, stage: Stage, policy: Any, change: tuple[Decision, Decision], stop_s: float) -> None:
    """Step with fixed pools, paying for those that come too, until the clock reaches `stop_s`."""
    serving, target = change
    n_a, n_e, end_s = serving.n_attention, serving.n_experts, stage.requests.duration_s
    layout = stage.layout(policy, n_a, n_e)
    pools = stage.pools((n_a, n_e), (target.n_attention, target.n_experts), layout)
    curve = stage.curve(n_a, n_e, layout)
    paid_a = max(n_a, target.n_attention)
    while state.now_s < stop_s:
        _join(state, n_a, pools.capacity, pools.max_batch)
        flying = [r for rs in state.instances for r in rs]
        paid = pools.others + paid_a
        if flying:
            took_ms = _step_ms(curve, state.instances)
            paid += sum(1 for rs in state.instances[paid_a:] if rs)
            state.now_s += took_ms / 1e3
            state.gpu_s += paid * (took_ms / 1e3)
            _token(state)
            continue
        if state.waiting:
            jump = min(stop_s, state.waiting[0].time_s)
        elif state.now_s >= end_s:
            return
        else:
            jump = min(stop_s, end_s)
        state.gpu_s += paid * (jump - state.now_s)
        state.now_s = jump


def _join(state: Replay, serving: int, capacity: int, max_batch: int) -> None:
    """First in, first out: the head joins the least busy instance that has room, or everybody waits."""
    while state.waiting and state.waiting[0].time_s <= state.now_s:
        head = state.waiting[0]
        if head.left == 0:
            head.joined_s = head.finished_s = head.time_s
            state.done.append(state.waiting.popleft())
            continue
        fits = [rs for rs in state.instances[:serving] if sum(r.held_bytes for r in rs) + head.held_bytes <= capacity]
        if not fits or sum(map(len, state.instances)) >= max_batch:
            return
        min(fits, key=len).append(head)
        head.joined_s = state.now_s
        state.waiting.popleft()


def _token(state: Replay) -> None:
    state.steps += 1
    for at, requests in enumerate(state.instances):
        for r in requests:
            state.tokens += 1
            r.made += 1
            r.left -= 1
            if not r.left:
                r.finished_s = state.now_s
                state.done.append(r)
        state.instances[at] = [r for r in requests if r.left]


def _step_ms(curve: Curve, instances: list[list[Request]]) -> float:
    """The slowest instance's attention, then the rest."""
    slowest = 0.0
    for requests in instances:
        if requests:
            cached = sum(r.prompt + r.made + 1 for r in requests)
            slowest = max(slowest, _attention_ms(curve, len(requests) * curve.instance_share, cached / len(requests)))
    return slowest + _read(curve.batch_knots, curve.rest, sum(map(len, instances)) * curve.batch_share)


def _attention_ms(curve: Curve, b: float, context: float) -> float:
    columns = [_read(curve.contexts, row, context) for row in curve.attention]
    return _read(curve.b_knots, columns, b)


def _read(at: npt.ArrayLike, values: npt.ArrayLike, x: float) -> float:
    """Linear between knots, the outer pieces going on beyond both ends."""
    at, values = np.asarray(at), np.asarray(values)
    inner = [i for i in range(1, len(at) - 1) if at[i] <= x]
    i = inner[-1] if inner else 0
    return float(values[i] + (x - at[i]) / (at[i + 1] - at[i]) * (values[i + 1] - values[i]))
