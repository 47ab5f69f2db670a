"""Layer 1: the small parts one by one, without processes: limits, contract, packing, sums, rendezvous."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from janus.comm import Exchange, Timeouts, reference, rendezvous
from janus.comm.arena import Arena
from janus.comm.contract import difference
from janus.comm.lanes import Lane
from janus.comm.layout import Hop, Itinerary, Leg, Round
from janus.comm.rows import Cargo, Sliced, Whole
from janus.comm.store import Board, StoreGone
from janus.errors import JanusError
from janus.types import Topology


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", None, True])
def test_a_time_limit_is_a_finite_number_above_zero(value):
    for name in ("rendezvous_s", "step_s", "idle_s", "close_s"):
        with pytest.raises(JanusError, match=name) as caught:
            Timeouts(**{name: value})
        assert caught.value.code == "comm.timeouts"


def test_a_difference_names_the_field_both_values_and_both_ranks():
    assert difference({0: {"a": 1}, 1: {"a": 1}}) == ""
    said = {0: {"a": 1, "b": [1]}, 2: {"a": 1, "b": [1]}, 5: {"a": 1, "b": [2]}}
    assert "same b; rank 0 has [1], rank 5 has [2]" in difference(said)
    assert 'same b; rank 0 has "(absent)", rank 1 has 3' in difference({0: {}, 1: {"b": 3}})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights_dtype", [torch.float32, "same"])
def test_what_is_packed_is_unpacked_bit_for_bit(dtype, weights_dtype):
    """Odd sizes throughout: 3 choices, width 5, so that halves never fill whole words by luck."""
    kind = dtype if weights_dtype == "same" else torch.float32
    x, ids, weights = _rows(7, dtype, kind)
    there = Leg(Hop(0, 1, (0,), (0, 2)), (0,))  # instances 0 and 2: not consecutive
    sender = _codec(Sliced, there.hop, dtype, Cargo(x, ids, weights))
    message, (segment,) = sender.message(there)
    here = [[int(i) >= 0 and int(i) // 2 in (0, 2) for i in row] for row in ids]
    assert segment.select.tolist() == [t for t in range(7) if any(here[t])]
    receiver = _codec(Sliced, there.hop, dtype)
    room = receiver.room(0).fill_(255)
    room[: len(message)] = message
    receiver.arrived(0)
    got, _ = receiver.landing()
    mine = [t for t in range(7) if any(int(i) // 2 == 0 for i in ids[t] if i >= 0)]
    keep = torch.tensor([[0 <= int(i) < 2 for i in ids[t]] for t in mine])
    assert torch.equal(got.x, x[mine])
    assert torch.equal(got.ids, ids[mine].masked_fill(~keep, -1))
    assert torch.equal(got.weights, weights[mine].masked_fill(~keep, 0))
    assert got.weights.dtype == kind
    assert receiver.counts == (len(mine),)


def _rows(n, dtype, kind):
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(-1, 6, (n, 3), generator=rng).to(torch.int32)
    return torch.randn(n, 5, generator=rng).to(dtype), ids, torch.rand(n, 3, generator=rng).to(kind)


def _codec(kind, hop, dtype, own=None):
    """A codec with one arrival, which is for this expert instance, or stands for the attention rank's own rows."""
    topology = Topology(((0,),), ((1,), (2,), (3,)))
    arrival = Hop(0, 0, (0,), (0, 1, 2)) if own else hop
    turns = () if own else (Round((), (0,)),)
    trip = Itinerary(topology, 0 if own else 1, (arrival,), turns, () if own else (0,))
    arena = Arena(4096, torch.device("cpu"))
    more = (3, 2) if kind is Sliced else ()
    return kind(trip, (7,), arena, torch.empty(0, 5, dtype=dtype), *more, own)


def test_whole_rows_arrive_in_place():
    topology = Topology(((0, 1, 2),), ((9,),))
    hops = tuple(Hop(a, 9, (a,), (0,)) for a in range(3))
    codec = Whole(
        Itinerary(topology, 9, hops, (Round((), (0, 1, 2)),), (0, 1, 2)), (2, 0, 1), Arena(64, torch.device("cpu")), torch.empty(0, 4)
    )  # fmt: skip
    for i, value in enumerate((1.0, 2.0, 3.0)):
        codec.room(i).fill_(value)
    cargo, segments = codec.landing()
    assert cargo.x[:, 0].tolist() == [1.0, 1.0, 3.0]
    assert cargo.x.data_ptr() == codec.room(0).data_ptr(), "no copy"
    assert [(s.index, s.at, s.rows) for s in segments] == [(0, 0, 2), (1, 2, 0), (2, 2, 1)]


def test_an_arena_hands_out_the_same_memory_again_and_no_more_than_it_has():
    arena = Arena(256, torch.device("cpu"))
    first = arena.take((3, 5), torch.float32)
    second = arena.take((7,), torch.uint8)
    assert second.data_ptr() - first.data_ptr() == 64
    arena.reset()
    assert arena.take((1,), torch.bfloat16).data_ptr() == first.data_ptr()
    with pytest.raises(AssertionError, match="256 bytes"):
        arena.take((256,), torch.uint8)


def test_what_is_submitted_runs_in_order_beside_the_caller():
    lane, seen = Lane("test"), []
    gate = threading.Event()
    first = lane.submit(lambda: (gate.wait(5), seen.append(1)))
    second = lane.submit(lambda: seen.append(2))
    assert not first.done
    threading.Timer(0.05, gate.set).start()
    lane.run(lambda: seen.append(3))  # after the two
    assert seen == [1, 2, 3]
    assert second.done
    failing = lane.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.wait()
    gate.clear()
    lane.submit(lambda: gate.wait(5))
    never = lane.submit(lambda: seen.append(4))
    threading.Timer(0.05, gate.set).start()
    lane.close()
    with pytest.raises(JanusError, match="closed before this call began"):
        never.wait()
    assert seen == [1, 2, 3]
    assert not [t for t in threading.enumerate() if t.name.startswith("janus-test")]


def test_the_reference_sums_nodes_first_and_rounds_each():
    """bfloat16 keeps 8 bits: 256 + 1 rounds to 256 in the node, where a flat sum would carry 256 + 1 + 1 = 258."""
    t = Topology(attention=((0,),), experts=((1, 2), (3,)))
    y = [torch.tensor([[v]], dtype=torch.bfloat16) for v in (256.0, 1.0, 1.0)]
    assert reference.combine(y, (1,), t)[0].tolist() == [[256.0]]
    flat = Topology(attention=((0,),), experts=((1, 2, 3),))
    assert reference.combine(y, (1,), flat)[0].tolist() == [[258.0]]


GOOD = {"hidden_size": 4, "dtype": "float32", "max_tokens": 4}


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"regime": "ring"}, "comm.regime"),
        ({"capacity": "some"}, "comm.capacity"),
        ({"capacity": 0}, "comm.capacity"),
        ({"capacity": 5}, "comm.capacity"),
        ({"capacity": True}, "comm.capacity"),
        ({"gate": "both"}, "comm.gate"),
        ({"dtype": "float64"}, "comm.dtype"),
        ({"device": "cuda"}, "comm.device"),
        ({"device": "nowhere"}, "comm.device"),
        ({"hidden_size": 0}, "comm.hidden_size"),
        ({"max_tokens": 2.5}, "comm.max_tokens"),
        ({"gate": "attention"}, "comm.top_k"),
        ({"gate": "attention", "top_k": 2}, "comm.slots_per_instance"),
        ({"timeout_s": -1}, "comm.timeouts"),
        ({"contract": {"top_k": 3}}, "comm.contract"),
        ({"contract": {"model": object()}}, "comm.contract"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_comes_up(args, code):
    with pytest.raises(JanusError) as caught:
        Exchange(Topology.parse("1A1E"), **{**GOOD, **args})
    assert caught.value.code == code


def test_without_a_launcher_the_remedy_is_named(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "JANUS_RENDEZVOUS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(JanusError, match=r"janus run.*torchrun") as caught:
        rendezvous(Topology.parse("1A1E"))
    assert caught.value.code == "comm.rendezvous"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(JanusError, match="MASTER_ADDR"):
        rendezvous(Topology.parse("1A1E"))
    monkeypatch.setenv("JANUS_RENDEZVOUS", "tcp://here")
    with pytest.raises(JanusError, match="file:///path"):
        rendezvous(Topology.parse("1A1E"))


class Stuck:
    """A store whose host is stopped."""

    def set(self, *_):
        time.sleep(3)


class Broken:
    """A store whose host has ended."""

    def check(self, _):
        raise RuntimeError("connection reset")


def test_a_store_that_does_not_answer_costs_its_bound_once():
    board = Board(Stuck(), "x", call_s=0.2)
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(StoreGone):
            board.put("a", 1)
    assert time.monotonic() - started < 1.0
    with pytest.raises(StoreGone, match="connection reset"):
        Board(Broken(), "x").read(["a"])


def test_a_topology_as_text_is_refused_with_the_way_to_make_one():
    with pytest.raises(JanusError, match=r"comm\.topology.*Topology\.parse"):
        Exchange("1A1E", **GOOD)
