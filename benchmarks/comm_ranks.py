"""What a rank of the exchange benchmarks does: open an exchange once, then time steps over forced routes or "auto"."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from janus.comm import CostModel, Exchange, Timeouts
from janus.comm.layout import Route
from janus.types import Topology

torch.set_num_threads(1)
STATE: dict[str, Any] = {}


def open_exchange(topology: dict, hidden: int, dtype: str, most: int, cost: dict | None = None) -> None:
    """One exchange that all later calls use; the one before is closed."""
    close_exchange()
    STATE["ex"] = Exchange(
        Topology.from_dict(topology), hidden_size=hidden, dtype=dtype, max_tokens=most,
        timeouts=Timeouts(rendezvous_s=60, step_s=30), cost=CostModel(**cost) if cost else None,
    )  # fmt: skip


def close_exchange() -> None:
    if "ex" in STATE:
        STATE.pop("ex").close()


def use_cost(cost: dict) -> None:
    """The same model on every rank from here on."""
    STATE["ex"]._course.cost = CostModel(**cost)


def measure(plan: list, layers: int = 2, phases: bool = False) -> list:
    """One step for each (route or None for "auto", counts) of `plan`; returns the marks of this rank, step by step.

    Marks are `time.monotonic` values, which all processes of a machine share: [begin, then per layer start, end].
    """
    ex = STATE["ex"]
    marks = []
    for route, counts in plan:
        ex._course.forced = Route(*route) if route else None
        marks.append(_step(ex, counts, layers, phases))
    ex._course.forced = None
    return marks


def _step(ex: Exchange, counts: list[int], layers: int, phases: bool) -> list[float]:
    attention = ex.role == "attention"
    b = counts[ex.topology.instance(ex.rank)] if attention else None
    key = (b or sum(counts), ex.hidden_size)
    rows = STATE.setdefault("rows", {}).setdefault(key, torch.ones(key, dtype=ex.dtype))
    marks = [time.monotonic()]
    step = ex.begin(b)
    for layer in range(layers if step.total else 0):
        if phases:
            _meet()
        marks.append(time.monotonic())
        if attention:
            handle = ex.dispatch(rows, layer=layer)
            if phases:
                _meet()
            ex.combine(handle, out=rows)
        else:
            _, handle = ex.receive()
            marks.append(time.monotonic())
            if phases:
                _meet()
                marks.append(time.monotonic())
            ex.reply(rows, handle)
        marks.append(time.monotonic())
    return [*marks, step.regime, step.depth]


def _meet() -> None:
    """All ranks at the same point."""
    torch.distributed.barrier()


def rank_zero() -> int:
    return int(os.environ["RANK"])
