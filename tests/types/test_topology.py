"""Topology: roles, nodes and hosts agree with each other; nonsense is refused by code."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from type_strategies import NONSENSE, Hostile, only_janus_error, refuses, topologies

from janus.types import Topology


@given(topologies())
@settings(max_examples=60, deadline=None)
def test_every_map_of_a_topology_agrees_with_the_others(topology):
    assert len(topology.attention_ranks) == topology.n_attention
    assert topology.world_size == max(topology.attention_ranks + topology.expert_ranks) + 1
    for role, pool in (("attention", topology.attention_ranks), ("expert", topology.expert_ranks)):
        for position, rank in enumerate(pool):
            assert topology.role(rank) == role
            assert topology.instance(rank) == position
            assert rank in topology.nodes[topology.node(rank)]
            group = next((g for g in topology.hosts if topology.node(rank) in g), (topology.node(rank),))
            assert topology.host(rank) == min(group)
    idle = set(range(topology.world_size + 2)) - set(topology.attention_ranks + topology.expert_ranks)
    assert all(topology.role(rank) == "idle" for rank in idle)


@given(topologies())
@settings(max_examples=30, deadline=None)
def test_a_topology_survives_a_file(topology):
    with tempfile.TemporaryDirectory() as folder:
        topology.save(path := Path(folder) / "t.json")
        assert Topology.load(path) == topology
    assert Topology.from_dict(topology.to_dict()) == Topology(**topology.to_dict()) == topology


@given(NONSENSE, NONSENSE, NONSENSE)
@settings(max_examples=150, deadline=None)
def test_nonsense_is_refused_as_a_topology_error(first, second, third):
    only_janus_error("topology.", Topology, first, ((5,),))
    only_janus_error("topology.", Topology, ((0,),), ((5,), second), hosts=third)
    only_janus_error("topology.", Topology.parse, first, gpus_per_node=second)
    only_janus_error("topology.", Topology.parse, "2A3E", gpus_per_node=third)
    only_janus_error("topology.", Topology.from_dict, {"attention": first, "experts": second, "hosts": third})
    for method in ("role", "node", "host", "instance"):
        only_janus_error("topology.", getattr(Topology.parse("2A3E"), method), first)


@pytest.mark.parametrize(
    ("code", "words", "args"),
    [
        ("topology.empty", "attention must hold at least one node", ((), ((0,),))),
        ("topology.empty", "a node without ranks", (((0,), ()), ((1,),))),
        ("topology.overlap", "[2]", (((0, 2),), ((1, 2),))),
        ("topology.rank", "got -1", (((0, -1),), ((1,),))),
        ("topology.rank", "got 1.0", (((0, 1.0),), ((2,),))),
        ("topology.rank", "got True", (((True,),), ((2,),))),
        ("topology.rank", "got '01'", ("01", ((2,),))),
        ("topology.rank", "one per node, got", (Hostile(), ((2,),))),
        ("topology.rank", "got <", (((Hostile(),),), ((2,),))),
        ("topology.hosts", "nodes 0..1 at most once", (((0,),), ((1,),), ((0, 2),))),
        ("topology.hosts", "at most once", (((0,),), ((1,),), ((0,), (0, 1)))),
    ],
)
def test_a_bad_topology_names_rule_and_value(code, words, args):
    refuses(code, words, Topology, *args)


@pytest.mark.parametrize(
    "text", ["", "2A", "0A1E", "1A0E", "A1E1", "-1A2E", "1A2E3", "9" * 5000 + "A1E", "٢A٣E", None, 5]
)
def test_parse_refuses_what_is_no_topology(text):
    refuses("topology.parse", "reads like '2A4E'", Topology.parse, text)


def test_parse_fills_the_nodes_of_one_pool_before_the_next():
    topology = Topology.parse(" 3a5e ", gpus_per_node=2)
    assert topology.attention == ((0, 1), (2,))
    assert topology.experts == ((3, 4), (5, 6), (7,))
    assert str(topology) == "3A5E"


def test_both_pools_may_share_a_box():
    topology = Topology(((0,),), ((1,), (2,)), hosts=((0, 1),))
    assert [topology.host(rank) for rank in range(3)] == [0, 0, 2]


def test_strangers_are_refused():
    topology = Topology.parse("1A1E")
    refuses("topology.rank", "rank 7 is in neither pool", topology.node, 7)
    refuses("topology.rank", "rank 7 is in neither pool", topology.instance, 7)
    refuses("topology.rank", ">= 0, got -1", topology.role, -1)


def test_unknown_fields_are_refused_by_name():
    refuses("topology.file", "got 'expert'", Topology.from_dict, {"attention": [[0]], "experts": [[1]], "expert": []})


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "janus.topology/1"}', '{"attention": [[0]]}', "[" * 100_000]
)
def test_a_foreign_file_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    refuses("topology.file", "topology" if text in ("[]",) else "", Topology.load, tmp_path / "t.json")


def test_a_bad_value_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"format": "janus.topology/1", "attention": [[0]], "experts": [[0]]}')
    refuses("topology.file", f"{path}: a rank plays one role once", Topology.load, path)


def test_a_large_topology_is_quick():
    assert Topology.parse("9999A9999E").world_size == 19998
