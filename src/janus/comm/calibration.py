"""Time the routes of a live exchange, all ranks together, and fit the cost model to what was seen."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from janus.comm.cost import CostModel
from janus.comm.fitting import Observation, fit
from janus.comm.layout import REGIMES, ROUTES, Route, candidates

if TYPE_CHECKING:
    from janus.comm.api import Exchange

LAYERS = 2  # of a step: some ranks end a layer before others, and are waited for in the next
MOST_RUNS = 15
LARGEST = 1 / 24  # of the time given: how long one layer of the largest size may take
LEAST_SIZES = 3  # one tells nothing about bytes, and the second may still be all latency
AS_DIRECT = 4  # all routes together take about as long as so many times "direct"
KEEP = 3  # sizes up to the largest, besides the smallest


def calibrate(ex: Exchange, seconds: float) -> CostModel:
    """See `Exchange.calibrate`."""
    course = ex._course
    before = course.step, course.layer, course.regime
    try:
        return _fitted(ex, _measured(ex, _agreed(ex, "seconds", seconds)))
    finally:
        course.step, course.layer, course.regime = before  # a program that does without `begin` goes on so


def _measured(ex: Exchange, seconds: float) -> list[list[Any]]:
    """Regime, depth, tokens per attention rank and seconds, as this rank saw them."""
    deadline = time.monotonic() + seconds
    rows = torch.zeros(ex.max_tokens * ex.topology.n_attention, ex.hidden_size, dtype=ex.dtype, device=ex.device)
    routes = _routes(ex)
    spent = _probe(ex, rows, routes[0], seconds * LARGEST, deadline)
    sizes = sorted(spent)
    sizes = sorted({sizes[0], *sizes[-KEEP:]})
    times: dict[tuple[Route, int], list[float]] = {}
    left = _agreed(ex, "left", deadline - time.monotonic())
    layers = LAYERS if LAYERS * len(routes) * sum(spent[b] for b in sizes) < left else 1
    for i, b in enumerate(sizes):
        share = _agreed(ex, "left", deadline - time.monotonic()) / (len(sizes) - i)
        for _ in range(max(1, min(MOST_RUNS, int(share / (len(routes) * layers * spent[b]))))):
            for route in routes:
                times.setdefault((route, b), []).append(_time(ex, rows, route, b, layers))
    return [[*route, b, statistics.median(found)] for (route, b), found in times.items()]


def _routes(ex: Exchange) -> list[Route]:
    """Those that this exchange may take, and with "auto" every regime: its memory is made for no others."""
    regime = ex._rules.regime
    found = {*candidates(regime, ex.topology), *map(Route, REGIMES if regime == "auto" else ())}
    return sorted(found, key=ROUTES.index)


def _probe(ex: Exchange, rows: torch.Tensor, route: Route, longest_s: float, deadline: float) -> dict[int, float]:
    """Token counts from 1 to one that takes long enough, with the seconds of a layer, alike on all ranks."""
    b = 1
    _time(ex, rows, route, b, LAYERS)  # the first message over a connection pays for it
    spent = {b: _agreed(ex, "probe", _time(ex, rows, route, b, LAYERS))}
    most = ex._rules.most
    while b < most:
        left = _agreed(ex, "left", deadline - time.monotonic())
        affordable = len(spent) < LEAST_SIZES and spent[b] * 4 * AS_DIRECT < left
        if left <= 0 or not (len(spent) < 2 or affordable or spent[b] * 4 < longest_s):
            break
        b = min(b * 4, most)
        spent[b] = _agreed(ex, "probe", _time(ex, rows, route, b, 1))
    return spent


def _time(ex: Exchange, rows: torch.Tensor, route: Route, b: int, layers: int) -> float:
    """Seconds of one dispatch and combine with b tokens on every attention rank, as this rank saw it."""
    ex._course.forced = route
    try:
        if ex.role == "attention":
            ex.begin(b)
            started = time.perf_counter()
            for layer in range(layers):
                ex.combine(ex.dispatch(rows[:b], layer=layer, **_choices(ex, b)), out=rows[:b])
        else:
            ex.begin()
            started = time.perf_counter()
            for _ in range(layers):
                x_all, handle = ex.receive()
                ex.reply(x_all, handle)
        if ex.device.type == "cuda":
            torch.cuda.synchronize()  # the calls above have only been queued
        return (time.perf_counter() - started) / layers
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
