"""Layer 1: the cost model against a plain loop over messages, by hand, on both sides of the crossover; torch-free."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout import loads

from janus.comm.cost import CostModel
from janus.comm.explain import explain
from janus.comm.layout import REGIMES, parts, phases, same_box
from janus.errors import JanusError
from janus.types import Topology

SLOW = CostModel({"in_node": 1e-6, "between_nodes": 2e-5}, {"in_node": 1e-10, "between_nodes": 2e-8})


def plain(model, regime, topology, counts, row_bytes):
    """The same rule, message by message, in whole femtoseconds."""
    total = 0
    for phase in phases(regime, topology):
        for back in (False, True):
            ports = Counter()
            for hop in phase:
                size = hop.rows(counts) * row_bytes * (len(parts(hop.targets, topology)) if back else 1)
                if size and hop.src != hop.dst:
                    link = "in_node" if same_box(topology, hop.src, hop.dst) else "between_nodes"
                    cost = round(model.alpha_s[link] * 1e15) + size * round(model.beta_s_per_byte[link] * 1e15)
                    ports["out", hop.src, link] += cost
                    ports["in", hop.dst, link] += cost
            total += max(ports.values(), default=0)
    return total / 1e15


@settings(max_examples=100, deadline=None)
@given(loads(), st.sampled_from(REGIMES), st.integers(1, 20000))
def test_prediction_equals_the_plain_loop_exactly(load, regime, row_bytes):
    topology, counts = load
    predicted = SLOW.predict(regime, topology=topology, counts=counts, row_bytes=row_bytes)
    assert predicted == plain(SLOW, regime, topology, counts, row_bytes)


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
    assert model.choose(**args) == "gather"


def test_auto_goes_both_ways():
    """With few rows the two extra in-node phases cost more than they save, with many the fewer bytes win."""
    topology = Topology(((0, 1), (2, 3)), ((4, 5), (6, 7)))
    model = CostModel({"in_node": 1e-4, "between_nodes": 3e-5}, {"in_node": 1e-10, "between_nodes": 1e-9})
    chosen = {b: model.choose(topology=topology, counts=(b,) * 4, row_bytes=8192) for b in (0, 1, 32, 512)}
    assert chosen == {0: "direct", 1: "direct", 32: "gather", 512: "gather"}


def test_shared_boxes_count_as_in_node():
    near = Topology(((0,),), ((1,),), ((0, 1),))
    far = Topology(((0,),), ((1,),))
    args = {"counts": (4,), "row_bytes": 1000}
    assert SLOW.predict("direct", topology=near, **args) < SLOW.predict("direct", topology=far, **args)


def test_prediction_is_cheap_for_64_by_64():
    topology = Topology.parse("64A64E")
    counts = list(range(64))
    model = CostModel()
    model.choose(topology=topology, counts=counts, row_bytes=4096)  # the first call lists the hops, once per topology
    best = {}
    for regime in REGIMES:
        for _ in range(30):
            started = time.perf_counter()
            model.predict(regime, topology=topology, counts=counts, row_bytes=4096)
            best[regime] = min(best.get(regime, 1.0), time.perf_counter() - started)
    assert max(best.values()) < 500e-6, best  # 100 us on an idle machine; the fastest of 30 on a busy one


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
        ({"regime": "relay"}, "comm.regime"),
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
        "import janus.comm, janus.comm.cost, janus.comm.explain\n"
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
