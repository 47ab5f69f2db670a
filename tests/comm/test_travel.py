"""Layer 1 with tensors: whole exchanges of any shape in one process, one thread per rank, against the plain reference.

The wire is a dictionary of queues with the rule gloo has: messages between two ranks arrive in the order they were
sent, and a message may be shorter than the room offered. The other layers run the same code over sockets.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout import loads

from janus.comm import reference
from janus.comm.arena import Arena
from janus.comm.buffers import Size, homeward_bytes, outward_bytes
from janus.comm.layout import ROUTES, Route, itinerary
from janus.comm.rows import Cargo, Sliced, Whole
from janus.comm.travel import homeward, outward
from janus.comm.wire import At

H, K, C = 3, 2, 2
AT = At("dispatch", 0, 0.0)


class Queues:
    """The wire of one rank."""

    batched = False

    def __init__(self, rank, between):
        self.rank, self.between = rank, between

    def send(self, peer, rows, tag, at):
        assert rows.is_contiguous()
        assert peer != self.rank, "nobody sends to itself"
        assert rows.numel(), "nothing is never sent"
        self.between[self.rank, peer, tag].put(rows.clone().view(-1).view(torch.uint8))

    def recv(self, peer, into, tag, at):
        assert into.is_contiguous()
        return peer, into, tag

    def wait(self, posts, at):
        for peer, into, tag in posts:
            message = self.between[peer, self.rank, tag].get(timeout=10)
            room = into.view(-1).view(torch.uint8)
            assert len(message) <= len(room)
            room[: len(message)] = message


def padded(rows, counts, capacity, chosen):
    """An expert's answers with rows of no token in between, where every rank takes up `capacity` rows."""
    if capacity is None or chosen:
        return rows
    blocks = rows.split(list(counts))
    return torch.cat([torch.cat([b, torch.full((capacity - len(b), H), 7.0).to(b)]) for b in blocks])


def run(topology, counts, route, gate, dtype, seed, capacity=None):
    rng = torch.Generator().manual_seed(seed)
    x = [torch.randn(b, H, generator=rng).to(dtype) for b in counts]
    ids = [torch.randint(-1, topology.n_experts * C, (b, K), generator=rng).to(torch.int32) for b in counts]
    weights = [torch.rand(b, K, generator=rng) for b in counts]
    chosen = {"ids": ids, "weights": weights, "slots": C} if gate == "attention" else {}
    got = [reference.receive(x, g, **chosen) for g in range(topology.n_experts)]
    y = [(rows.float() * (g + 0.3)).to(dtype) for g, (rows, _, _) in enumerate(got)]
    home = reference.combine(y, counts, topology, **{k: v for k, v in chosen.items() if k != "weights"})
    between, errors, found = defaultdict(queue.Queue), [], {}

    def rank_main(rank):
        try:
            at, attention = topology.instance(rank), topology.role(rank) == "attention"
            trip, sizes = itinerary(route, topology, rank), [capacity] * len(counts) if capacity else counts
            size = Size(H, dtype.itemsize, K if chosen else 0)
            # the memory of a step with as many rows as this one, or more, on every rank: exactly enough, or more
            most = [max(sizes)] * len(counts)
            out = Arena(outward_bytes(trip, most, size), torch.device("cpu"))
            home = Arena(homeward_bytes(trip, most, size), torch.device("cpu"))
            none = x[0].new_empty(0, H)
            own = Cargo(x[at], ids[at], weights[at]) if attention else None
            codec = Sliced(trip, tuple(sizes), out, none, K, C, own) if chosen else Whole(trip, sizes, out, none, own)
            wire = Queues(rank, between)
            cargo, trail = outward(wire, trip, codec, AT)
            answer = torch.full((counts[at], H), float("nan"), dtype=dtype) if attention else None
            answers = none if attention else padded(y[at], counts, capacity, chosen)
            homeward(wire, trail, answers, home, AT, answer)
            found[rank] = cargo, answer
        except Exception as error:
            errors.append((rank, error))

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in topology.attention_ranks + topology.expert_ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors
    assert all(box.empty() for box in between.values()), "every message was wanted"
    return got, home, found


# 60 examples with up to 32 threads each: about a second, and every shape of topology many times
@settings(max_examples=60, deadline=None)
@given(
    loads(),
    st.sampled_from(ROUTES),
    st.sampled_from(["experts", "attention"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 1000),
)
def test_any_exchange_equals_the_reference_bit_for_bit(load, route, gate, dtype, seed):
    topology, counts = load
    got, home, found = run(topology, counts, route, gate, dtype, seed)
    for g, rank in enumerate(topology.expert_ranks):
        rows, ids, weights = got[g]
        held = found[rank][0]
        assert torch.equal(held.x, rows)
        assert held.x.dtype == dtype
        if gate == "attention":
            assert torch.equal(held.ids, ids.to(torch.int32))
            assert torch.equal(held.weights, weights)
            assert held.weights.dtype == weights.dtype or not len(rows)
    for a, rank in enumerate(topology.attention_ranks):
        assert torch.equal(found[rank][1], home[a])


@settings(max_examples=20, deadline=None)
@given(loads(), st.sampled_from(["experts", "attention"]), st.integers(0, 1000))
def test_the_route_changes_no_bit(load, gate, seed):
    topology, counts = load
    results = [run(topology, counts, route, gate, torch.bfloat16, seed)[2] for route in ROUTES]
    for rank in topology.attention_ranks:
        bits = [found[rank][1].view(torch.int16) for found in results]
        assert all(torch.equal(bits[0], other) for other in bits[1:])


@settings(max_examples=30, deadline=None)
@given(loads(), st.sampled_from(ROUTES), st.sampled_from(["experts", "attention"]), st.integers(0, 1000))
def test_padding_up_to_a_capacity_is_zeros_and_changes_no_sum(load, route, gate, seed):
    topology, counts = load
    _, home, found = run(topology, counts, route, gate, torch.float32, seed, capacity=4)
    for a, rank in enumerate(topology.attention_ranks):
        assert torch.equal(found[rank][1], home[a])
    if gate == "experts":
        for rank in topology.expert_ranks:
            blocks = found[rank][0].x.view(len(counts), 4, H)
            assert all(not block[n:].any() for block, n in zip(blocks, counts, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
def test_special_values_travel_as_they_are(value):
    from janus.types import Topology

    topology = Topology(attention=((0, 1),), experts=((2, 3),))
    x = torch.full((1, H), value)
    trip = itinerary(Route("direct"), topology, 0)
    codec = Whole(trip, (1, 0), Arena(64, torch.device("cpu")), x[:0], Cargo(x))
    message, _ = codec.message(trip.rounds[0].sent[0])
    assert torch.equal(message.view(torch.int32), x.view(torch.int32))
