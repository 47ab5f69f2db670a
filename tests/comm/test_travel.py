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
from janus.comm.layout import REGIMES, stops
from janus.comm.rows import Held, Sliced, Whole
from janus.comm.travel import homeward, outward
from janus.comm.wire import At

H, K, C = 3, 2, 2
AT = At("dispatch", 0, 0.0)


class Queues:
    """The wire of one rank."""

    def __init__(self, rank, between):
        self.rank, self.between = rank, between

    def send(self, peer, rows, tag, at):
        assert rows.is_contiguous()
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


def run(topology, counts, regime, gate, dtype, seed):
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
            codec = Sliced(tuple(counts), H, dtype, K, C) if chosen else Whole(tuple(counts), H, dtype)
            mine = tuple(n if attention and a == at else 0 for a, n in enumerate(counts))
            own = (ids[at], weights[at]) if attention and chosen else (None, None)
            held = Held(x[at] if attention else x[0].new_empty(0, H), mine, *own)
            wire = Queues(rank, between)
            held, trail = outward(wire, stops(regime, topology, rank), rank, held, codec, AT)
            answer = held.x.new_empty(0, H) if attention else y[at]
            found[rank] = held, homeward(wire, topology, rank, trail, answer, AT)
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
    st.sampled_from(REGIMES),
    st.sampled_from(["experts", "attention"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 1000),
)
def test_any_exchange_equals_the_reference_bit_for_bit(load, regime, gate, dtype, seed):
    topology, counts = load
    got, home, found = run(topology, counts, regime, gate, dtype, seed)
    for g, rank in enumerate(topology.expert_ranks):
        rows, ids, weights = got[g]
        held = found[rank][0]
        assert torch.equal(held.x, rows)
        assert held.x.dtype == dtype
        if gate == "attention":
            assert torch.equal(held.ids, ids.to(torch.int32))
            assert torch.equal(held.weights, weights)
    for a, rank in enumerate(topology.attention_ranks):
        assert torch.equal(found[rank][1], home[a])


@settings(max_examples=20, deadline=None)
@given(loads(), st.sampled_from(["experts", "attention"]), st.integers(0, 1000))
def test_the_regime_changes_no_bit(load, gate, seed):
    topology, counts = load
    results = [run(topology, counts, regime, gate, torch.bfloat16, seed)[2] for regime in REGIMES]
    for rank in topology.attention_ranks:
        assert torch.equal(results[0][rank][1].view(torch.int16), results[1][rank][1].view(torch.int16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
def test_special_values_travel_as_they_are(value):
    from janus.types import Topology

    topology = Topology(attention=((0, 1),), experts=((2, 3),))
    codec = Whole((1, 0), H, torch.float32)
    x = torch.full((1, H), value)
    held = Held(x, (1, 0))
    (hop,) = stops("direct", topology, 0)[0].sent[:1]
    assert torch.equal(codec.pack(held, hop, codec.select(held, hop)).view(torch.int32), x.view(torch.int32))
