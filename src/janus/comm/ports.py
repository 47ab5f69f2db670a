"""What every port carries in each phase of a route, in whole numbers: messages and rows, per class of links. Torch-free.

A message passes several ports: that of its sender and of its receiver (level ``"rank"``), those that all ranks of a box
share (``"node"``), and what everybody shares (``"world"``: one switch, or the processors of one machine that plays
several boxes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from janus.comm.layout import Hop, Part, Route, parts, phases, same_box
from janus.types import Topology

LINKS = ("in_node", "between_nodes")
LEVELS = ("rank", "node", "world")

IntArray = npt.NDArray[np.int64]
_Port = tuple[str, str, int]  # level, direction, which


@dataclass(frozen=True)
class Bundle:
    """Rows that travel together: a piece of the rows of some attention instances, for so many expert instances."""

    sources: Part
    piece: int
    pieces: int
    targets: int


@dataclass(frozen=True)
class Ports:
    """All ports of all phases there (dispatch) and back (combine), as parallel arrays of entries sorted by port.

    Args:
        topology: the two pools.
        bundles: what travels.
        starts: [P], first entry of each port.
        phase_starts: [F], first port of each phase; phases without messages are left out.
        kind: [N], level * 2 + link of each entry.
        bundle: [N], which rows.
        messages: [N], how many messages with these rows.
        loads: [N], how many times these rows.
        back: bool [N], of the combine.
        phases: how many phases there and back have messages.
    """

    topology: Topology
    bundles: tuple[Bundle, ...]
    starts: IntArray
    phase_starts: IntArray
    kind: IntArray
    bundle: IntArray
    messages: IntArray
    loads: IntArray
    back: npt.NDArray[np.bool_]

    @property
    def phases(self) -> int:
        """Phases there and back that have messages."""
        return len(self.phase_starts)

    def rows(self, counts: IntArray, top_k: int | None) -> IntArray:
        """[bundles]: how many rows each bundle holds; with `top_k` choices per row, the expected number of wanted ones."""
        sums = np.concatenate(([0], np.cumsum(counts)))
        first, last, piece, pieces, targets = self._columns
        whole = sums[last] - sums[first]
        rows = whole * (piece + 1) // pieces - whole * piece // pieces
        if top_k is None:
            return rows
        share = np.array([_share(t, self.topology.n_experts, top_k) for t in range(self.topology.n_experts + 1)])
        return -(-rows * share[targets] // _ONE)

    @cached_property  # the same objects serve every prediction of a route
    def _columns(self) -> IntArray:
        """[5, bundles]: first source, end of the sources, piece, pieces, targets."""
        found = [(b.sources[0], b.sources[-1] + 1, b.piece, b.pieces, b.targets) for b in self.bundles]
        return np.array(found, dtype=np.int64).reshape(-1, 5).T


_ONE = 1 << 20  # a share of 1, in fixed point: every rank computes alike


@lru_cache(maxsize=4096)
def _share(targets: int, instances: int, top_k: int) -> int:
    """Of the rows, how many want one of `targets` instances, if each picks `top_k` at random; in fixed point."""
    return _ONE - _ONE * (instances - targets) ** top_k // instances**top_k


@lru_cache(maxsize=128)
def ports_of(route: Route, topology: Topology) -> Ports:
    """Every phase of `route`, there and back."""
    bundles: dict[Bundle, int] = {}
    entries: dict[tuple[int, bool, _Port, int, int], list[int]] = {}
    there = phases(route, topology)
    for number, phase in enumerate(there):
        for hop in phase:
            bundle = Bundle(hop.sources, hop.piece, hop.pieces, len(hop.targets))
            which = bundles.setdefault(bundle, len(bundles))
            link = 0 if same_box(topology, hop.src, hop.dst) else 1
            for back in (False, True):
                times = len(parts(hop.targets, topology)) if back else 1
                turn = 2 * len(there) - 1 - number if back else number
                for port, messages, loads in _passes(hop, link, topology, times):
                    found = entries.setdefault((turn, back, port, link, which), [0, 0])
                    found[0] += messages
                    found[1] += loads
    return _as_arrays(topology, tuple(bundles), entries)


def _passes(hop: Hop, link: int, topology: Topology, times: int) -> list[tuple[_Port, int, int]]:
    """The ports that one message passes; inside a box it passes the box's own port once."""
    found = [(("rank", "out", hop.src), 1, times), (("rank", "in", hop.dst), 1, times), (("world", "", 0), 1, times)]
    boxes = [("out", topology.host(hop.src)), ("in", topology.host(hop.dst))]
    if link == 0:
        boxes = [("inside", topology.host(hop.src))]
    return found + [(("node", side, box), 1, times) for side, box in boxes]


def _as_arrays(topology: Topology, bundles: tuple[Bundle, ...], entries: dict) -> Ports:
    keys = sorted(entries)
    starts, phase_starts, seen = [], [], (None, None)
    for i, (turn, _, port, _, _) in enumerate(keys):
        if (turn, port) != seen:
            if turn != seen[0]:
                phase_starts.append(len(starts))
            starts.append(i)
            seen = (turn, port)
    kind = [LEVELS.index(port[0]) * 2 + link for _, _, port, link, _ in keys]
    messages, loads = zip(*(entries[key] for key in keys), strict=True) if keys else ((), ())
    starts_, phases_, kind_, bundle, messages_, loads_ = (
        np.array(c, dtype=np.int64) for c in (starts, phase_starts, kind, [key[4] for key in keys], messages, loads)
    )
    back = np.array([key[1] for key in keys], dtype=np.bool_)
    return Ports(topology, bundles, starts_, phases_, kind_, bundle, messages_, loads_, back)


def tally(route: Route, topology: Topology, counts: Sequence[int]) -> dict[str, Counter]:
    """Messages and rows of all ranks together, per class of links, there and back, gate ``"experts"``."""
    total: dict[str, Counter] = {link: Counter() for link in LINKS}
    for hop in (hop for phase in phases(route, topology) for hop in phase):
        rows = hop.rows(counts)
        if rows:
            link = LINKS[0 if same_box(topology, hop.src, hop.dst) else 1]
            total[link]["messages"] += 2
            total[link]["rows"] += rows * (1 + len(parts(hop.targets, topology)))
    return total
