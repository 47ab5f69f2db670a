"""What a rank does in the benchmarks and proofs of the exchange: open it once, then run steps over named routes."""

from __future__ import annotations

import time
from typing import Any

import torch
from comm_batches import Batch, C, H, K, one_layer

from janus.comm import Exchange, Timeouts
from janus.comm.layout import Route, possible
from janus.types import Topology

torch.set_num_threads(1)
STATE: dict[str, Any] = {}
TIMEOUTS = Timeouts(rendezvous_s=90, step_s=60)


def open_exchange(topology: dict, hidden: int, dtype: str, most: int, seconds: float = 0.0) -> dict[str, Any]:
    """One exchange that all later calls use; with `seconds` it is calibrated. Its cost model, and how long that took."""
    close_exchange()
    shape = Topology.from_dict(topology)
    ex = Exchange(shape, hidden_size=hidden, dtype=dtype, max_tokens=most, timeouts=TIMEOUTS)
    STATE["ex"], STATE["rows"] = ex, torch.ones(most * shape.n_attention, hidden, dtype=ex.dtype)
    began = time.monotonic()
    if seconds:
        ex.calibrate(seconds=seconds)
    return {"cost": ex.cost.to_dict(), "seconds": time.monotonic() - began}


def close_exchange() -> None:
    """Leave; nothing where none is open."""
    if "ex" in STATE:
        STATE.pop("ex").close()


def measure(plan: list, layers: int, apart: bool = False) -> list:
    """One step for each (way, counts) of `plan`; a way is a route, ``"auto"``, or ``"flat"`` for one all-to-all each way.

    Returns per step the marks of this rank (`time.monotonic`, which all processes of a machine share) and what was
    taken: before `begin`, then per layer the start, the end of the way out and the end. With `apart` all ranks
    meet before each direction, so that the two can be told apart.
    """
    return [_step(STATE["ex"], way, counts, layers, apart) for way, counts in plan]


def _step(ex: Exchange, way: Any, counts: list[int], layers: int, apart: bool) -> list:
    rows = STATE["rows"]
    b = counts[ex.topology.instance(ex.rank)] if ex.role == "attention" else None
    x = rows[: sum(counts) if b is None else b]
    ex._course.forced = Route(*way) if isinstance(way, list) else None
    marks = [time.monotonic()]
    step = ex.begin(b)
    for layer in range(layers):
        _meet(apart)
        marks.append(time.monotonic())
        if way == "flat":
            marks += _flat(ex, x, counts)
        elif b is None:
            _, handle = ex.receive()
            marks.append(time.monotonic())
            _meet(apart)
            marks.append(time.monotonic())
            ex.reply(x, handle)
        else:
            handle = ex.dispatch(x, layer=layer)
            marks.append(time.monotonic())
            _meet(apart)
            marks.append(time.monotonic())
            ex.combine(handle, out=x)
        marks.append(time.monotonic())
    ex._course.forced = None
    return [marks, [step.regime, step.depth]]


def _flat(ex: Exchange, x: torch.Tensor, counts: list[int]) -> list[float]:
    """Every row to every expert rank and back by `all_to_all_single`: what a user would write first."""
    n_e, none = ex.topology.n_experts, [0] * ex.topology.n_experts
    to_all, from_all = torch.distributed.all_to_all_single, x.new_empty
    if ex.role == "attention":
        idle, own = [0] * len(counts), [len(x)] * n_e
        to_all(from_all(0, x.shape[1]), x.repeat(n_e, 1), idle + none, idle + own)
        marks = [time.monotonic()] * 2
        back = from_all(n_e * len(x), x.shape[1])
        to_all(back, from_all(0, x.shape[1]), idle + own, idle + none)
        torch.sum(back.view(n_e, *x.shape), 0, out=x)
        x.fill_(1)
        return marks
    to_all(from_all(*x.shape), from_all(0, x.shape[1]), counts + none, [0] * len(counts) + none)
    marks = [time.monotonic()] * 2
    to_all(from_all(0, x.shape[1]), x, [0] * len(counts) + none, counts + none)
    return marks


def _meet(wanted: bool) -> None:
    if wanted:
        torch.distributed.barrier()


def payload(topology: dict, plans: list) -> int:
    """Both gates, all routes, dtypes taking turns: every result bit for bit that of the plain reference; how many."""
    shape, checked = Topology.from_dict(topology), 0
    for gate, dtype in (("experts", torch.bfloat16), ("attention", torch.float32), ("experts", torch.float16)):
        with Exchange(
            shape, hidden_size=H, dtype=dtype, max_tokens=max(map(max, plans)), gate=gate, top_k=K,
            slots_per_instance=C, timeouts=TIMEOUTS,
        ) as ex:  # fmt: skip
            for counts in map(tuple, plans):
                batch = Batch(shape, counts, 0, dtype, gate, mixed=False)
                for route in possible(shape):
                    ex._course.forced = route
                    ex.begin(counts[shape.instance(ex.rank)] if ex.role == "attention" else None)
                    if sum(counts):
                        one_layer(ex, batch, 0)
                        checked += 1
            if ex.role == "expert":
                assert ex.begin().closed
    return checked
