"""Seconds of each regime between pools that fill node after node, in closed form: no list of hops, a few ports a phase.

Such pools are regular: an attention instance has one of two row counts, an expert node one of two sizes, and at most
three positions of a node differ. Compiled where numba can be imported, else run as it is; imported on first use,
because numba takes a second. All compiled functions of the exchange live in this one file: numba's cache notices changes
of one file only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from janus.scale.timing.exchange import Link
from janus.sched.search_loops import compiled

REGIMES = ("direct", "gather", "spread", "relay")
MOST_PIECES, SPREAD_DEPTH, RELAY_DEPTH = 16, 4, 8  # as `janus.comm.layout`, which tests hold these to


class Pools(NamedTuple):
    """`B` rows spread over `n_a` attention instances as by `split`; `size` attention, `wide` expert instances a node."""

    n_a: int
    n_e: int
    B: int
    size: int
    wide: int


@compiled
def port(link: Any, messages: int, rows: int) -> float:
    """Seconds of one port."""
    return link.alpha * messages + link.beta * rows


@compiled
def message(link: Any, rows: int) -> float:
    """Seconds of one message; none is sent without rows."""
    return link.alpha + link.beta * rows if rows else 0.0


@compiled
def before(p: Any, a: int) -> int:
    """Rows of the attention instances below a."""
    return a * (p.B // p.n_a) + min(a, p.B % p.n_a)


@compiled
def nodes_of(instances: int, size: int) -> int:
    """Nodes of a pool; the last may be partly filled."""
    return (instances + size - 1) // size


@compiled
def node_size(p: Any, q: int) -> int:
    """Instances of expert node q."""
    return min(p.wide, p.n_e - q * p.wide)


@compiled
def direct_s(p: Any, near: Any, far: Any) -> float:
    """Every attention instance to every expert instance, and back."""
    most = before(p, 1)
    out = port(far, p.n_e if p.B else 0, p.n_e * most)
    return 2 * max(out, port(far, min(p.n_a, p.B), p.B))


@compiled
def gather_s(p: Any, near: Any, far: Any) -> float:
    """Inside the attention node, once across per pair of nodes, inside the expert node, and back.

    Rows never grow from one instance to the next, so of the full attention nodes the first has the busiest ports.
    """
    last, experts = nodes_of(p.n_a, p.size) - 1, nodes_of(p.n_e, p.wide)
    there, home, cross, fan = 0.0, 0.0, 0.0, 0.0
    for node in (0, last):
        first = node * p.size
        n = min(p.size, p.n_a - first)
        total = before(p, first + n) - before(p, first)
        sent, came = inner(p, first, n, total, near)
        there, home = max(there, sent), max(home, came)
        if total:
            served = (experts + n - 1) // n
            cross = max(cross, port(far, served, served * total))
    for node in (0, experts - 1):
        n = node_size(p, node)
        messages, rows = reaching(p, 0, n)
        cross = max(cross, port(far, messages, rows))
        if n > 1:  # position 0 sends the most, the last one receives the most
            few, least = reaching(p, n - 1, n)
            arrived, _ = reaching(p, 0, 1)
            fan = max(fan, port(near, messages * (n - 1), rows * (n - 1)), port(near, arrived - few, p.B - least))
    return there + home + 2 * (cross + fan)


@compiled
def reaching(p: Any, i: int, n: int) -> Any:
    """(messages, rows) that reach position i of an expert node of n instances: attention nodes i, i + n, ..."""
    messages, rows = 0, 0
    for first in range(i * p.size, p.n_a, n * p.size):
        here = before(p, min(first + p.size, p.n_a)) - before(p, first)
        messages += here > 0
        rows += here
    return messages, rows


@compiled
def inner(p: Any, first: int, n: int, total: int, near: Any) -> Any:
    """Busiest port inside one attention node, (to the senders, home): home takes one sum per node a sender served.

    Senders are the first min(n, expert nodes) positions; position j serves the expert nodes j, j + n, ... The busiest
    port is at an end of a run of positions that serve equally many.
    """
    experts = nodes_of(p.n_e, p.wide)
    senders = min(n, experts)
    busy = min(n, max(0, min(p.B, p.n_a) - first))  # instances with rows; those without send nothing
    turn = experts % n  # senders below it serve one expert node more
    there, home = 0.0, 0.0
    for j in (0, turn - 1, turn, senders - 1, senders):
        if not 0 <= j < n:
            continue
        rows = before(p, first + j + 1) - before(p, first + j)
        served = (experts - j + n - 1) // n if j < senders else 0
        others = senders - (j < senders) if rows else 0
        there = max(there, port(near, others, rows * others))
        home = max(home, port(near, others, rows * (experts - served)))
        if j < senders:
            there = max(there, port(near, busy - (rows > 0), total - rows))
            home = max(home, port(near, busy - (rows > 0), served * (total - rows)))
    return there, home


@compiled
def piece(b: int, i: int, pieces: int) -> int:
    """Rows of piece i of b rows."""
    return b * (i + 1) // pieces - b * i // pieces


@compiled
def taken(p: Any, i: int, n: int) -> Any:
    """Attention instances i, i + n, ..., whose rows position i of n takes: (with a row more, without)."""
    more = p.B % p.n_a
    first = (more - i + n - 1) // n if i < more else 0
    return first, (p.n_a - i + n - 1) // n - first if i < p.n_a else 0


@compiled
def spread_s(p: Any, depth: int, near: Any, far: Any) -> float:
    """Every attention instance once to each expert node, the receivers to their neighbours, in `depth` pieces."""
    experts, more = nodes_of(p.n_e, p.wide), p.B % p.n_a
    many, few = before(p, 1), p.B // p.n_a
    total, many_was, few_was = 0.0, 0, 0
    for turn in range(depth + 1):
        many_now, few_now = (piece(many, turn, depth), piece(few, turn, depth)) if turn < depth else (0, 0)
        busiest = experts * message(far, many_now)
        busiest = max(busiest, experts * message(far, few_now))
        inside = more * message(near, many_was) + (p.n_a - more) * message(near, few_was)
        for node in (0, experts - 1):
            n = node_size(p, node)
            for i in (0, more % n, p.n_a % n):  # of what the positions take, these are all cases
                first, rest = taken(p, i, n)
                mine = first * message(near, many_was) + rest * message(near, few_was)
                came = first * message(far, many_now) + rest * message(far, few_now)
                busiest = max(busiest, came + inside - mine, mine * (n - 1))
        total += busiest
        many_was, few_was = many_now, few_now
    return 2 * total


@compiled
def relay_s(p: Any, depth: int, near: Any, far: Any) -> float:
    """Each piece to the expert node that owns it, to the others, and inside each; every node owns `depth` pieces."""
    experts, more = nodes_of(p.n_e, p.wide), p.B % p.n_a
    # seconds of one message of [turn + 2, node, kind of attention instance]; the last node stands for all, summed up
    inside, across = np.zeros((depth + 4, experts + 1, 2)), np.zeros((depth + 4, experts + 1, 2))
    for kind in range(2):
        b = before(p, 1) if kind == 0 else p.B // p.n_a
        for q in range(experts):
            for turn in range(depth):
                rows = piece(b, q * depth + turn, experts * depth)
                inside[turn + 2, q, kind] = message(near, rows)
                across[turn + 2, q, kind] = message(far, rows)
        for turn in range(2, depth + 2):
            for q in range(experts):
                inside[turn, experts, kind] += inside[turn, q, kind]
                across[turn, experts, kind] += across[turn, q, kind]
    total = 0.0
    for turn in range(2, depth + 4):
        busiest = max(across[turn, experts, 0], across[turn, experts, 1])
        for q in range(experts):
            n = node_size(p, q)
            for i in (0, more % n, p.n_a % n):
                busiest = max(busiest, relay_port(p, taken(p, i, n), inside, across, turn, q, n))
        total += busiest
    return 2 * total


@compiled
def relay_port(p: Any, mine: Any, inside: Any, across: Any, turn: int, q: int, n: int) -> float:
    """Busier direction of an instance of node q that takes the rows of `mine` (as `taken`) attention instances."""
    experts, into, out = inside.shape[1] - 1, 0.0, 0.0
    for kind in range(2):
        own = mine[kind]
        more = p.B % p.n_a
        others = (more if kind == 0 else p.n_a - more) - own  # whose rows other positions of the node take
        owned, passed = inside[turn - 1, q, kind], inside[turn - 2, experts, kind] - inside[turn - 2, q, kind]
        into += across[turn, q, kind] * own
        into += (across[turn - 1, experts, kind] - across[turn - 1, q, kind]) * own
        into += (owned + passed) * others
        out += across[turn - 1, q, kind] * own * (experts - 1)
        out += (owned + passed) * own * (n - 1)
    return max(into, out)


@compiled
def regimes(pools_N5: Any, links_22: Any, out_N4: Any) -> None:
    """Seconds of every regime at its best depth; inf for those that ``"auto"`` leaves out.

    Args:
        pools_N5: int64, the fields of `Pools`.
        links_22: float64, the fields of `Link` near and far.
        out_N4: float64, in the order of `REGIMES`.
    """
    near, far = Link(links_22[0, 0], links_22[0, 1]), Link(links_22[1, 0], links_22[1, 1])
    out_N4[:] = np.inf
    for i in range(len(out_N4)):
        p = Pools(pools_N5[i, 0], pools_N5[i, 1], pools_N5[i, 2], pools_N5[i, 3], pools_N5[i, 4])
        out_N4[i, 0] = direct_s(p, near, far)
        if min(p.n_a, p.size) > 1 or min(p.n_e, p.wide) > 1:
            out_N4[i, 1] = gather_s(p, near, far)
            depth = 1
            while depth <= SPREAD_DEPTH:
                out_N4[i, 2] = min(out_N4[i, 2], spread_s(p, depth, near, far))
                depth *= 2
        experts = nodes_of(p.n_e, p.wide)
        if experts > nodes_of(p.n_a, p.size):
            depth = 1
            while depth == 1 or (depth <= RELAY_DEPTH and depth * experts <= MOST_PIECES):
                out_N4[i, 3] = min(out_N4[i, 3], relay_s(p, depth, near, far))
                depth *= 2
