"""Layer 1: the small parts one by one, without processes: limits, contract, packing, sums, rendezvous."""

from __future__ import annotations

import time

import pytest
import torch

from janus.comm import Exchange, Timeouts, reference, rendezvous
from janus.comm.contract import difference
from janus.comm.layout import Hop
from janus.comm.rows import Held, Sliced, Whole
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
    counts = (3, 0, 4)
    codec = Sliced(counts, 5, dtype, 3, 2)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=rng).to(dtype)
    ids = torch.randint(-1, 6, (7, 3), generator=rng).to(torch.int32)
    weights = torch.rand(7, 3, generator=rng).to(kind)
    hop = Hop(0, 1, (0, 1, 2), (0, 2))
    held = Held(x, counts, ids, weights)
    select = codec.select(held, hop)
    here = [[int(i) >= 0 and int(i) // 2 in hop.targets for i in row] for row in ids]
    assert select.tolist() == [t for t in range(7) if any(here[t])]
    box = codec.inbox([hop])[0].fill_(255)
    message = codec.pack(held, hop, select)
    box[: len(message)] = message
    got = codec.unpack([hop], [box])
    keep = torch.tensor(here)[select]
    assert torch.equal(got.x, x[select])
    assert torch.equal(got.ids, ids[select].masked_fill(~keep, -1))
    assert torch.equal(got.weights, weights[select].masked_fill(~keep, 0))
    assert got.weights.dtype == kind
    assert got.counts == tuple(sum(lo <= t < hi for t in select.tolist()) for lo, hi in ((0, 3), (3, 3), (3, 7)))


def test_whole_rows_arrive_in_place():
    codec = Whole((2, 0, 1), 4, torch.float32)
    hops = [Hop(0, 9, (0,), (0,)), Hop(1, 9, (1,), (0,)), Hop(2, 9, (2,), (0,))]
    inbox = codec.inbox(hops)
    for box, value in zip(inbox, (1.0, 2.0, 3.0), strict=True):
        box.fill_(value)
    held = codec.unpack(hops, inbox)
    assert held.x[:, 0].tolist() == [1.0, 1.0, 3.0]
    assert held.x.data_ptr() == inbox[0].data_ptr(), "no copy"


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
        ({"regime": "relay"}, "comm.regime"),
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
