"""Layer 1: the cost model against a plain loop over messages, by hand, on both sides of the crossover; torch-free."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout import loads

from janus.comm.comparison import explain
from janus.comm.cost import CostModel
from janus.comm.layout import REGIMES, ROUTES, Route, candidates, parts, phases, same_box
from janus.errors import JanusError
from janus.types import Topology

SLOW = CostModel({"in_node": 1e-6, "between_nodes": 2e-5}, {"in_node": 1e-10, "between_nodes": 2e-8})


def plain(model, route, topology, counts, row_bytes):
    """The same rule, message by message, in whole femtoseconds."""
    total = 0
    levels = (
        ("rank", model.alpha_s, model.beta_s_per_byte),
        ("node", model.node_alpha_s, model.node_beta_s_per_byte),
        ("world", model.world_alpha_s, model.world_beta_s_per_byte),
    )
    for phase in phases(route, topology):
        for back in (False, True):
            ports, any_message = Counter(), False
            for hop in phase:
                size = hop.rows(counts) * row_bytes * (len(parts(hop.targets, topology)) if back else 1)
                if not size:
                    continue
                any_message = True
                near = same_box(topology, hop.src, hop.dst)
                link = "in_node" if near else "between_nodes"
                boxes = [("out", topology.host(hop.src)), ("in", topology.host(hop.dst))]
                passed = {
                    "rank": [("out", hop.src), ("in", hop.dst)],
                    "node": [("inside", topology.host(hop.src))] if near else boxes,
                    "world": ["all"],
                }
                for level, alpha, beta in levels:
                    for port in passed[level]:
                        ports[level, port] += round(alpha[link] * 1e15) + size * round(beta[link] * 1e15)
            total += max(ports.values(), default=0) + any_message * round(model.round_s * 1e15)
    return total / 1e15


SHARED = CostModel(
    {"in_node": 1e-6, "between_nodes": 2e-5}, {"in_node": 1e-10, "between_nodes": 2e-8},
    node_alpha_s={"in_node": 2e-6, "between_nodes": 1e-6}, node_beta_s_per_byte={"in_node": 1e-10, "between_nodes": 4e-8},
    world_alpha_s={"in_node": 1e-6, "between_nodes": 4e-6}, world_beta_s_per_byte={"in_node": 0, "between_nodes": 3e-9},
    round_s=5e-5,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(loads(), st.sampled_from(ROUTES), st.integers(1, 20000), st.sampled_from([SLOW, SHARED]))
def test_prediction_equals_the_plain_loop_exactly(load, route, row_bytes, model):
    topology, counts = load
    predicted = sum(model.phase_seconds(route, topology, counts, row_bytes))
    assert predicted == pytest.approx(plain(model, route, topology, counts, row_bytes), rel=1e-12, abs=1e-18)


@settings(max_examples=50, deadline=None)
@given(loads(), st.sampled_from([*REGIMES, "auto"]))
def test_a_regime_is_predicted_and_taken_at_its_best_depth(load, regime):
    topology, counts = load
    args = {"topology": topology, "counts": counts, "row_bytes": 1000}
    each = {r: plain(SHARED, r, topology, counts, 1000) for r in candidates(regime, topology)}
    assert SHARED.predict(regime, **args) == pytest.approx(min(each.values()), rel=1e-12)
    rough = [n if n < 8 else -(-n // 2) * 2 for n in counts]
    if rough == list(counts):  # counts of more than three bits are rounded before the choice
        assert each[SHARED.route(regime, **args)] == pytest.approx(min(each.values()), rel=1e-12)


def test_with_the_attention_side_gate_the_expected_rows_count():
    """One attention rank, two expert instances apart, K = 1: half of the rows go to each; 8 bytes of choice per row.

    10 rows of 100 bytes: 2 x 5 x 108 bytes out, 2 x 5 x 100 home, at 1 ns per byte: 1080 + 1000 ns.
    """
    model = CostModel({"in_node": 0, "between_nodes": 0}, {"in_node": 0, "between_nodes": 1e-9})
    args = {"topology": Topology(((0,),), ((1,), (2,))), "counts": (10,), "row_bytes": 100, "gate": "attention"}
    assert model.predict("direct", top_k=1, **args) == pytest.approx(2080e-9, rel=1e-12)
    assert model.predict("direct", **args) == pytest.approx(4000e-9, rel=1e-12), "without K: all of them"
    assert model.predict("direct", top_k=30, **args) == pytest.approx(2 * 10 * (340 + 100) * 1e-9, rel=1e-3)


@pytest.mark.parametrize("counts", [(1.5, 1), "ab", (None, 1), 5, [True, 1], (1,), (-1, 1), {1: 2, 3: 4}])
def test_counts_that_are_none_are_refused(counts):
    topology = Topology(((0, 1),), ((2,),))
    for call in (
        lambda: explain(topology, counts, 10),
        lambda: CostModel().predict("direct", topology=topology, counts=counts, row_bytes=10),
    ):
        with pytest.raises(JanusError) as caught:
            call()
        assert caught.value.code == "comm.count"


def test_factors_stretch_slow_links_too():
    """10 MB at 1 us per byte there and back, twice as long as its ports say: 40 s."""
    slow = CostModel(*({"in_node": 0, "between_nodes": s} for s in (0, 1e-6)), factors={"direct": [[1, 2.0]]})
    args = {"topology": Topology(((0,),), ((1,),)), "counts": (1,), "row_bytes": 10_000_000}
    assert slow.predict("direct", **args) == pytest.approx(40, rel=1e-9)


def test_measured_factors_stretch_their_route_alone():
    topology = Topology(((0, 1),), ((2, 3),))
    points = [[4, 1.0], [20, 1.5], [100, 2.0]]
    stretched = replace(SHARED, factors={"gather": points, "spread x2": [[1, 2.0]]})

    def ratio(route, b):
        one, other = (sum(m.phase_seconds(route, topology, (b, b), 100)) for m in (stretched, SHARED))
        return one / other

    for b, factor in ((1, 1.0), (2, 1.0), (6, 1.25), (10, 1.5), (30, 1.75), (50, 2.0), (400, 2.0)):
        assert ratio(Route("gather"), b) == pytest.approx(factor, rel=1e-6)
        assert ratio(Route("spread", 2), b) == pytest.approx(2, rel=1e-6)
        assert ratio(Route("spread"), b) == ratio(Route("direct"), b) == 1
    for bad in ({"ring": [[1, 1.0]]}, {"gather": [[1, -1]]}, [1], {"gather": 1.0}, {"gather": [[4, 1.0], [2, 1.0]]}):
        with pytest.raises(JanusError) as caught:
            CostModel(factors=bad)
        assert caught.value.code == "comm.cost"


def test_a_model_is_saved_and_loaded(tmp_path):
    SHARED.save(tmp_path / "cost.json")
    assert CostModel.load(tmp_path / "cost.json") == SHARED
    (tmp_path / "other.json").write_text('{"format": "janus.comm.cost/1", "gamma": 3}')
    for name in ("other.json", "absent.json"):
        with pytest.raises(JanusError) as caught:
            CostModel.load(tmp_path / name)
        assert caught.value.code == "comm.cost"


def test_by_hand():
    """2A2E, one node each, 10 rows per rank of 100 bytes, 1 us and 1 ns/byte between, 0.1 us and 0.1 ns/byte within.

    direct: a port carries 2 messages of 1000 bytes each way: 2 x (2 x 1 us + 2 us) = 8 us.
    gather: in-node one message of 1000 bytes (0.2 us), across one of 2000 bytes (3 us), in-node one of 2000 bytes
    (0.3 us); the sums go home over the same hops with the same sizes: 2 x 3.5 us = 7 us.
    """
    model = CostModel({"in_node": 1e-7, "between_nodes": 1e-6}, {"in_node": 1e-10, "between_nodes": 1e-9})
    topology = Topology(((0, 1),), ((2, 3),))
    args = {"topology": topology, "counts": (10, 10), "row_bytes": 100}
    assert model.predict("direct", **args) == pytest.approx(8e-6, rel=1e-12)
    assert model.predict("gather", **args) == pytest.approx(7e-6, rel=1e-12)
    # spread: across one message of 1000 bytes per rank (2 us), inside one of 1000 bytes (0.2 us)
    assert model.predict("spread", **args) == pytest.approx(4.4e-6, rel=1e-12)
    assert model.choose(**args) == "spread"


def test_auto_goes_both_ways():
    """With few rows the two extra in-node phases cost more than they save, with many the fewer bytes win."""
    topology = Topology(((0, 1), (2, 3)), ((4, 5), (6, 7)))
    model = CostModel({"in_node": 1e-4, "between_nodes": 3e-5}, {"in_node": 1e-10, "between_nodes": 1e-9})
    chosen = {b: model.choose(topology=topology, counts=(b,) * 4, row_bytes=8192) for b in (0, 1, 32, 512)}
    assert chosen == {0: "direct", 1: "direct", 32: "gather", 512: "spread"}


def test_shared_boxes_count_as_in_node():
    near = Topology(((0,),), ((1,),), ((0, 1),))
    far = Topology(((0,),), ((1,),))
    args = {"counts": (4,), "row_bytes": 1000}
    assert SLOW.predict("direct", topology=near, **args) < SLOW.predict("direct", topology=far, **args)


def test_relay_is_taken_where_expert_nodes_outnumber_attention_nodes():
    """1 attention node, 4 expert nodes: gather's port carries 4 payloads, relay's 1 and 3/4, in pieces at once."""
    topology = Topology(((0,),), ((1,), (2,), (3,), (4,)))
    model = CostModel({"in_node": 1e-5, "between_nodes": 1e-5}, {"in_node": 1e-10, "between_nodes": 1e-8})
    args = {"topology": topology, "counts": (512,), "row_bytes": 8192}
    assert model.choose(**args) == "relay"
    assert model.predict("gather", **args) / model.predict("relay", **args) > 2.5
    assert model.choose(**args | {"counts": (1,)}) == "direct"


def test_prediction_is_cheap_for_64_by_64():
    topology = Topology.parse("64A64E")
    counts = list(range(64))
    model = CostModel()
    model.choose(topology=topology, counts=counts, row_bytes=4096)  # the first call lists the hops, once per topology
    best = {}
    for regime in ("direct", "gather", "spread"):  # what "auto" compares there
        for _ in range(30):
            started = time.perf_counter()
            model.predict(regime, topology=topology, counts=counts, row_bytes=4096)
            best[regime] = min(best.get(regime, 1.0), time.perf_counter() - started)
    assert max(best.values()) < 1500e-6, best  # 450 us (spread, at three depths); the fastest of 30 on a busy machine


def test_explain_shows_both_regimes_and_the_choice():
    found = explain(Topology(((0, 1),), ((2, 3),)), (3, 3), 10)
    lines = {line.regime: line for line in found.lines}
    assert lines["direct"].traffic["between_nodes"].messages == 8
    assert lines["direct"].traffic["between_nodes"].bytes == 8 * 30
    assert lines["gather"].traffic["between_nodes"].bytes == 2 * 60
    assert str(found).count("<- auto") == 1
    assert found.choice in str(found)


@pytest.mark.parametrize("bad", [{}, {"in_node": 1.0}, {"in_node": 1.0, "between_nodes": -1.0}, {"in_node": "x", "between_nodes": 0}, 3])  # fmt: skip
def test_link_classes_are_checked(bad):
    with pytest.raises(JanusError, match=r"alpha_s.*in_node|finite number >= 0") as caught:
        CostModel(alpha_s=bad)
    assert caught.value.code == "comm.cost"


def test_unknown_names_and_wrong_counts_are_refused():
    topology = Topology.parse("2A1E")
    for args, code in (
        ({"regime": "ring"}, "comm.regime"),
        ({"regime": "direct", "gate": "both"}, "comm.gate"),
        ({"regime": "direct", "counts": (1,)}, "comm.count"),
    ):
        with pytest.raises(JanusError) as caught:
            CostModel().predict(**{"topology": topology, "counts": (1, 1), "row_bytes": 4, **args})
        assert caught.value.code == code


def test_import_needs_no_torch_and_the_package_no_triton_numba_pulp():
    """In a subprocess; seen to fail by importing torch in cost.py, and numba in api.py."""
    src = str(Path(__file__).parents[2] / "src")
    code = (
        "import sys\n"
        "class Ban:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in banned: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Ban())\n"
        "banned = {'torch', 'triton', 'numba', 'pulp'}\n"
        "import janus.comm, janus.comm.cost, janus.comm.comparison\n"
        "janus.comm.CostModel, janus.comm.Timeouts, janus.comm.Step\n"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": src}, check=True)
    code += "banned = {'triton', 'numba', 'pulp'}\nimport janus.comm.api\n"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": src}, check=True)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"topology": "1A1E"}, "comm.topology"),
        ({"counts": (-1,)}, "comm.count"),
        ({"row_bytes": "8"}, "comm.row_bytes"),
        ({"row_bytes": -8}, "comm.row_bytes"),
    ],
)
def test_nonsense_is_refused_and_not_predicted(wrong, code):
    given = {"topology": Topology.parse("1A1E"), "counts": (4,), "row_bytes": 8}
    with pytest.raises(JanusError) as caught:
        CostModel().predict("direct", **{**given, **wrong})
    assert caught.value.code == code
