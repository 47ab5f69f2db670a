"""What the GPU parts share: where they run, the shapes they speak of, times of a call inside a CUDA graph."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "sched"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from figures import figure
from recordings import Routing, routing
from shapes import SHAPES, Shape

from janus.types import Placement

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # "cpu": the interpreter
MAX_TOKENS = 4096  # the same in all parts: compiled code depends on its size
MAIN = ("deepseek-v3 32x12", "deepseek-v3 32x16")  # 256 experts on 32 instances, 384 and 512 slots
NAMED = ("gpt-oss-20b 8x6", "deepseek-v2 8x27", "qwen3-235b-a22b 16x12", "kimi-k2 48x12")
CALLS = 16  # in one graph, on batches of their own, as the layers of a model are
REPLAYS = 200


def wants_sample(doc: str | None) -> bool:
    """The command line of a part."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--sample", action="store_true", help="small: seconds")
    return parser.parse_args().sample


def shape(name: str) -> Shape:
    return SHAPES[name]


def placed(name: str) -> tuple[Placement, Routing]:
    """A placement made from half of the routing of that model; batches come from the other half."""
    from janus.sched import place

    s, source = SHAPES[name], routing(SHAPES[name].model)
    return place(source.seen, s.instances, s.slots_per_instance, method="eplb"), source


def on_device(batches: list[Any]) -> list[torch.Tensor]:
    """int64, as routers give them."""
    return [torch.from_numpy(ids).to(DEVICE) for ids in batches]


def at_most(name: str, value: float, limit: float, unit: str, note: str = "") -> dict[str, Any]:
    """A figure that is good when it is small; times of an interpreter are not judged."""
    judged = DEVICE != "cpu"
    return figure(name, value, f"<= {limit}" if judged else "none", value <= limit or not judged, unit, note)


def in_graph(call: Callable[[torch.Tensor], Any], batches: list[torch.Tensor], replays: int = REPLAYS) -> list[float]:
    """Microseconds of one call, per replay of a graph that calls it on every batch; plain calls without a GPU."""
    if DEVICE == "cpu":
        return [_wall(call, ids) for ids in batches[:2]]
    for ids in batches:
        call(ids)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for ids in batches:
            call(ids)
    for _ in range(replays // 10):  # clocks up
        graph.replay()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(replays)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) / len(batches) for start, end in events]


def _wall(call: Callable[[torch.Tensor], Any], ids: torch.Tensor) -> float:
    start = time.perf_counter()
    call(ids)
    return 1e6 * (time.perf_counter() - start)
