"""Layer 1: the messages of an all-to-all as whole numbers; what they cost, against a plain loop; torch-free."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.comm.cost import CostModel
from janus.comm.shuffle import REGIMES, candidates, charges, contradiction, loads, nodes_of, part_of, phases
from janus.errors import JanusError

worlds = st.lists(st.integers(0, 5), min_size=1, max_size=12).map(tuple)  # boxes; the numbers need not be consecutive
LINKS = ("in_node", "between_nodes")
SHARED = CostModel(
    {"in_node": 1e-6, "between_nodes": 2e-5}, {"in_node": 1e-10, "between_nodes": 2e-8},
    node_alpha_s={"in_node": 2e-6, "between_nodes": 1e-6}, node_beta_s_per_byte={"in_node": 1e-10, "between_nodes": 4e-8},
    world_alpha_s={"in_node": 1e-6, "between_nodes": 4e-6}, world_beta_s_per_byte={"in_node": 0, "between_nodes": 3e-9},
    round_s=5e-5,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(worlds, st.sampled_from(REGIMES))
def test_every_piece_reaches_its_place_once_and_is_sent_by_who_has_it(boxes, regime):
    holders = {(s, t): {s} for s, t in itertools.product(range(len(boxes)), repeat=2)}
    reached = Counter()
    for phase in phases(regime, boxes):
        arrived = []
        for message in phase:
            assert message.src != message.dst
            assert len(set(message.pieces)) == len(message.pieces) > 0
            assert message.sources == tuple(sorted({s for s, _ in message.pieces}))
            for piece in message.pieces:
                assert message.src in holders[piece], "nobody sends in a phase what arrives in it"
                arrived.append((piece, message.dst))
        assert len({(m.src, m.dst) for m in phase}) == len(phase), "one message per pair and phase"
        for piece, dst in arrived:
            holders[piece].add(dst)
            reached[piece] += dst == piece[1]
    assert reached == {(s, t): 1 for s, t in holders if s != t}


@settings(max_examples=200, deadline=None)
@given(worlds)
def test_gather_crosses_once_per_node_and_rank_outside_and_shares_the_crossings_out(boxes):
    direct, gather = (list(itertools.chain(*phases(regime, boxes))) for regime in REGIMES)
    far = [[m for m in found if boxes[m.src] != boxes[m.dst]] for found in (direct, gather)]
    world, nodes = len(boxes), nodes_of(boxes)
    assert len(far[0]) == sum(world - len(node) for node in nodes for _ in node)
    assert len(far[1]) == world * (len(nodes) - 1)
    near = [sum(boxes[m.src] == boxes[m.dst] for m in found) for found in (direct, gather)]
    assert near[0] == near[1], "inside a node, as many messages as direct has"
    for node in nodes:
        sent = Counter(m.src for m in far[1])
        assert max(sent[r] for r in node) - min(sent[r] for r in node) <= 1
    received = Counter(m.dst for m in far[1])
    assert set(received.values()) <= {len(nodes) - 1}


@settings(max_examples=100, deadline=None)
@given(worlds)
def test_everybody_is_in_charge_of_somebody_once(boxes):
    for node in nodes_of(boxes):
        outside = [t for t in range(len(boxes)) if boxes[t] != boxes[node[0]]]
        assert sorted(t for rank in node for t in charges(boxes)[rank]) == outside


@settings(max_examples=100, deadline=None)
@given(worlds, st.sampled_from(REGIMES))
def test_the_ranks_parts_are_the_phases(boxes, regime):
    for turn, phase in enumerate(phases(regime, boxes)):
        parts = [part_of(rank, regime, boxes)[turn] for rank in range(len(boxes))]
        assert {m for part in parts for m in part.sent} == {m for part in parts for m in part.coming} == set(phase)
        assert sum(len(part.sent) for part in parts) == sum(len(part.coming) for part in parts) == len(phase)


def test_equal_nodes_by_hand():
    """Two nodes of two: rank 1 is in charge of rank 3, so it gets what rank 0 has for rank 3 and sends it with its own."""
    inside, across = phases("gather", (0, 0, 1, 1))
    assert [m.pieces for m in inside if m.src == 0] == [((0, 1), (0, 3))]
    assert [m.pieces for m in across if m.dst == 3] == [((0, 3), (1, 3))]


def test_where_nothing_is_saved_there_is_nothing_to_choose():
    assert candidates("auto", (0, 1, 2)) == candidates("gather", (4, 4)) == candidates("auto", (0,)) == ("direct",)
    assert candidates("auto", (0, 1, 1)) == REGIMES
    assert candidates("gather", (0, 1, 1)) == ("gather",)
    assert candidates("direct", (0, 1, 1)) == ("direct",)
    with pytest.raises(JanusError, match=r"\[alltoall\.regime\].*'direct', 'gather', 'auto'; got 'relay'"):
        candidates("relay", (0,))


@st.composite
def matrices(draw):
    boxes = draw(worlds)
    n = len(boxes)
    sizes = draw(st.lists(st.one_of(st.just(0), st.integers(1, 10**9)), min_size=n * n, max_size=n * n))
    return boxes, np.array(sizes, dtype=np.int64).reshape(n, n)


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from(REGIMES), st.sampled_from([SHARED, CostModel()]))
def test_the_cost_of_messages_equals_the_plain_loop_exactly(drawn, regime, model):
    boxes, sizes = drawn
    found = loads(regime, boxes, sizes)
    listed = [[(m.src, m.dst, sum(int(sizes[p]) for p in m.pieces)) for m in phase] for phase in phases(regime, boxes)]
    assert [load.tolist() for load in found] == [[list(m) for m in phase] for phase in listed]
    numbers = [sorted(set(boxes)).index(box) for box in boxes]
    assert model.messages_seconds(found, numbers) == plain(model, listed, numbers)
    assert model.messages_seconds(listed, numbers) == plain(model, listed, numbers)


def plain(model, listed, boxes):
    """Message by message, in whole femtoseconds."""
    levels = (
        ("rank", model.alpha_s, model.beta_s_per_byte),
        ("node", model.node_alpha_s, model.node_beta_s_per_byte),
        ("world", model.world_alpha_s, model.world_beta_s_per_byte),
    )
    total = 0
    for phase in listed:
        ports = Counter()
        for src, dst, size in phase:
            if not size:
                continue
            near = boxes[src] == boxes[dst]
            passed = {
                "rank": [("out", src), ("in", dst)],
                "node": [("inside", boxes[src])] if near else [("out", boxes[src]), ("in", boxes[dst])],
                "world": ["all"],
            }
            for level, alpha, beta in levels:
                link = LINKS[not near]
                for port in passed[level]:
                    ports[level, port] += round(alpha[link] * 1e15) + size * round(beta[link] * 1e15)
        total += max(ports.values()) + round(model.round_s * 1e15) if ports else 0
    return total / 1e15


def test_the_choice_is_cheap_for_16_ranks():
    boxes = tuple(rank // 4 for rank in range(16))
    sizes, model, best = np.full((16, 16), 1000), CostModel(), 1.0
    for _ in range(50):
        started = time.perf_counter()
        for regime in REGIMES:
            model.messages_seconds(loads(regime, boxes, sizes), boxes)
        best = min(best, time.perf_counter() - started)
    assert best < 600e-6, best  # 300 us a regime; 130 us for both on an idle core


def test_up_to_where_rows_ride_depends_on_the_model():
    from janus.comm.collective import MOST_RIDING, worth_riding

    def riding(model, boxes):
        return worth_riding(json.dumps(model.to_dict()), boxes)

    free = {"in_node": 0.0, "between_nodes": 0.0}
    boxes = (0, 0, 1, 1)
    assert riding(CostModel({"in_node": 0.0, "between_nodes": 1.0}, free), boxes) == MOST_RIDING
    assert riding(CostModel(free, {"in_node": 1e-9, "between_nodes": 1e-9}), boxes) == -1
    # direct: 1 message inside, 2 across: 3 + 2 * 10 us; gather: 1 + 10 us, and per byte of a piece 2 inside, at 1 us
    # beside the headers of 104 bytes inside, free across: 11 + 104 + 2 n <= 21 + n only if bytes are cheaper than that
    assert riding(CostModel({"in_node": 1e-6, "between_nodes": 1e-5}, free | {"in_node": 1e-6}), boxes) == -1
    assert riding(CostModel({"in_node": 1e-6, "between_nodes": 1e-5}, free | {"in_node": 5e-8}), boxes) == 64


def test_over_gloo_gather_is_for_many_ranks():
    """4 x 4 ranks: direct 15 messages and a phase, 1.25 ms; gather 6 messages and two phases, 1.3 ms.

    8 x 8: direct 63 messages, 3.65 ms; gather 14 messages, 1.7 ms.
    """
    from janus.comm.collective import _GLOO, worth_riding

    cost = json.dumps(_GLOO.to_dict())
    assert worth_riding(cost, tuple(rank // 4 for rank in range(16))) == -1
    assert worth_riding(cost, tuple(rank // 8 for rank in range(64))) > 0


@given(matrices())
def test_a_contradiction_is_the_first_pair_that_disagrees(drawn):
    _, sent = drawn
    assert contradiction(sent, sent.T) is None
    for s, t in itertools.product(range(len(sent)), repeat=2):
        expected = sent.T.copy()
        expected[t, s] += 1
        assert contradiction(sent, expected) == (s, t)
