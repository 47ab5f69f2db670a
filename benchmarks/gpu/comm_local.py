"""GPU: what one GPU can show of the exchange. NCCL takes no two ranks on one GPU, so nothing here speaks of speed between.

Rows and sums of every rank on the GPU, bit for bit those of the CPU; the sums of a combine inside a CUDA graph; batches of
an NCCL group of one rank, plain and in a graph; deadlines kept by events.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import on_gpu
import torch
from comm_device import Sums, alone, event, graph_of, to_itself
from comm_memory import Load, differing, same_bits, travelled
from figures import figure, progress, report, spread

from janus.comm.carrier import _allow_capture_elsewhere
from janus.comm.layout import Route, possible
from janus.comm.stream import StreamWire, Watchdog
from janus.comm.wire import At
from janus.errors import PeerLost
from janus.types import Topology

POOLS = (
    (Topology(((0, 1), (2,)), ((3, 4, 5), (6,))), (5, 0, 9)),
    (Topology(((0,),), ((1,), (2, 3))), (33,)),
    (Topology(((0, 1), (2, 3)), ((4, 5), (6, 7), (8, 9), (10, 11))), (64, 1, 7, 40)),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HIDDEN = 5120
ROWS = (16, 64, 256, 1024)
COPIED = 1 << 28  # bytes of the copy that the sums are compared with
SLEEP = 1_000_000_000  # cycles: half a second


def bits(sample: bool) -> Iterator[dict[str, Any]]:
    """Both directions of every rank over every route."""
    pools, hiddens = (POOLS[:1], (24,)) if sample else (POOLS, (24, 1000))
    for gate, dtype in itertools.product(("experts", "attention"), DTYPES):
        done, wrong = 0, []
        for (topology, counts), hidden in itertools.product(pools, hiddens):
            load = Load(topology, counts, gate, dtype, hidden)
            for route in possible(topology):
                done += 1
                found = differing(load, travelled(load, route, on_gpu.DEVICE))
                wrong += [f"{topology} {route}: {found[0]}"] if found else []
        name = f"layers as the reference has them, gate {gate}, {str(dtype).removeprefix('torch.')}"
        good, note = done - len(wrong), "; ".join(wrong[:3]) or f"on {on_gpu.DEVICE}, every rank, bit for bit"
        yield figure(name, good, f"== {done}", not wrong, "layers", note)


def allocations() -> int:
    """Blocks handed out so far."""
    return 0 if on_gpu.DEVICE == "cpu" else torch.cuda.memory_stats()["allocation.all.allocated"]


def replayed(route: Route, dtype: torch.dtype, times: int) -> tuple[int, int]:
    """How often a replay on new contents gave the bits of a plain call; blocks that the replays allocated."""
    sums = Sums(route, 64, HIDDEN, dtype, on_gpu.DEVICE)
    replay, plain, right, taken = graph_of(lambda: sums(sums.out), on_gpu.DEVICE), torch.empty_like(sums.out), 0, 0
    for seed in range(times):
        sums.renew(seed)
        sums.out.fill_(float("nan"))
        before = allocations()
        replay()
        taken += allocations() - before
        sums(plain)
        right += same_bits(sums.out, plain.cpu())
    return right, taken


def in_graphs(sample: bool) -> Iterator[dict[str, Any]]:
    """Replays on new contents."""
    times = 3 if sample else 20
    for route, dtype in itertools.product((Route("direct"), Route("gather")), DTYPES):
        right, taken = replayed(route, dtype, times)
        name = f"sums over {route}, {str(dtype).removeprefix('torch.')}, replayed on new contents"
        yield figure(name, right, f"== {times}", right == times, "replays", "bits of a plain call")
        yield figure(f"{name}: allocations", taken, "== 0", taken == 0, "blocks")


def speeds(sample: bool) -> Iterator[dict[str, Any]]:
    """Microseconds and bytes per second, beside those of a copy."""
    source = torch.empty(1 << 20 if sample else COPIED, dtype=torch.uint8, device=on_gpu.DEVICE)
    target = torch.empty_like(source)
    us = spread(on_gpu.in_graph(target.copy_, [source]))[1]
    copied = 2 * source.nbytes / max(us, 0.1) / 1e3
    yield figure("a copy", round(copied), "none", True, "GB/s", f"{source.nbytes >> 20} MiB, read and written; {us} us")
    for route, rows in itertools.product((Route("direct"), Route("gather")), ROWS[:1] if sample else ROWS):
        sums = Sums(route, rows, HIDDEN, torch.bfloat16, on_gpu.DEVICE)
        low, middle, high = spread(on_gpu.in_graph(sums, [torch.empty_like(sums.out) for _ in range(on_gpu.CALLS)]))
        rate = sums.bytes / max(middle, 0.1) / 1e3
        note = f"p10 {low}, p90 {high}; {sums.bytes >> 10} KiB of answers and sums: {rate:.0f} GB/s"
        note += f", {rate / copied:.2f} x the copy (small ones are read from the cache)"
        yield figure(f"sums over {route}, 16 experts, b={rows}, H={HIDDEN} bfloat16", middle, "none", True, "us", note)


def equal_batches(wire: StreamWire, rows: torch.Tensor, room: torch.Tensor, times: int) -> dict[str, int]:
    """How many batches brought what was sent; the graph is gone at the end, since NCCL does not close before it is."""

    def plain() -> None:
        to_itself(wire, rows, room)

    right = {"plain": 0, "replayed": 0}
    calls = {"plain": plain, "replayed": graph_of(plain, on_gpu.DEVICE)}
    for name, seed in itertools.product(calls, range(times)):
        rows.fill_(seed + 1)
        room.fill_(0)
        calls[name]()
        right[name] += torch.equal(rows, room)
    return right


def nccl(times: int) -> Iterator[dict[str, Any]]:
    """Batches of a group of one rank."""
    rows = torch.zeros(64, HIDDEN, dtype=torch.bfloat16, device=on_gpu.DEVICE)
    room, long = torch.empty_like(rows), rows.new_full((80, HIDDEN), -1.0)
    with alone() as (wire, _):
        for name, n in equal_batches(wire, rows, room, times).items():
            yield figure(f"an NCCL batch to itself, {name}", n, f"== {times}", n == times, "batches")
    with alone(told=True) as (wire, _):
        to_itself(wire, rows, long)
        whole = torch.equal(long[:64], rows) and bool((long[64:] == -1).all())
        yield figure("an NCCL batch whose length is told first", "right" if whole else "wrong", "right", whole)
    with alone() as (wire, group):
        to_itself(wire, rows, room)
        torch.cuda.synchronize()
        group.abort()
        yield refused(wire, rows, room)


def refused(wire: StreamWire, rows: torch.Tensor, room: torch.Tensor) -> dict[str, Any]:
    """What a batch of an ended group is."""
    try:
        to_itself(wire, rows, room)
        said = "nothing"
    except PeerLost as error:
        said = f"PeerLost: {error.detail[:80]}"
    return figure("a batch of an NCCL group that was ended", said, "PeerLost", said.startswith("PeerLost"))


def watched() -> Iterator[dict[str, Any]]:
    """Real events: one that stays out past its deadline, one that comes, one that is asked while a graph is captured."""
    for name, seconds, expected in (("past its deadline", 0.05, 1), ("in time", 30.0, 0)):
        late: list[float] = []
        torch.cuda.synchronize()
        dog = Watchdog(lambda peers, at, late=late: late.append(time.monotonic()), event)
        torch.cuda._sleep(SLEEP)
        at = At.within("combine", 0, seconds)
        dog.guard(at, [1])
        torch.cuda.synchronize()
        time.sleep(0.1)
        dog.stop()
        note = f"{1e3 * (late[0] - at.deadline):.0f} ms after it" if late else ""
        yield figure(f"an event {name}", len(late), f"== {expected}", len(late) == expected, "times late", note)
    yield captured_meanwhile()


def captured_meanwhile() -> dict[str, Any]:
    """A graph is captured while the watchdog asks for an event of another stream."""
    x, other, asked = torch.ones(8, device=on_gpu.DEVICE), torch.cuda.Stream(), threading.Event()

    class Asked:
        """An event that says when it is asked for."""

        def __init__(self) -> None:
            self._event = torch.cuda.Event()
            self._event.record(other)

        def query(self) -> bool:
            asked.set()
            return self._event.query()

    made = Asked()
    dog = Watchdog(lambda peers, at: None, lambda: made, settle_in=_allow_capture_elsewhere)
    torch.cuda.synchronize()
    graph, said = torch.cuda.CUDAGraph(), "captured"
    try:
        with torch.cuda.graph(graph):
            x.add_(1)
            dog.guard(At.within("combine", 0, 30), [1])
            asked.wait(5)
            time.sleep(0.1)
        graph.replay()
        torch.cuda.synchronize()
        said = "captured" if asked.is_set() and x.tolist() == [2.0] * 8 else "wrong"
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
    dog.stop()
    return figure("a graph captured while an event is asked for", said, "captured", said == "captured")


def on_device_only(sample: bool) -> Iterator[dict[str, Any]]:
    """What needs CUDA and NCCL."""
    yield from watched()
    if torch.distributed.is_nccl_available():
        yield from nccl(3 if sample else 20)
    else:
        yield figure("NCCL", "not run", "none", True, "", "this torch has no NCCL")


def main() -> None:
    sample = on_gpu.wants_sample(__doc__)
    parts = [bits, in_graphs, speeds, on_device_only]
    figures: list[dict[str, Any]] = []
    if on_gpu.DEVICE == "cpu":
        parts.remove(on_device_only)
        reason = "no CUDA device: no event, no graph, no NCCL"
        figures.append(figure("events and NCCL batches", "not run", "none", True, "", reason))
    with progress("exchange", len(parts)) as step:
        for part in parts:
            try:
                figures += part(sample)  # what a generator gave before it failed is kept
            except RuntimeError as error:
                figures.append(figure(part.__name__, f"failed: {str(error)[:200]}", "no error", False))
            step(part.__name__)
    report(figures)


if __name__ == "__main__":
    main()
