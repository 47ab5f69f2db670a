"""What an exchange costs: latency and bytes of the busiest port, phase by phase. Torch-free.

The messages of a port follow one another, the ports work at the same time, and a phase takes as long as its busiest
port. Times are kept in whole femtoseconds: integer sums have no order, so every rank predicts, and chooses, exactly
alike.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus.comm.layout import REGIMES, ROUTES, Route, candidates
from janus.comm.ports import LINKS, IntArray, ports_of
from janus.errors import JanusError, known
from janus.types import Topology
from janus.types.checks import instance, integer, shown
from janus.types.files import read_json, write_text

if TYPE_CHECKING:
    from janus.comm.api import Exchange

FORMAT = "janus.comm.cost/1"
_FS = 1e15  # femtoseconds per second
_ALPHA_S = {"in_node": 5e-6, "between_nodes": 12e-6}
_BETA_S = {"in_node": 1 / 450e9, "between_nodes": 1 / 50e9}
_ONE = 1 << 10  # a factor of 1, in fixed point
_KEEP_BITS = 3  # of a count, for the choice: steps of nearly equal counts choose alike, and find the choice made
_MEMO = 4096


def _nothing() -> dict[str, float]:
    return dict.fromkeys(LINKS, 0.0)


@dataclass(frozen=True)
class CostModel:
    """Latency and inverse bandwidth per class of links, of a rank's own port and of what ranks share.

    The defaults describe eight-GPU boxes: NVLink at 450 GB/s each way and 400 Gb/s (50 GB/s) per GPU between
    boxes; the latencies are those of a small message with its launch. They are for planning; `calibrate` measures them
    where an exchange runs.

    Args:
        alpha_s: seconds per message at a rank's port, keys ``"in_node"`` and ``"between_nodes"``.
        beta_s_per_byte: seconds per byte at a rank's port, same keys.
        node_alpha_s: seconds per message at the port that the ranks of a box share.
        node_beta_s_per_byte: seconds per byte at the port that the ranks of a box share.
        world_alpha_s: seconds per message of what all ranks share: one switch, or the processors of one machine.
        world_beta_s_per_byte: seconds per byte of what all ranks share.
        round_s: seconds per phase, whatever travels in it.
        factors: by how much a route takes longer than its ports say, measured; 1 for those not named. Keys such as
            ``"gather"`` and ``"relay x4"`` (`janus.comm.layout.Route` as text), values ``[[rows, factor], ...]`` with
            ascending numbers of rows of all instances together: linear in between, constant outside.

    Raises:
        JanusError: ``comm.cost`` for missing or unknown links and for numbers that are not finite and >= 0.

    Example:
        One row of 1000 bytes from one rank to one rank in another box, and its sum back:

        >>> m = CostModel({"in_node": 0, "between_nodes": 1e-6}, {"in_node": 0, "between_nodes": 1e-9})
        >>> m.predict("direct", topology=Topology(((0,),), ((1,),)), counts=(1,), row_bytes=1000)
        4e-06
    """

    alpha_s: dict[str, float] = field(default_factory=lambda: dict(_ALPHA_S))
    beta_s_per_byte: dict[str, float] = field(default_factory=lambda: dict(_BETA_S))
    node_alpha_s: dict[str, float] = field(default_factory=_nothing)
    node_beta_s_per_byte: dict[str, float] = field(default_factory=_nothing)
    world_alpha_s: dict[str, float] = field(default_factory=_nothing)
    world_beta_s_per_byte: dict[str, float] = field(default_factory=_nothing)
    round_s: float = 0.0
    factors: dict[str, list[list[float]]] = field(default_factory=dict)
    _memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in _PER_LINK:
            object.__setattr__(self, name, _per_link(name, getattr(self, name)))
        object.__setattr__(self, "round_s", _seconds("round_s", self.round_s))
        object.__setattr__(self, "factors", _factors(self.factors))

    def predict(
        self,
        regime: str,
        *,
        topology: Topology,
        counts: Sequence[int],
        row_bytes: int,
        gate: str = "experts",
        top_k: int | None = None,
    ) -> float:
        """Seconds for one dispatch and its combine.

        Args:
            regime: one of `janus.comm.layout.REGIMES`, at its best depth, or ``"auto"``.
            topology: the two pools.
            counts: tokens of each attention instance.
            row_bytes: bytes of one row, H times the size of an element.
            gate: with ``"attention"`` the rows that travel depend on the routing: the expected number of them with
                `top_k` choices at random, or all of them without `top_k`.
            top_k: K.
        """
        known(regime, (*REGIMES, "auto"), "regime", "comm.regime")
        rows = self.checked(topology, counts, row_bytes, gate)
        found = candidates(regime, topology)
        return min(self._femtoseconds(route, topology, rows, row_bytes, gate, top_k) for route in found) / _FS

    def route(
        self,
        regime: str = "auto",
        *,
        topology: Topology,
        counts: Sequence[int],
        row_bytes: int,
        gate: str = "experts",
        top_k: int | None = None,
    ) -> Route:
        """The cheapest route of `regime`, the plainer one when equal; counts are rounded to a few bits first.

        Example:
            >>> CostModel().route(topology=Topology.parse("1A1E"), counts=(4,), row_bytes=4096)
            Route(regime='direct', depth=1)
        """
        known(regime, (*REGIMES, "auto"), "regime", "comm.regime")
        found = candidates(regime, topology)
        if len(found) == 1:
            return found[0]
        rough = tuple(_rounded(n) for n in counts)
        key = (regime, topology, rough, row_bytes, gate, top_k)
        if key not in self._memo:
            rows = self.checked(topology, rough, row_bytes, gate)
            costs = [self._femtoseconds(route, topology, rows, row_bytes, gate, top_k) for route in found]
            if len(self._memo) >= _MEMO:
                self._memo.clear()  # rarely: counts are rounded
            self._memo[key] = found[costs.index(min(costs))]
        return self._memo[key]

    def choose(self, **given: Any) -> str:
        """The regime of `route`, which has the same arguments."""
        return self.route(**given).regime

    @classmethod
    def calibrate(cls, exchange: Exchange, *, seconds: float = 5.0) -> CostModel:
        """Measure the links between the ranks of a live exchange; see `Exchange.calibrate`."""
        return exchange.calibrate(seconds=seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; `CostModel(**d)` reads them back."""
        return {name: dict(getattr(self, name)) for name in _PER_LINK} | {
            "round_s": self.round_s,
            "factors": {key: [list(p) for p in points] for key, points in self.factors.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        write_text(path, "comm.cost", json.dumps({"format": FORMAT, **self.to_dict()}))

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Read what `save` wrote; whatever is wrong with the file is ``comm.cost``."""
        data = read_json(path, "comm.cost")
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise JanusError("comm.cost", f"{path} is not a cost model written by CostModel.save")
        names = tuple(f.name for f in fields(cls) if f.init)
        return cls(**{known(name, names, "a field of a cost model", "comm.cost"): data[name] for name in data})

    def phase_seconds(self, route: Route, topology: Topology, counts: Sequence[int], row_bytes: int) -> list[float]:
        """Seconds of each phase, dispatch first, then the combine's; gate ``"experts"``."""
        rows = self.checked(topology, counts, row_bytes, "experts")
        return [int(f) / _FS for f in self._phases(route, topology, rows, row_bytes, "experts", None)]

    def messages_seconds(self, phases: Sequence[Any], box_of: Sequence[int]) -> float:
        """Seconds for any messages: phases follow one another, in each the busiest port counts.

        Args:
            phases: of each, rows (sender, receiver, bytes), int64 [M, 3] or a list; those without bytes are not sent.
            box_of: which node each rank sits in; ranks and nodes are numbered from 0.

        Example:
            Two messages of 1000 bytes leave rank 0, at 1 us and 1 ns/byte each:

            >>> m = CostModel({"in_node": 0, "between_nodes": 1e-6}, {"in_node": 0, "between_nodes": 1e-9})
            >>> m.messages_seconds([[(0, 1, 1000), (0, 2, 1000)]], box_of=(0, 1, 2))
            4e-06
        """
        boxes = np.asarray(box_of, dtype=np.int64)
        return sum(self._busiest(np.asarray(m, dtype=np.int64).reshape(-1, 3), boxes) for m in phases) / _FS

    def _busiest(self, messages: IntArray, boxes: IntArray) -> int:
        """Femtoseconds of the busiest port of one phase."""
        src, dst, size = messages[messages[:, 2] > 0].T
        if not len(size):
            return 0
        out, into, world = boxes[src], boxes[dst], len(boxes)
        far = out != into
        alpha, beta = self._tables()
        # one line per level: rank, node, world; inside a box a message passes the box's own port once
        rank, node, everybody = (alpha[2 * level + far] + beta[2 * level + far] * size for level in range(3))
        ports = (
            src,
            world + dst,
            np.where(far, 2, 4) * world + out,
            3 * world + into[far],
            np.full_like(src, 5 * world),
        )
        busy = np.zeros(5 * world + 1, dtype=np.int64)
        np.add.at(busy, np.concatenate(ports), np.concatenate((rank, rank, node, node[far], everybody)))
        return int(busy.max()) + round(self.round_s * _FS)

    def _femtoseconds(self, route: Route, topology: Topology, rows: IntArray, row_bytes: int, gate: str, top_k: int | None) -> int:  # fmt: skip
        return int(self._phases(route, topology, rows, row_bytes, gate, top_k).sum())

    def _phases(self, route: Route, topology: Topology, counts: IntArray, row_bytes: int, gate: str, top_k: int | None) -> IntArray:  # fmt: skip
        """[F]: the busiest port of each phase; messages without rows are not sent."""
        ports = ports_of(route, topology)
        if not ports.phases:
            return np.zeros(0, dtype=np.int64)
        choices = 8 * top_k if gate == "attention" and top_k else 0  # int32 id and float32 weight, on the way out
        rows = ports.rows(counts, top_k if gate == "attention" else None)[ports.bundle]
        alpha, beta = self._tables()
        size = rows * np.where(ports.back, row_bytes, row_bytes + choices)
        times = alpha[ports.kind] * (ports.messages * (rows > 0)) + beta[ports.kind] * (ports.loads * size)
        busy = np.add.reduceat(times, ports.starts)
        happens = np.maximum.reduceat(rows > 0, ports.starts[ports.phase_starts])
        times = np.maximum.reduceat(busy, ports.phase_starts) + round(self.round_s * _FS) * happens
        factor = self._factor(route, int(counts.sum()))
        return times // _ONE * factor + times % _ONE * factor // _ONE  # at once, 5 s would not fit

    def _factor(self, route: Route, rows: int) -> int:
        """In fixed point and whole numbers, so that every rank computes alike."""
        points = [(int(n), round(factor * _ONE)) for n, factor in self.factors.get(str(route), ())]
        if not points:
            return _ONE
        at = bisect.bisect_left(points, (rows, 0))
        if at in (0, len(points)):
            return points[min(at, len(points) - 1)][1]
        (n0, f0), (n1, f1) = points[at - 1 : at + 1]
        return f0 + (f1 - f0) * (rows - n0) // (n1 - n0)

    def _tables(self) -> tuple[IntArray, IntArray]:
        """Femtoseconds per message and per byte, by level * 2 + link."""
        found = self._memo.get("tables")
        if found is None:
            alphas = (self.alpha_s, self.node_alpha_s, self.world_alpha_s)
            betas = (self.beta_s_per_byte, self.node_beta_s_per_byte, self.world_beta_s_per_byte)
            found = _femto(alphas), _femto(betas)
            self._memo["tables"] = found
        return found

    def checked(self, topology: Topology, counts: Sequence[int], row_bytes: int, gate: str) -> IntArray:
        """The counts as an array; refuses what no prediction can be made for.

        Raises:
            JanusError: ``comm.topology``, ``comm.row_bytes``, ``comm.gate``, ``comm.count``.
        """
        remedy = "try Topology.parse('2A4E')"
        instance(topology, Topology, "topology must be a janus.Topology", "comm.topology", remedy)
        integer(row_bytes, "row_bytes", "comm.row_bytes")
        known(gate, ("experts", "attention"), "gate", "comm.gate")
        many = isinstance(counts, (Sequence, np.ndarray)) and not isinstance(counts, str)
        if not many or len(counts) != topology.n_attention:
            raise JanusError(
                "comm.count", f"counts must name {topology.n_attention} attention instances, got {shown(counts)}"
            )
        return np.array([integer(n, "each of counts (tokens)", "comm.count") for n in counts], dtype=np.int64)


_PER_LINK = tuple(f.name for f in fields(CostModel) if f.name not in ("round_s", "factors", "_memo"))


def _factors(given: Any) -> dict[str, list[list[float]]]:
    names, rule = tuple(map(str, ROUTES)), "factors must be a dict from routes to [[rows, factor], ...]"
    if not isinstance(given, dict):
        raise JanusError("comm.cost", f"{rule}, got {given!r}")
    found = {}
    for key, points in given.items():
        known(key, names, "a key of factors", "comm.cost")
        pairs = isinstance(points, (list, tuple)) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in points)
        rows = [n for n, _ in points] if pairs else []
        if not pairs or any(not isinstance(n, int) for n in rows) or sorted(set(rows)) != rows:
            raise JanusError("comm.cost", f"{rule} with whole, ascending rows, got {points!r} for {key!r}")
        found[key] = [[n, _seconds(f"factors[{key!r}]", factor)] for n, factor in points]
    return found


def _femto(levels: Sequence[dict[str, float]]) -> IntArray:
    return np.array([round(level[link] * _FS) for level in levels for link in LINKS], dtype=np.int64)


def _rounded(n: int) -> int:
    """`n` with its leading bits alone, rounded up."""
    drop = max(n.bit_length() - _KEEP_BITS, 0)
    return -(-n >> drop) << drop


def _per_link(name: str, given: Any) -> dict[str, float]:
    if not isinstance(given, dict) or set(given) != set(LINKS):
        raise JanusError("comm.cost", f"{name} must be a dict with the keys {', '.join(LINKS)}, got {given!r}")
    return {link: _seconds(f"{name}[{link!r}]", given[link]) for link in LINKS}


def _seconds(name: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise JanusError("comm.cost", f"{name} must be a finite number >= 0, got {value!r}")
    return float(value)
