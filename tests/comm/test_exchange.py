"""Layer 2, gloo processes: results against the plain reference, bit for bit; contract; refusals; life and leaving."""

from __future__ import annotations

import ast
import re

import pytest

from janus.comm.layout import REGIMES
from janus.types import Topology

UNEVEN = {"attention": [[0, 1], [2]], "experts": [[3, 4, 5], [6]]}
SHARED = {"attention": [[4, 1]], "experts": [[0, 3], [2]], "hosts": [[0, 1]]}
MANY_NODES = {"attention": [[0, 1]], "experts": [[2], [3], [4]]}
SINGLE = {"attention": [[1]], "experts": [[0]]}
LOADS = {  # counts of each step; 0 on ranks whose node relays, nobody at all, one token only, many
    "uneven": (UNEVEN, [[3, 0, 2], [0, 0, 0], [0, 0, 4], [40, 17, 1]]),
    "shared": (SHARED, [[1, 4], [0, 5], [33, 40]]),
    "many": (MANY_NODES, [[2, 0], [0, 3], [25, 40]]),
    "single": (SINGLE, [[1], [0], [40]]),
}


@pytest.mark.parametrize("name", LOADS)
def test_both_gates_all_regimes_all_dtypes_match_the_reference(nursery, name):
    topology, plans = LOADS[name]
    values = nursery.values("exact", Topology(**topology).world_size, topology=topology, plans=plans)
    assert all(v["chosen"] == values[0]["chosen"] for v in values), "auto chooses alike on all ranks"
    assert set(REGIMES) == set(values[0]["chosen"])
    _check_traffic(topology, [v["sent"] for v in values])


def _check_traffic(topology, sent):
    """What the ranks counted together equals the pure plan: two layers, payload alone (counts came with begin)."""
    from janus.comm.comparison import traffic
    from janus.comm.layout import Route

    checked = 0
    for key in sent[0]:
        gate, regime, depth, dtype, counts = re.fullmatch(r"(\w+) (\w+) (\d) torch\.(\w+) (.*)", key).groups()
        if gate != "experts":
            continue
        size = 4 if dtype == "float32" else 2
        plan = traffic(Route(regime, int(depth)), Topology(**topology), ast.literal_eval(counts), 5 * size)
        for link, expected in plan.items():
            counted = [sum(rank[key][link][i] for rank in sent) for i in (0, 1)]
            assert counted == [2 * expected.messages, 2 * expected.bytes], (key, link)
            checked += 1
    assert checked >= 7 * 2


FIELDS = {
    "hidden_size": [{"hidden_size": 5}, {"hidden_size": 5}, {"hidden_size": 6}],
    "dtype": [{}, {"dtype": "bfloat16"}, {}],
    "top_k": [{"top_k": 3}, {"top_k": 4}, {"top_k": 3}],
    "gate": [{}, {}, {"gate": "experts"}],
    "regime": [{"regime": "gather"}, {}, {}],
    "max_tokens": [{"max_tokens": 8}, {}, {}],
    "model": [{"contract": {"model": "a"}}, {"contract": {"model": "a"}}, {"contract": {"model": "b"}}],
    "version": [{}, {}, {"version": "0.0.9"}],
    "topology": [{}, {"topology": {"attention": [[1]], "experts": [[0], [2]]}}, {}],
    # these two name different sets of ranks: rank 2 expects nobody but rank 1
    "topology of others": [{}, {}, {"topology": {"attention": [[1]], "experts": [[2]]}}],
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_told_differently_is_named_on_every_rank(nursery, field):
    values = nursery.values("contract", 3, per_rank=FIELDS[field])
    assert [code for code, _ in values] == ["comm.contract"] * 3, values
    assert len({message for _, message in values}) == 1
    assert f"the same {field.split()[0]}" in values[0][1]
    assert "rank 0 has" in values[0][1]


COMMON = {
    "begin after close": "comm.closed",
    "share after close": "comm.closed",
    "share no json": "comm.share",
    "share outside": "comm.share",
}
ATTENTION = {
    **COMMON,
    "begin negative": "comm.count",
    "begin too many": "comm.count",
    "begin nothing": "comm.count",
    "receive": "comm.role",
    "gather early": "comm.order",
    "too many rows": "comm.count",
    "wrong count": "comm.count",
    "wrong layer": "comm.layer",
    "negative layer": "comm.layer",
    "wrong width": "comm.x",
    "wrong dtype": "comm.x",
    "wrong device": "comm.x",
    "not a tensor": "comm.x",
    "dispatch twice": "comm.order",
    "begin in a layer": "comm.order",
    "foreign handle": "comm.order",
    "combine twice": "comm.order",
    "dispatch in an empty step": "comm.order",
}
ON_EXPERTS = {
    **COMMON,
    "begin with a count": "comm.role",
    "dispatch": "comm.role",
    "gather_topk": "comm.role",
    "receive twice": "comm.order",
    "wrong rows": "comm.y_partial",
    "wrong type": "comm.y_partial",
    "reply twice": "comm.order",
    "receive in an empty step": "comm.order",
    "receive when closed": "comm.closed",
}
ONLY = {
    "attention": {
        "no ids": "comm.gate",
        "id too large": "comm.physical_ids",
        "id below -1": "comm.physical_ids",
        "float ids": "comm.physical_ids",
        "weights dtype": "comm.weights",
        "weights shape": "comm.weights",
        "dispatch in an empty step": "comm.gate",  # the missing ids are refused first
    },
    "experts": {"ids given": "comm.gate"},
}


@pytest.mark.parametrize("gate", ["experts", "attention"])
def test_bad_calls_are_refused_before_a_byte_is_sent(nursery, gate):
    attention, expert = nursery.values("refusals", 2, gate=gate)
    assert attention == {**ATTENTION, **ONLY[gate]}
    assert expert == ON_EXPERTS


def test_share_gather_topk_idle_ranks_and_nothing_left_open(nursery):
    values = nursery.values("small_services", 5)
    assert values[4]["idle"] == ["comm.role", "comm.role", {}]
    row = 4 * 3  # int32 x K on the wire
    assert values[0]["traffic"] == {"in_node": [1, 2 * row], "between_nodes": [1, 2 * row]}
    assert values[1]["traffic"] == {"in_node": [0, 0], "between_nodes": [0, 0]}
    assert values[2]["traffic"] == {"in_node": [0, 0], "between_nodes": [2, 2 * 3 * row]}
    for rank in range(4):
        assert [values[rank][f"left {turn}"] for turn in range(3)] == [[0, 0]] * 3, "no socket, no thread"


def test_one_attention_rank_closes_while_the_other_goes_on(nursery):
    (left, _), (went_on, _), (expert, seconds) = nursery.values("leaving", 3, how="one")
    assert (left, went_on, expert) == ("left", "comm.closed", "closed")
    assert seconds < 3


def test_an_expert_that_never_begins_learns_that_the_attention_side_closed(nursery):
    values = nursery.values("leaving", 3, how="unbegun")
    assert [said for said, _ in values] == ["closed", "closed", "comm.closed"]
    assert max(seconds for _, seconds in values) < 3


def test_ranks_at_different_points_say_so_on_every_rank(nursery):
    assert [said for said, _ in nursery.values("leaving", 3, how="mixed")] == ["comm.order"] * 3


def test_a_program_that_ends_without_close_is_lost_and_not_closed(nursery):
    assert nursery.run("vanishing", 2)[1].value == "PeerLost 0"


def test_a_rank_that_never_comes_up_is_named_in_time(nursery):
    said, seconds = nursery.run("late", 2)[0].value
    assert said == "PeerLost 1"
    assert seconds < 1 + 2


def test_a_world_too_small_for_the_topology(nursery):
    assert nursery.values("world", 2) == ["topology.world"] * 2
