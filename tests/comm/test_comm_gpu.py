"""The exchange on one real GPU: rows and sums bit for bit those of the CPU, CUDA graphs, NCCL alone. Layer 3 (GPU)."""

import time

import pytest
import torch
from comm_device import Sums, alone, event, graph_of, to_itself
from comm_memory import Load, differing, same_bits, travelled

from janus.comm.layout import Route, possible
from janus.comm.stream import StreamLane, Watchdog
from janus.comm.wire import At
from janus.errors import PeerLost
from janus.types import Topology

pytestmark = pytest.mark.gpu
UNEVEN = Topology(attention=((0, 1), (2,)), experts=((3, 4, 5), (6,)))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def nccl():
    if not torch.distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", ["experts", "attention"])
def test_every_rank_has_the_bits_of_the_reference(gate, dtype):
    for counts in ((5, 0, 9), (64, 33, 1)):
        load = Load(UNEVEN, counts, gate, dtype, hidden=40)
        for route in possible(UNEVEN):
            assert differing(load, travelled(load, route, "cuda")) == [], route


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", ["direct", "gather"])
def test_the_sums_of_a_combine_can_be_captured_and_replayed(regime, dtype):
    sums = Sums(Route(regime), 33, 512, dtype, "cuda")
    replay, plain = graph_of(lambda: sums(sums.out), "cuda"), torch.empty_like(sums.out)
    for seed in range(5):
        sums.renew(seed)
        sums.out.fill_(float("nan"))
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        replay()
        torch.cuda.synchronize()
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        sums(plain)
        assert same_bits(sums.out, plain.cpu())
        assert not sums.out.isnan().any()


def test_nccl_carries_a_batch_plainly_and_in_a_graph(nccl):
    rows, room = torch.zeros(7, 24, device="cuda"), torch.zeros(7, 24, device="cuda")
    with alone() as (wire, _):
        replay = graph_of(lambda: to_itself(wire, rows, room), "cuda")
        for seed in range(5):
            rows.fill_(seed + 1)
            replay()
            assert torch.equal(rows, room)
        del replay  # NCCL does not close before it is gone
        assert wire.watchdog.drain(5), "plain batches are watched, and came"
        assert not wire.watchdog.fired


def test_nccl_is_told_lengths_first(nccl):
    rows, room = torch.ones(7, 24, device="cuda"), torch.full((9, 24), -1.0, device="cuda")
    with alone(told=True) as (wire, _):
        to_itself(wire, rows, room)
        assert torch.equal(room[:7], rows)
        assert (room[7:] == -1).all()


def test_a_batch_of_an_ended_group_is_a_lost_peer(nccl):
    rows = torch.ones(7, 24, device="cuda")
    with alone() as (wire, group):
        to_itself(wire, rows, rows.clone())
        torch.cuda.synchronize()
        group.abort()
        with pytest.raises(PeerLost):
            to_itself(wire, rows, rows.clone())


@pytest.mark.parametrize(("seconds", "times"), [(0.05, 1), (30.0, 0)])
def test_deadlines_are_kept_by_real_events(seconds, times):
    late = []
    dog = Watchdog(lambda peers, at: late.append(peers), event)
    torch.cuda._sleep(1_000_000_000)  # half a second
    dog.guard(At.within("combine", 0, seconds), [3])
    torch.cuda.synchronize()
    time.sleep(0.1)
    dog.stop()
    assert late == [[3]] * times


def test_a_lane_keeps_what_it_reads_and_orders_what_it_gives():
    lane, x = StreamLane(torch.device("cuda")), torch.ones(1 << 20, device="cuda")

    def call():
        torch.cuda._sleep(100_000_000)
        return x * 2

    pending = lane.submit(call)
    assert not pending.done
    assert (pending.wait() == 2).all()
    assert pending.done
