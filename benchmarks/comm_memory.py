"""All ranks of an exchange in one process, a thread each, on any device; messages go through memory.

What one GPU can show of both directions: the local parts of every rank on its tensors, bit for bit the plain reference on
the CPU. Threads share the device's default stream, so what one has posted is there for the other.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from janus.comm import reference
from janus.comm.arena import Arena
from janus.comm.buffers import Size, homeward_bytes, outward_bytes
from janus.comm.layout import Route, itinerary
from janus.comm.rows import Cargo, Sliced, Whole
from janus.comm.travel import COMBINE_TAG, DISPATCH_TAG, Trail, homeward, outward
from janus.comm.wire import At, flat_bytes
from janus.types import Topology

K, C = 3, 2
WAIT_S = 60.0
AT = At("dispatch", 0, 0.0)


class Wire:
    """The wire of one rank, in batches as on a device."""

    batched = True

    def __init__(self, rank: int, between: dict[tuple[int, int, int], queue.SimpleQueue]) -> None:
        self._rank, self._between = rank, between

    def send(self, peer: int, rows: torch.Tensor, tag: int, at: At) -> None:
        self._between[self._rank, peer, tag].put(flat_bytes(rows).clone())

    def recv(self, peer: int, into: torch.Tensor, tag: int, at: At) -> tuple[int, torch.Tensor, int]:
        return peer, flat_bytes(into), tag

    def wait(self, posts: Iterable[tuple[int, torch.Tensor, int]], at: At) -> None:
        for peer, room, tag in posts:
            message = self._between[peer, self._rank, tag].get(timeout=WAIT_S)
            room[: len(message)].copy_(message)


@dataclass(frozen=True)
class Load:
    """Rows, choices and what the reference makes of them, on the CPU."""

    topology: Topology
    counts: tuple[int, ...]
    gate: str
    dtype: torch.dtype
    hidden: int
    seed: int = 0

    @cached_property
    def x(self) -> list[torch.Tensor]:
        rng = torch.Generator().manual_seed(self.seed)
        return [torch.randn(b, self.hidden, generator=rng).to(self.dtype) for b in self.counts]

    @cached_property
    def choices(self) -> dict[str, Any]:
        """For the reference; nothing with gate "experts"."""
        if self.gate == "experts":
            return {}
        rng = torch.Generator().manual_seed(self.seed + 1)
        slots = self.topology.n_experts * C
        ids = [torch.randint(-1, slots, (b, K), generator=rng).to(torch.int32) for b in self.counts]
        return {"ids": ids, "weights": [torch.rand(b, K, generator=rng) for b in self.counts], "slots": C}

    @cached_property
    def got(self) -> list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]:
        return [reference.receive(self.x, g, **self.choices) for g in range(self.topology.n_experts)]

    @cached_property
    def y(self) -> list[torch.Tensor]:
        """An answer depends on the instance, so a sum over the wrong ones, or in another order, shows."""
        return [(rows.float() * (g + 0.3)).to(self.dtype) for g, (rows, _, _) in enumerate(self.got)]

    @cached_property
    def home(self) -> list[torch.Tensor]:
        keep = {name: value for name, value in self.choices.items() if name != "weights"}
        return reference.combine(self.y, self.counts, self.topology, **keep)


@dataclass(frozen=True)
class Rank:
    """What one rank holds after a layer."""

    trail: Trail
    cargo: Cargo | None  # of an expert rank
    answer: torch.Tensor | None  # of an attention rank


def travelled(load: Load, route: Route, device: str) -> dict[int, Rank]:
    """Dispatch and combine of every rank over `route`, on `device`."""
    topology = load.topology
    ranks = topology.attention_ranks + topology.expert_ranks
    between = {(a, b, tag): queue.SimpleQueue() for a in ranks for b in ranks for tag in (DISPATCH_TAG, COMBINE_TAG)}
    found: dict[int, Rank] = {}
    errors: list[Exception] = []

    def main(rank: int) -> None:
        try:
            found[rank] = _layer(load, route, rank, Wire(rank, between), torch.device(device))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=main, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def _layer(load: Load, route: Route, rank: int, wire: Any, device: torch.device) -> Rank:
    topology, counts = load.topology, load.counts
    at, attention = topology.instance(rank), topology.role(rank) == "attention"
    trip = itinerary(route, topology, rank)
    size = Size(load.hidden, load.dtype.itemsize, K if load.choices else 0)
    out, home = Arena(outward_bytes(trip, counts, size), device), Arena(homeward_bytes(trip, counts, size), device)
    none = torch.empty(0, load.hidden, dtype=load.dtype, device=device)
    own = None
    if attention:
        chosen = [load.choices[name][at].to(device) for name in ("ids", "weights")] if load.choices else []
        own = Cargo(load.x[at].to(device), *chosen)
    codec = Sliced(trip, counts, out, none, K, C, own) if load.choices else Whole(trip, counts, out, none, own)
    cargo, trail = outward(wire, trip, codec, AT)
    nan = torch.full((counts[at], load.hidden), float("nan"), dtype=load.dtype, device=device) if attention else None
    homeward(wire, trail, none if attention else load.y[at].to(device), home, AT, nan)
    return Rank(trail, cargo, nan)


def differing(load: Load, found: dict[int, Rank]) -> list[str]:
    """What is not, bit for bit, what the reference says."""
    topology, wrong = load.topology, []
    for a, rank in enumerate(topology.attention_ranks):
        wrong += [] if same_bits(found[rank].answer, load.home[a]) else [f"sums of attention {a}"]
    for g, rank in enumerate(topology.expert_ranks):
        rows, ids, weights = load.got[g]
        cargo = found[rank].cargo
        assert cargo is not None
        wrong += [] if same_bits(cargo.x, rows) else [f"rows of expert {g}"]
        if ids is not None and len(rows):
            wrong += [] if torch.equal(cargo.ids.cpu(), ids.to(torch.int32)) else [f"ids of expert {g}"]
            wrong += [] if same_bits(cargo.weights, weights) else [f"weights of expert {g}"]
    return wrong


def same_bits(found: torch.Tensor | None, wanted: torch.Tensor | None) -> bool:
    """Shape, dtype and every bit."""
    if found is None or wanted is None or (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        return False
    return torch.equal(flat_bytes(found.cpu().contiguous()), flat_bytes(wanted.contiguous()))
