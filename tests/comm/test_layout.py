"""Layer 1, pure integers: every row reaches every expert instance once and in order, every sum meets once.

The hops are walked with plain Python lists in place of tensors: a row is (instance, position), a partial sum is the
list of (row, expert instance) pairs it holds.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.comm.layout import (
    MOST_PIECES,
    REGIMES,
    ROUTES,
    Route,
    attention_nodes,
    candidates,
    expert_nodes,
    itinerary,
    offsets,
    parts,
    phases,
    same_box,
)
from janus.errors import JanusError
from janus.types import Topology

EXAMPLES = 150  # a topology is four small integers lists; 150 reach every branch many times, in about a second


@st.composite
def topologies(draw):
    sizes = [draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)) for _ in range(2)]
    ranks = draw(st.permutations(range(sum(map(sum, sizes)) + 2)))  # two ranks stay idle
    pools, start = [], 0
    for pool in sizes:
        nodes = []
        for size in pool:
            nodes.append(tuple(ranks[start : start + size]))
            start += size
        pools.append(tuple(nodes))
    shared = draw(st.booleans())
    return Topology(pools[0], pools[1], ((0, len(pools[0])),) if shared else ())


@st.composite
def loads(draw):
    topology = draw(topologies())
    counts = draw(st.lists(st.integers(0, 3), min_size=topology.n_attention, max_size=topology.n_attention))
    return topology, counts


def walk_out(route, topology, counts, wanted=lambda row, targets: True):
    """Rows that land on each expert rank, walking the hops with lists: a rank passes on what it has got before."""
    ranks = topology.attention_ranks + topology.expert_ranks
    trips = {rank: itinerary(route, topology, rank) for rank in ranks}
    got = {rank: {} for rank in ranks}  # arrival -> rows
    for a, rank in enumerate(topology.attention_ranks):
        got[rank][0] = [(a, i) for i in range(counts[a])]
    for number in range(len(phases(route, topology))):
        messages = {}
        for rank in ranks:
            for leg in trips[rank].rounds[number].sent:
                rows = []
                for index in leg.feeds:
                    here = got[rank][index]  # arrived in an earlier round, or this fails
                    whole = trips[rank].arrivals[index].pieces == 1
                    rows += here[leg.hop.cut(len(here))] if whole else here
                messages[leg.hop] = [row for row in rows if wanted(row, leg.hop.targets)]
        for rank in ranks:
            for index in trips[rank].rounds[number].arriving:
                got[rank][index] = messages.pop(trips[rank].arrivals[index])
        assert not messages, "every message has a receiver"
    return {
        rank: [row for i in trips[rank].landed for row in got[rank][i] if wanted(row, (topology.instance(rank),))]
        for rank in topology.expert_ranks
    }


@settings(max_examples=EXAMPLES, deadline=None)
@given(loads(), st.sampled_from(ROUTES))
def test_every_expert_gets_every_row_once_and_in_order(load, route):
    topology, counts = load
    landed = walk_out(route, topology, counts)
    everything = [(a, i) for a, n in enumerate(counts) for i in range(n)]
    assert all(landed[rank] == everything for rank in topology.expert_ranks)


@settings(max_examples=EXAMPLES, deadline=None)
@given(loads(), st.sampled_from(ROUTES), st.randoms(use_true_random=False))
def test_a_chosen_row_reaches_exactly_the_instances_it_chose(load, route, rng):
    topology, counts = load
    rows = [(a, i) for a, n in enumerate(counts) for i in range(n)]
    chosen = {row: {g for g in range(topology.n_experts) if rng.random() < 0.4} for row in rows}
    landed = walk_out(route, topology, counts, lambda row, targets: bool(chosen[row] & set(targets)))
    for g, rank in enumerate(topology.expert_ranks):
        assert landed[rank] == [row for row in rows if g in chosen[row]]


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies(), st.sampled_from(ROUTES))
def test_the_sum_of_every_instance_comes_home_once(topology, route):
    """Backwards over the hops: for each piece of each source, every instance exactly once. A row is (source, piece)."""
    pieces = max(h.pieces for phase in phases(route, topology) for h in phase)
    rows = [(a, p) for a in range(topology.n_attention) for p in range(pieces)]
    answers = {(topology.expert_ranks[g], row): Counter([g]) for g in range(topology.n_experts) for row in rows}
    for phase in reversed(phases(route, topology)):
        before = {}
        for h in phase:
            for a, p in rows:
                if a in h.sources and h.pieces in (1, pieces) and (h.pieces == 1 or h.piece == p):
                    home = Counter({g: answers[h.dst, (a, p)][g] for g in h.targets})
                    assert set(home.values()) == {1}, "the hop's answers hold each of its targets once"
                    before.setdefault((h.src, (a, p)), Counter()).update(home)
        for key, found in before.items():
            answers[key] = answers.get(key, Counter()) + found
    for a, rank in enumerate(topology.attention_ranks):
        assert all(answers[rank, (a, p)] == Counter(range(topology.n_experts)) for p in range(pieces))


@settings(max_examples=EXAMPLES, deadline=None)
@given(loads(), st.sampled_from(ROUTES))
def test_between_nodes_a_row_goes_to_each_expert_node_once(load, route):
    """All regimes but "direct": however many ranks a node has, a row enters it once."""
    topology, counts = load
    if route.regime == "direct" or topology.hosts:
        return
    entered = Counter()
    starts = offsets(counts)
    for h in (h for phase in phases(route, topology) for h in phase):
        if not same_box(topology, h.src, h.dst):
            span = h.span(starts)
            entered.update((topology.node(h.dst), row) for row in range(span.start, span.stop))
    assert set(entered.values()) <= {1}
    assert len(entered) == sum(counts) * len(topology.experts)


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies())
def test_gather_crosses_once_per_node_pair_and_spreads_the_crossings(topology):
    crossing = phases(Route("gather"), topology)[1]
    pairs = Counter((topology.node(h.src), topology.node(h.dst)) for h in crossing)
    first = len(topology.attention)
    assert pairs == Counter((p, first + q) for p in range(first) for q in range(len(topology.experts)))
    for other in (phases(Route("gather"), topology)[0], phases(Route("gather"), topology)[2]):
        assert all(same_box(topology, h.src, h.dst) for h in other)
    for p, node in enumerate(topology.attention):
        used = Counter(h.src for h in crossing if topology.node(h.src) == p)
        assert max(used.values()) == -(-len(topology.experts) // len(node)), "no rank carries more than its share"
    for q, node in enumerate(topology.experts):
        used = Counter(h.dst for h in crossing if topology.node(h.dst) == first + q)
        assert max(used.values()) == -(-len(topology.attention) // len(node))


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies(), st.sampled_from(ROUTES))
def test_a_hop_is_named_once_and_goes_to_somebody_else(topology, route):
    """So messages of one phase between two ranks can be told apart by their order alone."""
    for phase in phases(route, topology):
        assert max(Counter((h.src, h.dst, h.sources, h.piece) for h in phase).values(), default=1) == 1
        for h in phase:
            assert h.src != h.dst
            assert list(h.sources) == list(range(h.sources[0], h.sources[-1] + 1))
            assert list(h.targets) == sorted(set(h.targets))


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies(), st.sampled_from(ROUTES))
def test_both_ends_list_the_messages_between_them_in_the_same_order(topology, route):
    """gloo matches messages of one pair by order: the sender sorts by targets, the receiver by sources."""
    ranks = topology.attention_ranks + topology.expert_ranks
    trips = {rank: itinerary(route, topology, rank) for rank in ranks}
    for number in range(len(phases(route, topology))):
        for src in ranks:
            for dst in ranks:
                sent = [leg.hop for leg in trips[src].rounds[number].sent if leg.hop.dst == dst]
                coming = [trips[dst].arrivals[i] for i in trips[dst].rounds[number].arriving]
                assert sent == [h for h in coming if h.src == src]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 40), st.integers(1, 12))
def test_pieces_cut_rows_without_gap_or_overlap(rows, pieces):
    from janus.comm.layout import Hop

    cuts = [Hop(0, 1, (0,), (0,), p, pieces) for p in range(pieces)]
    assert [r for h in cuts for r in range(rows)[h.cut(rows)]] == list(range(rows))
    assert max(h.rows([rows]) for h in cuts) - min(h.rows([rows]) for h in cuts) <= 1


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies())
def test_auto_leaves_out_what_repeats_another(topology):
    names = {route.regime for route in candidates("auto", topology)}
    assert "direct" in names
    assert ("relay" in names) == (len(topology.experts) > len(topology.attention))
    assert ({"gather", "spread"} <= names) == any(len(node) > 1 for node in topology.nodes)
    for regime in REGIMES:
        depths = [route.depth for route in candidates(regime, topology)]
        assert depths == {"spread": [1, 2, 4], "relay": depths}.get(regime, [1])
    relayed = [route.depth * len(topology.experts) for route in candidates("relay", topology) if route.depth > 1]
    assert all(pieces <= MOST_PIECES for pieces in relayed)


def test_worked_example_of_two_nodes_by_two():
    t = Topology(attention=((0, 1),), experts=((2, 3), (4, 5)))
    inner, cross, fan = phases(Route("gather"), t)
    assert [(h.src, h.dst, h.targets) for h in inner] == [(1, 0, (0, 1)), (0, 1, (2, 3))]
    assert [(h.src, h.dst) for h in cross] == [(0, 2), (1, 4)]
    assert [(h.src, h.dst) for h in fan] == [(2, 3), (4, 5)]
    first, passed, fan = phases(Route("relay"), t)
    assert [(h.src, h.dst, h.piece, h.targets) for h in first] == [
        (0, 2, 0, (0, 1, 2, 3)), (1, 3, 0, (0, 1, 2, 3)), (0, 4, 1, (0, 1, 2, 3)), (1, 5, 1, (0, 1, 2, 3)),
    ]  # fmt: skip
    assert [(h.src, h.dst, h.piece) for h in passed] == [
        (2, 3, 0), (2, 4, 0), (3, 2, 0), (3, 5, 0), (4, 5, 1), (4, 2, 1), (5, 4, 1), (5, 3, 1),
    ]  # fmt: skip
    assert [(h.src, h.dst, h.piece) for h in fan] == [(4, 5, 0), (5, 4, 0), (2, 3, 1), (3, 2, 1)]


def test_nodes_offsets_and_parts():
    t = Topology(attention=((0,), (1, 2)), experts=((3, 4), (5,)))
    assert attention_nodes(t) == ((0,), (1, 2))
    assert expert_nodes(t) == ((0, 1), (2,))
    assert offsets([2, 0, 1]) == [0, 2, 2, 3]
    assert parts((0, 1, 2), t) == ((0, 1, 2),)
    assert parts((0, 1), t) == ((0, 1),)
    assert parts((1,), t) == ((1,),)
    assert parts((2,), t) == ((2,),)


def test_an_unknown_regime_is_refused_by_name():
    with pytest.raises(JanusError, match="'direct', 'gather', 'spread', 'relay'; got 'ring'") as caught:
        phases(Route("ring"), Topology.parse("1A1E"))
    assert caught.value.code == "comm.regime"
