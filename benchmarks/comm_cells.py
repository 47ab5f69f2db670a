"""Cells of the exchange benchmark: a pair of pools on the test network, timed over every regime, taking turns."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from testbed import Testbed
from testbed_ranks import Ranks

from janus.comm import CostModel
from janus.comm.comparison import traffic
from janus.comm.layout import REGIMES, Route
from janus.comm.ports import ports_of
from janus.types import Topology

HERE = Path(__file__).resolve().parent
PATHS = (str(HERE.parent / "src"), str(HERE))
DTYPE, ITEMSIZE = "float32", 4
NAMES = (*REGIMES, "auto", "flat")
SAMPLES = 15  # of every way that may be the best
FEW = 3  # of one that is clearly not: more than FAR times the best
FAR = 1.6
LAYERS = 2  # of a step


@dataclass(frozen=True)
class Group:
    """Two pools of equal nodes, a row length, and the rate of every node's port."""

    attention_nodes: int
    expert_nodes: int
    ranks_per_node: int
    hidden: int
    rate_mbit: int

    @property
    def topology(self) -> Topology:
        size, nodes = self.ranks_per_node, self.attention_nodes + self.expert_nodes
        ranks = [tuple(range(i * size, (i + 1) * size)) for i in range(nodes)]
        return Topology(tuple(ranks[: self.attention_nodes]), tuple(ranks[self.attention_nodes :]))

    @property
    def node_of_rank(self) -> list[int]:
        return [r // self.ranks_per_node for r in range(self.topology.world_size)]

    @property
    def row_bytes(self) -> int:
        return self.hidden * ITEMSIZE

    def counts(self, b: int) -> tuple[int, ...]:
        return (b,) * self.topology.n_attention

    def bound_s(self, b: int) -> float:
        """What no scheme can beat: every row enters every expert node once, and a sum of it leaves each once."""
        return 2 * sum(self.counts(b)) * self.row_bytes * 8 / (self.rate_mbit * 1e6)

    def phase_bytes(self, route: Route, b: int) -> tuple[float, float]:
        """Bytes of the busiest node port, phase by phase added up, of the way out and of the way home."""
        ports = ports_of(route, self.topology)
        rows = ports.rows(np.array(self.counts(b)), None)[ports.bundle]
        at_nodes = (ports.kind == 3) * ports.loads * rows * self.row_bytes  # level "node", link "between_nodes"
        busy = np.maximum.reduceat(np.add.reduceat(at_nodes, ports.starts), ports.phase_starts)
        back = ports.back[ports.starts[ports.phase_starts]]
        return float(busy[~back].sum()), float(busy[back].sum())


def opened(bed: Testbed, group: Group) -> Ranks:
    """The ranks of a group in their nodes; nothing is open on them yet."""
    bed.set_rate(group.rate_mbit)
    return bed.ranks(group.node_of_rank, module="comm_ranks", path=PATHS)


def start(ranks: Ranks, group: Group, most: int, seconds: float) -> tuple[CostModel, float]:
    """One exchange on all ranks; with `seconds` it is calibrated: the model, and how long that took."""
    args = {"topology": group.topology.to_dict(), "hidden": group.hidden, "dtype": DTYPE, "most": most}
    told = ranks.call("open_exchange", deadline_s=120, seconds=seconds, **args)
    return CostModel(**told[0]["cost"]), max(each["seconds"] for each in told)


def ways(model: CostModel, group: Group, b: int) -> dict[str, Any]:
    """Each name with what `comm_ranks.measure` calls it: a regime at its best depth, as a route."""
    return {r: list(model.route(r, **_given(group, b))) for r in REGIMES} | {"auto": "auto", "flat": "flat"}


def _given(group: Group, b: int) -> dict[str, Any]:
    return {"topology": group.topology, "counts": group.counts(b), "row_bytes": group.row_bytes}


@dataclass(frozen=True)
class Timed:
    """One step of one way: seconds per layer, of the whole step with `begin`, and the route taken."""

    layer: float
    step: float
    route: tuple[str, int]


def run(ranks: Ranks, group: Group, b: int, plan: Sequence[Any], layers: int, longest_s: float) -> list[Timed]:
    """The steps of `plan`; layers count together, from the first rank's start to the last rank's end.

    Some ranks end a layer before others and wait for them in the next: layers one by one would count that twice.
    """
    steps = [[way, list(group.counts(b))] for way in plan]
    deadline = 30 + 3 * longest_s * layers * len(plan)
    told = ranks.call("measure", deadline_s=deadline, plan=steps, layers=layers)
    attention = range(group.topology.n_attention)
    found = []
    for i in range(len(plan)):
        marks = [told[rank][i][0] for rank in attention]
        end, begun = max(m[-1] for m in marks), max(rank[i][0][0] for rank in told)
        found.append(Timed((end - min(m[1] for m in marks)) / layers, end - begun, tuple(told[0][i][1])))
    return found


def cell(ranks: Ranks, group: Group, b: int, model: CostModel, samples: int = SAMPLES) -> Iterator[dict[str, Any]]:
    """One row per way: times of its layers, what was predicted, what it sends, and the bound."""
    by_name, order = ways(model, group, b), random.Random(b)
    pilot = {name: min(t.layer for t in run(ranks, group, b, [way] * 2, 1, 10.0)) for name, way in by_name.items()}
    near = {name for name, seconds in pilot.items() if seconds <= FAR * min(pilot.values())} | {"auto"}
    near |= {name for name, way in by_name.items() if way == list(model.route(**_given(group, b)))}
    times: dict[str, list[float]] = {name: [] for name in by_name}
    steps: dict[str, list[float]] = {name: [] for name in by_name}
    taken = {}
    for turn in range(samples):
        names = [name for name in by_name if name in near or turn < FEW]
        order.shuffle(names)
        found = run(ranks, group, b, [by_name[name] for name in names], LAYERS, max(pilot.values()))
        for name, timed in zip(names, found, strict=True):
            times[name].append(timed.layer)
            steps[name].append(timed.step)
            taken[name] = timed.route
    for name in by_name:
        yield row(group, b, name, taken[name], model, times[name], steps[name])


def cell_seconds(group: Group, b: int, model: CostModel, samples: int) -> float:
    """About how long `cell` takes, by the model."""
    times = [model.predict(regime, **_given(group, b)) for regime in REGIMES]
    times += [min(times), max(times)]  # "auto" and "flat"
    near = [t for t in times if t <= FAR * min(times)]
    far = [t for t in times if t > FAR * min(times)]
    return sum(times) * 2 + LAYERS * (samples * sum(near) + FEW * sum(far))


def row(group: Group, b: int, name: str, route: tuple[str, int], model: CostModel, times: list[float], steps: list[float]) -> dict[str, Any]:  # fmt: skip
    """As it stands in the CSV."""
    taken = Route("direct") if name == "flat" else Route(*route)
    predicted = sum(model.phase_seconds(taken, group.topology, group.counts(b), group.row_bytes))
    sent = traffic(taken, group.topology, group.counts(b), group.row_bytes)
    p10, p50, p90 = (float(q) for q in np.percentile(times, [10, 50, 90]))
    return {
        **asdict(group), "b": b, "way": name, "regime": taken.regime, "depth": taken.depth, "samples": len(times),
        "ms": round(p50 * 1e3, 3), "ms_p10": round(p10 * 1e3, 3), "ms_p90": round(p90 * 1e3, 3),
        "step_ms": round(statistics.median(steps) * 1e3, 3),
        "predicted_ms": round(predicted * 1e3, 3), "bound_ms": round(group.bound_s(b) * 1e3, 3),
        "messages_in_node": sent["in_node"].messages, "bytes_in_node": sent["in_node"].bytes,
        "messages_between_nodes": sent["between_nodes"].messages, "bytes_between_nodes": sent["between_nodes"].bytes,
    }  # fmt: skip


def directions(ranks: Ranks, group: Group, b: int, route: Route, times: int) -> tuple[float, float]:
    """Median seconds of the way out and of the way home, from the first start to the last end; all ranks meet before each."""
    steps = [[list(route), list(group.counts(b))]] * times
    told = ranks.call("measure", deadline_s=60 + 60 * times, plan=steps, layers=1, apart=True)
    n_a, everyone = group.topology.n_attention, range(group.topology.world_size)
    out, home = [], []
    for i in range(times):
        marks = [told[rank][i][0] for rank in everyone]
        out.append(max(m[2] for m in marks[n_a:]) - min(m[1] for m in marks))
        home.append(max(m[4] for m in marks[:n_a]) - min(m[3] for m in marks))
    return statistics.median(out), statistics.median(home)
