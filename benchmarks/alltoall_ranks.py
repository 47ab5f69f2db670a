"""What a rank of the all-to-all benchmark does: meet, then time torch and the regimes in turn."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from janus.comm import all_to_all, rendezvous
from janus.types import Topology

torch.set_num_threads(1)
WAYS = ("torch", "direct", "gather", "auto")
WIDTH = 2048  # float32
STATE: dict[str, Any] = {}


def meet(topology: dict) -> None:
    """Join the others."""
    STATE["where"] = Topology.from_dict(topology)
    rendezvous(STATE["where"])


def measure(rows: int, width: int, turns: int, uneven: bool) -> dict:
    """Median seconds of every way, that of the slowest rank each time, and whether all results are torch's."""
    rank, world = dist.get_rank(), dist.get_world_size()
    rng = torch.Generator().manual_seed(rows)
    table = (
        torch.randint(0, 2 * rows + 1, (world, world), generator=rng) if uneven else torch.full((world, world), rows)
    )
    sent, expected = table[rank].tolist(), table[:, rank].tolist()
    x = torch.randn(sum(sent), width)
    wanted = torch.empty(sum(expected), width)
    dist.all_to_all_single(wanted, x, expected, sent)
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    equal = True
    for turn in range(turns + 1):  # the first one warms up
        for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:  # each follows each other one
            out = torch.full_like(wanted, float("nan"))
            spent = _time(way, out, x, expected, sent)
            equal &= torch.equal(out.view(torch.int32), wanted.view(torch.int32))
            if turn:
                took[way].append(spent)
    return {"equal": equal, "ms": {way: 1e3 * statistics.median(found) for way, found in took.items()}}


def _time(way: str, out: torch.Tensor, x: torch.Tensor, expected: list[int], sent: list[int]) -> float:
    dist.barrier()
    started = time.perf_counter()
    if way == "torch":
        dist.all_to_all_single(out, x, expected, sent)
    else:
        all_to_all(out, x, expected, sent, topology_or_group=STATE["where"], regime=way)
    spent = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
    dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    return float(spent)
