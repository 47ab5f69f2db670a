"""Seconds of the regimes that cut rows into pieces, `spread` and `relay`: port by port, all depths of one at once.

Where pools fill node after node, an attention instance has one of two row counts and an expert node one of two sizes,
and at most three positions of a node differ; so a few small arrays hold every port of every phase.

Axes of the arrays: q expert nodes (all of them, or one of each size), t turns (of all depths, one after another), kind
of attention instance (those with a row more, the others), position in the expert node.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from janus.scale.exchange import Link, Pools

Array = npt.NDArray[Any]


class Turns(NamedTuple):
    """Which piece each owner gets in each turn; after each depth come `later` turns without a piece.

    Args:
        edges: int64 [2, q, t, 1], first and last end, counted in pieces.
        pieces: int64 [t, 1], pieces of the turn's depth.
        starts: int64 [depths], first turn of each depth.
    """

    edges: Array
    pieces: Array
    starts: Array

    def rows(self, b: Array) -> Array:
        """int64 [q, t, kind]: rows of the pieces of instances with `b` [kind] rows."""
        first, last = self.edges * b // self.pieces
        return last - first

    def best(self, *ports: Array) -> float:
        """Seconds there and back at the best depth, from the seconds of ports [q, t, port]."""
        phases = np.maximum.reduce([p.max(axis=(0, 2)) for p in ports])
        return 2 * float(np.add.reduceat(phases, self.starts).min())


@lru_cache(maxsize=1024)
def turns(owners: int, depths: tuple[int, ...], later: int) -> Turns:
    """Of ``owners * depth`` pieces number ``q * depth + t`` goes to owner q in turn t.

    Example:
        >>> turns(2, (1, 2), 1).rows(np.array([7]))[..., 0]
        array([[3, 0, 1, 2, 0],
               [4, 0, 2, 2, 0]])
    """
    sent = [(depth, turn) for depth in depths for turn in range(depth + later)]
    first = np.array([[q * depth + t if t < depth else 0 for depth, t in sent] for q in range(owners)])
    last = np.array([[q * depth + t + 1 if t < depth else 0 for depth, t in sent] for q in range(owners)])
    starts = [i for i, (_, turn) in enumerate(sent) if turn == 0]
    pieces = np.array([[owners * depth] for depth, _ in sent])
    return Turns(np.stack([first, last])[..., None], pieces, np.array(starts))


def spread_s(p: Pools, depths: tuple[int, ...], near: Link, far: Link) -> float:
    """Every attention instance once to each expert node, the receivers to their neighbours; the best of `depths`."""
    plan = turns(1, depths, later=1)
    sizes = sorted({p.last_size, min(p.size, p.n_e)})
    rows = plan.rows(_kinds(p))
    inside, across = near.times(rows), far.times(rows)
    took, total, others = _took(p, sizes)
    into = across @ took
    mine = inside @ took
    out = np.zeros_like(into)
    into[:, 1:] += (inside @ total - mine)[:, :-1]
    out[:, 1:] = (mine * others)[:, :-1]
    return plan.best(into, out, across * p.expert_nodes)


def relay_s(p: Pools, depths: tuple[int, ...], near: Link, far: Link) -> float:
    """Each piece to the expert node that owns it, to the others, and inside each; the best of `depths`."""
    plan = turns(p.expert_nodes, depths, later=2)
    rows = plan.rows(_kinds(p))
    inside, across = near.times(rows), far.times(rows)
    passed_inside, passed_across = inside.sum(axis=0) - inside, across.sum(axis=0) - across
    took, total, others = _took(p, [min(p.size, p.n_e)] * (p.expert_nodes - 1) + [p.last_size])
    into, mine, passed = across @ took, inside @ took, passed_inside @ took
    out = np.zeros_like(into)
    out[:, 1:] = (mine * others + into * (p.expert_nodes - 1))[:, :-1]
    out[:, 2:] += (passed * others)[:, :-2]
    into[:, 1:] += (passed_across @ took + inside @ total - mine)[:, :-1]
    into[:, 2:] += (passed_inside @ total - passed)[:, :-2]
    return plan.best(into, out, across.sum(axis=0, keepdims=True))


def _kinds(p: Pools) -> Array:
    """Rows of the attention instances: of the first ones, and of the last ones."""
    return np.array([p.rows(0), p.rows(p.n_a - 1)])


def _took(p: Pools, sizes: list[int]) -> tuple[Array, Array, Array]:
    """Of every kind: the instances [q, kind, position] whose rows a position takes, and all [kind, 1]; others of the node.

    Position i of n takes those of the attention instances i, i + n, ...: of what the positions take, these are all cases.
    """
    more = p.B % p.n_a
    cases = {n: [_of(p, more, n, i) for i in (0, more % n, p.n_a % n)] for n in set(sizes)}
    took = np.array([cases[n] for n in sizes], dtype=np.float64).transpose(0, 2, 1)
    total = np.array([[more], [p.n_a - more]], dtype=np.float64)
    return took, total, np.array(sizes)[:, None, None] - 1


def _of(p: Pools, more: int, n: int, i: int) -> tuple[int, int]:
    """Attention instances i, i + n, ... with a row more, and without."""
    first = len(range(i, more, n))
    return first, len(range(i, p.n_a, n)) - first
