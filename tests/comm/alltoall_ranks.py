"""What one rank does in the layer-2 tests of `all_to_all`; every rank computes its own expectation."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from janus.comm import CostModel, all_to_all, collective, mail
from janus.errors import JanusError, PeerLost
from janus.types import Topology

# messages between nodes are all that costs; the second: bytes inside a node do too
FREE = {"in_node": 0.0, "between_nodes": 0.0}
GATHER = CostModel(FREE, FREE, world_alpha_s=FREE | {"between_nodes": 1e-3})
BOTH = CostModel(FREE, FREE | {"in_node": 1e-6}, world_alpha_s=FREE | {"between_nodes": 1e-3})
KINDS = {  # dtype: trailing shape
    torch.float32: (3,),
    torch.bfloat16: (2, 5),
    torch.int64: (),
    torch.bool: (7,),
    torch.uint8: (1,),
    torch.complex64: (2,),
    torch.float8_e4m3fn: (3,),
    torch.float64: (0,),
}


def meet() -> tuple[int, int]:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit = timedelta(seconds=20)
    dist.init_process_group(
        "gloo", init_method=os.environ["JANUS_RENDEZVOUS"], rank=rank, world_size=world, timeout=limit
    )
    return rank, world


def pretend(nodes: list[list[int]]) -> None:
    """This process claims to run on a machine of its node's own."""
    rank = dist.get_rank()
    (number,) = [i for i, node in enumerate(nodes) if rank in node]
    collective.host_identity = lambda: bytes([number]) * 16


def spied() -> Counter:
    """Counts which way the rows took from now on."""
    ways: Counter = Counter()

    def count(way, call):
        def counted(*args, **more):
            ways[way] += 1
            return call(*args, **more)

        return counted

    collective.direct = count("direct", collective.direct)
    collective.land = count("rode", collective.land)
    collective.carry = count("gather", collective.carry)
    return ways


def piece(source: int, target: int, rows: int, dtype: torch.dtype, shape: tuple[int, ...], turn: int) -> torch.Tensor:
    """What `source` sends `target`: bytes that say which piece they are."""
    rng = torch.Generator().manual_seed(turn * 10_000 + source * 100 + target)
    width = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (rows * width,), generator=rng, dtype=torch.uint8)
    return raw.view(dtype).view(rows, *shape)


def splits(world: int, turn: int, most: int) -> list[list[int]]:
    """Rows from each member for each member; zeros among them, and in one turn nothing at all."""
    rng = torch.Generator().manual_seed(turn)
    rows = torch.randint(0, most + 1, (world, world), generator=rng) * torch.randint(
        0, 2, (world, world), generator=rng
    )
    return (rows if turn % 5 else rows * 0).tolist()


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b)))


def alltoall_equal(nodes=None, topology=None, members=None, torch_too=True):
    """Many splits, dtypes, shapes and regimes against what was sent, and against torch; returns which ways were taken."""
    rank, world = meet()
    where, group, order = None, None, list(range(world))
    if nodes:
        pretend(nodes)
    if members:
        order = members
        where = group = dist.new_group(members)
    if topology:
        where = Topology(**topology)
        order = [*where.attention_ranks, *where.expert_ranks]
    ways, found = spied(), {}
    if rank not in order:
        dist.barrier()
        return {}
    me, n = order.index(rank), len(order)
    for turn, (dtype, shape) in enumerate(
        [*KINDS.items(), (torch.float32, (4,)), (torch.float32, (4096,)), (torch.int16, (9,))]
    ):
        most = 9 if shape == (4096,) else 20  # the long rows do not ride with the agreement
        table = splits(n, turn, most)
        sent = [piece(me, t, table[me][t], dtype, shape, turn) for t in range(n)]
        wanted = torch.cat([piece(s, me, table[s][me], dtype, shape, turn) for s in range(n)])
        incoming = [table[s][me] for s in range(n)]
        x = torch.cat(sent)
        kept = x.clone()
        for regime, cost in (("direct", None), ("gather", None), ("auto", None), ("auto", GATHER), ("auto", BOTH)):
            out = torch.full((sum(incoming), *shape), 99).to(dtype)
            ways.clear()
            all_to_all(out, x, incoming, table[me], topology_or_group=where, regime=regime, cost=cost, timeout_s=15)
            assert same_bytes(out, wanted), (regime, dtype, turn)
            assert same_bytes(x, kept), "the input is only read"
            found[f"{regime} {cost is GATHER} {cost is BOTH} {turn}"] = "+".join(sorted(ways))
        if torch_too and dtype.itemsize != 2 and "float8" not in str(dtype) and dtype != torch.bool and 0 not in shape:
            theirs = torch.empty_like(out)
            dist.all_to_all_single(theirs, x, incoming, table[me], group=group)
            assert same_bytes(theirs, wanted)
    even = torch.arange(3 * n).view(n * 3, 1) + 100 * me
    out = torch.empty_like(even)
    all_to_all(out, even, topology_or_group=where)
    assert out.flatten().tolist() == [100 * s + 3 * me + i for s in range(n) for i in range(3)]
    dist.barrier()
    return found


def alltoall_refused(per_rank, nodes=None):
    """Each rank's own arguments; what it was told, and whether the group still works afterwards."""
    rank, world = meet()
    if nodes:
        pretend(nodes)
    mine = dict(per_rank[rank])
    sent, expected = mine.pop("sent"), mine.pop("expected")
    dtype = getattr(torch, mine.pop("dtype", "float32"))
    x, out = torch.zeros(sum(sent), 2, dtype=dtype), torch.full((sum(expected), 2), 7, dtype=dtype)
    if "cost" in mine:
        mine["cost"] = GATHER if mine["cost"] == "gather" else CostModel(round_s=mine["cost"])
    try:
        all_to_all(out, x, expected, sent, timeout_s=10, **mine)
    except JanusError as error:
        assert (out == 7).all(), "nothing was written"
        ones, back = torch.ones(world), torch.zeros(world)
        all_to_all(back, ones, regime="gather")
        assert back.sum() == world
        return [error.code, error.message]
    return ["", ""]


def alltoall_lost(nodes, victim, when, sig, regime, timeout_s, rows=1):
    """`victim` dies or stops before its call or before its n-th exchange of messages; the others say what they saw."""
    rank, world = meet()
    pretend(nodes)
    x = torch.zeros(world * rows, 4096)
    out = torch.empty_like(x)
    args = {"regime": regime, "cost": GATHER}
    all_to_all(out, x, **args)
    dist.barrier()

    def end():
        if sig == "SIGSTOP":
            Path(os.environ["SCENARIO_FOLDER"], f"stopped{rank}").touch()
        time.sleep(0.3)
        os.kill(os.getpid(), getattr(signal, sig))

    if rank == victim:
        if when == 0:
            end()
        calls, exchange = Counter(), mail.Mail.exchange

        def counted(self, *rest):
            calls["n"] += 1
            if calls["n"] == when:
                end()
            return exchange(self, *rest)

        mail.Mail.exchange = counted
    seen = []
    for _ in range(2):
        started = time.monotonic()
        try:
            while True:  # a call that the victim has served already may end well
                all_to_all(out, x, timeout_s=timeout_s, **args)
        except PeerLost as error:
            seen.append([time.monotonic() - started, error.peer, error.phase, error.layer, error.rank, error.detail])
    return seen
