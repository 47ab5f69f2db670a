"""Layer 1, pure integers: every row reaches every expert instance once and in order, every sum meets once.

The hops are walked with plain Python lists in place of tensors: a row is (instance, position), a partial sum is the
list of (row, expert instance) pairs it holds.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.comm.layout import REGIMES, attention_nodes, expert_nodes, offsets, parts, phases, same_box, stops
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


def walk_out(regime, topology, counts, wanted=lambda row, targets: True):
    """Rows held by each rank after the last phase, and per phase what each rank had sent and held."""
    held = {rank: [] for rank in range(topology.world_size)}
    for a, rank in enumerate(topology.attention_ranks):
        held[rank] = [(a, i) for i in range(counts[a])]
    for number in range(len(phases(regime, topology))):
        after = {rank: [] for rank in held}
        for rank in held:
            for hop in stops(regime, topology, rank)[number].arriving if topology.role(rank) != "idle" else ():
                rows = [row for row in held[hop.src] if row[0] in hop.sources]
                after[rank] += [row for row in rows if wanted(row, hop.targets)]
        held = after
    return held


@settings(max_examples=EXAMPLES, deadline=None)
@given(loads(), st.sampled_from(REGIMES))
def test_every_expert_gets_every_row_once_and_in_order(load, regime):
    topology, counts = load
    held = walk_out(regime, topology, counts)
    everything = [(a, i) for a, n in enumerate(counts) for i in range(n)]
    assert all(held[rank] == everything for rank in topology.expert_ranks)
    assert not any(held[rank] for rank in topology.attention_ranks)


@settings(max_examples=EXAMPLES, deadline=None)
@given(loads(), st.sampled_from(REGIMES), st.randoms(use_true_random=False))
def test_a_chosen_row_reaches_exactly_the_instances_it_chose(load, regime, rng):
    topology, counts = load
    rows = [(a, i) for a, n in enumerate(counts) for i in range(n)]
    chosen = {row: {g for g in range(topology.n_experts) if rng.random() < 0.4} for row in rows}
    held = walk_out(regime, topology, counts, lambda row, targets: bool(chosen[row] & set(targets)))
    for g, rank in enumerate(topology.expert_ranks):
        assert held[rank] == [row for row in rows if g in chosen[row]]


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies(), st.sampled_from(REGIMES))
def test_the_sum_of_every_instance_comes_home_once(topology, regime):
    """Backwards over the hops: each source collects, for each node, each instance exactly once."""
    answers: dict[int, dict[int, Counter]] = {}  # rank -> source -> instances summed there
    for g, rank in enumerate(topology.expert_ranks):
        answers[rank] = {a: Counter([g]) for a in range(topology.n_attention)}
    for phase in reversed(phases(regime, topology)):
        before: dict[int, dict[int, Counter]] = {}
        for hop in phase:
            for a in hop.sources:
                home = Counter({g: answers[hop.dst][a][g] for g in hop.targets})
                assert set(home.values()) == {1}, "the hop's answers hold each of its targets once"
                before.setdefault(hop.src, {}).setdefault(a, Counter()).update(home)
        answers = before
    for a, rank in enumerate(topology.attention_ranks):
        assert answers[rank][a] == Counter(range(topology.n_experts))


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies())
def test_gather_crosses_once_per_node_pair_and_spreads_the_crossings(topology):
    crossing = phases("gather", topology)[1]
    pairs = Counter((topology.node(h.src), topology.node(h.dst)) for h in crossing)
    first = len(topology.attention)
    assert pairs == Counter((p, first + q) for p in range(first) for q in range(len(topology.experts)))
    for other in (phases("gather", topology)[0], phases("gather", topology)[2]):
        assert all(same_box(topology, h.src, h.dst) for h in other)
    for p, node in enumerate(topology.attention):
        used = Counter(h.src for h in crossing if topology.node(h.src) == p)
        assert max(used.values()) == -(-len(topology.experts) // len(node)), "no rank carries more than its share"
    for q, node in enumerate(topology.experts):
        used = Counter(h.dst for h in crossing if topology.node(h.dst) == first + q)
        assert max(used.values()) == -(-len(topology.attention) // len(node))


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies(), st.sampled_from(REGIMES))
def test_at_most_one_message_per_pair_and_sources_in_one_phase(topology, regime):
    """So messages of one phase between two ranks can be told apart by their order alone."""
    for phase in phases(regime, topology):
        assert max(Counter((h.src, h.dst, h.sources) for h in phase).values()) == 1
        for h in phase:
            assert list(h.sources) == list(range(h.sources[0], h.sources[-1] + 1))
            assert list(h.targets) == sorted(set(h.targets))


@settings(max_examples=EXAMPLES, deadline=None)
@given(topologies(), st.sampled_from(REGIMES))
def test_both_ends_list_the_messages_between_them_in_the_same_order(topology, regime):
    """gloo matches messages of one pair by order: the sender sorts by targets, the receiver by sources."""
    ranks = topology.attention_ranks + topology.expert_ranks
    for number in range(len(phases(regime, topology))):
        for src in ranks:
            for dst in ranks:
                sent = [h for h in stops(regime, topology, src)[number].sent if h.dst == dst]
                assert sent == [h for h in stops(regime, topology, dst)[number].arriving if h.src == src]


def test_worked_example_of_two_nodes_by_two():
    t = Topology(attention=((0, 1),), experts=((2, 3), (4, 5)))
    inner, cross, spread = phases("gather", t)
    assert [(h.src, h.dst, h.targets) for h in inner] == [
        (0, 0, (0, 1)), (1, 0, (0, 1)), (0, 1, (2, 3)), (1, 1, (2, 3)),
    ]  # fmt: skip
    assert [(h.src, h.dst) for h in cross] == [(0, 2), (1, 4)]
    assert [(h.src, h.dst) for h in spread] == [(2, 2), (2, 3), (4, 4), (4, 5)]


def test_nodes_offsets_and_parts():
    t = Topology(attention=((0,), (1, 2)), experts=((3, 4), (5,)))
    assert attention_nodes(t) == ((0,), (1, 2))
    assert expert_nodes(t) == ((0, 1), (2,))
    assert offsets([2, 0, 1]) == [0, 2, 2, 3]
    assert parts((0, 1, 2), t) == ((0, 1), (2,))
    assert parts((1,), t) == ((1,),)
    assert parts((2,), t) == ((2,),)


def test_an_unknown_regime_is_refused_by_name():
    with pytest.raises(JanusError, match="'direct', 'gather'; got 'relay'") as caught:
        phases("relay", Topology.parse("1A1E"))
    assert caught.value.code == "comm.regime"
