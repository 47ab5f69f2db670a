"""Time the routes of a live exchange, all ranks together, and fit the cost model to what was seen."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from janus.comm.cost import CostModel
from janus.comm.fitting import Observation, fit
from janus.comm.layout import Route, candidates

if TYPE_CHECKING:
    from janus.comm.api import Exchange

LAYERS = 2  # of a step: what one rank starts early in the first, it waits for in the second
PROBE_S = 0.03  # a step of this length tells bytes from latency
MOST_RUNS = 7


def calibrate(ex: Exchange, seconds: float) -> CostModel:
    """See `Exchange.calibrate`."""
    deadline = time.monotonic() + seconds
    rows = torch.zeros(ex.max_tokens * ex.topology.n_attention, ex.hidden_size, dtype=ex.dtype, device=ex.device)
    routes = candidates("auto", ex.topology)
    sizes, spent = _sizes(ex, rows, deadline)
    times: dict[tuple[Route, int], list[float]] = {}
    left = _agreed(ex, "left", deadline - time.monotonic())
    turns = max(1, min(MOST_RUNS, int(0.7 * left / max(len(routes) * sum(spent), 1e-9))))
    for _ in range(turns):
        for b in sizes:
            for route in routes:
                times.setdefault((route, b), []).append(_time(ex, rows, route, b))
    seen = [[*route, b, statistics.median(found)] for (route, b), found in times.items()]
    return _fitted(ex, seen)


def _sizes(ex: Exchange, rows: torch.Tensor, deadline: float) -> tuple[list[int], list[float]]:
    """Token counts from 1 to one that takes long enough, and how long a step of each takes, alike on all ranks."""
    direct = candidates("direct", ex.topology)[0]
    _time(ex, rows, direct, 1)  # the first message over a connection pays for it
    sizes, spent = [1], [_agreed(ex, "probe", _time(ex, rows, direct, 1))]
    while sizes[-1] < ex.max_tokens and spent[-1] < PROBE_S:
        if _agreed(ex, "left", deadline - time.monotonic()) < 0:
            break
        b = min(sizes[-1] * 4, ex.max_tokens)
        sizes.append(b)
        spent.append(_agreed(ex, "probe", _time(ex, rows, direct, b)))
    keep = sorted({0, len(sizes) // 2, len(sizes) - 1})
    return [sizes[i] for i in keep], [LAYERS * spent[i] for i in keep]


def _time(ex: Exchange, rows: torch.Tensor, route: Route, b: int) -> float:
    """Seconds of one dispatch and combine with b tokens on every attention rank, as this rank saw it."""
    ex._course.forced = route
    try:
        if ex.role == "attention":
            ex.begin(b)
            started = time.perf_counter()
            for layer in range(LAYERS):
                ex.combine(ex.dispatch(rows[:b], layer=layer, **_choices(ex, b)), out=rows[:b])
        else:
            ex.begin()
            started = time.perf_counter()
            for _ in range(LAYERS):
                x_all, handle = ex.receive()
                ex.reply(x_all, handle)
        return (time.perf_counter() - started) / LAYERS
    finally:
        ex._course.forced = None


def _choices(ex: Exchange, b: int) -> dict[str, Any]:
    """With the attention-side gate every row chooses a slot of every instance, as far as K reaches."""
    if ex.gate == "experts":
        return {}
    ids = torch.arange(ex.top_k, device=ex.device) % ex.topology.n_experts * ex.slots_per_instance
    weights = torch.zeros(b, ex.top_k, dtype=ex.dtype, device=ex.device)
    return {"physical_ids": ids.expand(b, -1).contiguous(), "weights": weights}


def _agreed(ex: Exchange, name: str, mine: float) -> float:
    """The largest value of all ranks."""
    return max(ex.share(f"calibrate/{name}", mine).values())


def _fitted(ex: Exchange, seen: list[list[Any]]) -> CostModel:
    """Fitted by one rank for all: the last bits of a fit may differ from machine to machine."""
    told = ex.share("calibrate/seen", seen)
    slowest = {tuple(key): 0.0 for *key, _ in seen}
    for rank in ex.topology.attention_ranks:
        for *key, s in told[rank]:
            slowest[tuple(key)] = max(slowest[tuple(key)], s)
    first = ex.topology.attention_ranks[0]
    model = None
    if ex.rank == first:
        n_a = ex.topology.n_attention
        cells = [Observation(Route(regime, depth), (b,) * n_a, s) for (regime, depth, b), s in slowest.items()]
        model = fit(cells, ex.topology, ex.hidden_size * ex.dtype.itemsize).to_dict()
    return CostModel(**ex.share("calibrate/model", model)[first])
