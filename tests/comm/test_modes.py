"""Layer 2, gloo processes: the ways to call an exchange; every result bit for bit that of the plain reference."""

from __future__ import annotations

import pytest

from janus.comm import CostModel
from janus.types import Topology

UNEVEN = {"attention": [[0, 1], [2]], "experts": [[3, 4, 5], [6]]}
WIDE = {"attention": [[0]], "experts": [[1], [2, 3]]}


@pytest.mark.parametrize("gate", ["experts", "attention"])
def test_asynchronous_halves(nursery, gate):
    for name, topology, counts in (("uneven", UNEVEN, [5, 0, 9]), ("wide", WIDE, [13])):
        values = nursery.values(
            "asynchronous", Topology(**topology).world_size, topology=topology, counts=counts, gate=gate
        )
        for rank, said in enumerate(values):
            attention = rank < len(counts)
            assert said.get("begin" if attention else "receive") == "comm.order", (name, rank)
            assert said["threads"] == []


@pytest.mark.parametrize(("capacity", "begun"), [("bucket", True), (8, True), (8, False)])
@pytest.mark.parametrize("gate", ["experts", "attention"])
def test_fixed_capacities(nursery, capacity, begun, gate):
    plans = [[3, 0, 5], [8, 8, 8], [1, 1, 0]]
    values = nursery.values("fixed", 7, topology=UNEVEN, plans=plans, capacity=capacity, begun=begun, gate=gate)
    expected = [3 * 8, 3 * 8, 3 * (1 if capacity == "bucket" else 8)] * 5
    for sizes in values[3:]:
        assert sizes == (expected if gate == "experts" else [])


def test_buffers_of_the_caller_and_memory_that_is_used_again(nursery):
    for topology, counts in ((UNEVEN, [5, 0, 9]), (WIDE, [7])):
        values = nursery.values("own_buffers", Topology(**topology).world_size, topology=topology, counts=counts)
        for said in values[len(counts) :]:
            assert set(map(tuple, said.values())) == {("comm.closed",)}


def test_buffers_that_do_not_fit_are_refused(nursery):
    attention, expert = nursery.values("refused_buffers", 2)
    assert attention == {"rows": "comm.out", "list": "comm.out", "grad": "comm.out", "no K": "comm.top_k"}
    assert expert == {"rows": "comm.out", "dtype": "comm.out", "strided": "comm.out"}


@pytest.mark.parametrize("gate", ["experts", "attention"])
def test_the_seam_for_devices_gives_the_same_results(nursery, gate):
    for topology, counts in ((UNEVEN, [5, 0, 9]), (WIDE, [7])):
        world = Topology(**topology).world_size
        left = nursery.values("batches_in_stream_order", world, topology=topology, counts=counts, gate=gate)
        assert left == [[]] * world, "no thread stays"


def test_calibration_gives_every_rank_the_same_model(nursery):
    values = nursery.values("calibrated", 7, topology=UNEVEN, most=64)
    assert all(value["model"] == values[0]["model"] for value in values)
    model = CostModel(**values[0]["model"])
    predicted = model.predict("direct", topology=Topology(**UNEVEN), counts=(64,) * 3, row_bytes=20)
    assert 1e-5 < predicted < 1, "seconds of small rows over loopback"
    assert all(value["refused"] == "comm.calibrate" for value in values)
    assert "<- auto" in values[0]["table"]
    assert max(value["seconds"] for value in values) < 10  # of 1 s asked for, on a busy machine


def test_a_peer_lost_while_calls_are_under_way(nursery):
    outcome = nursery.run("lost_meanwhile", 2, deadline_s=25)[0]
    assert outcome.exit_code == 0, outcome.error
    found = outcome.value
    assert found["told"][0] == 1
    assert found["told"][1] in ("dispatch", "combine")
    assert found["seconds"] < 3 + 1  # at once in fact; the deadline is 3 s
    assert found["closing"] < 3
    assert found["threads"] == []
