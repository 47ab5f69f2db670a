"""Layer 2, gloo processes: memory that is still being sent, and refusals, calibrations and closings that leave no trace."""

from __future__ import annotations

import pytest

PAIR = {"attention": [[0, 1]], "experts": [[2, 3]]}
WIDE = {"attention": [[0]], "experts": [[1, 2], [3]]}


@pytest.mark.parametrize(("topology", "counts", "late"), [(PAIR, [3, 5], 3), (WIDE, [7], 2)])
def test_experts_may_compute_in_place(nursery, topology, counts, late):
    nursery.values("rows_changed_in_place", 4, topology=topology, counts=counts, late=late)


def test_a_late_expert_without_rows_is_told_so(nursery):
    nursery.values("nobody_chose_a_late_expert", 3)


def test_gathered_ids_may_change_at_once(nursery):
    nursery.values("ids_changed_after_gathering", 3)


@pytest.mark.parametrize("begun", [True, False])
def test_a_refused_receive_takes_nothing(nursery, begun):
    assert nursery.values("refused_receive", 2, begun=begun)[1] == [0, 1]


def test_what_an_idle_rank_may_call(nursery):
    said = nursery.values("idle_calls", 3)[2]
    free = {"fence", "traffic", "reset", "bytes", "explained", "regime", "backend"}
    assert {name: code for name, code in said.items() if name not in free} == dict.fromkeys(
        ("begin", "calibrate", "receive", "topk", "dispatch", "share"), "comm.role"
    )
    assert {said[name] for name in free} == {"no error"}


@pytest.mark.parametrize("halves", [True, False])
def test_a_reply_arrives_though_its_sender_closes(nursery, halves):
    nursery.values("left_at_once", 2, halves=halves)


@pytest.mark.parametrize(
    ("most", "capacity", "gate", "seconds"),
    [
        (64, 8, "experts", [0.5] * 4),
        (1, "exact", "attention", [0.5] * 4),
        (512, "bucket", "experts", [0.05, 1, 1, 1]),
    ],
    ids=["fixed capacity", "one token", "unequal seconds"],
)
def test_a_calibration_leaves_the_exchange_as_it_was(nursery, most, capacity, gate, seconds):
    given = {"most": most, "capacity": capacity, "gate": gate, "seconds": seconds}
    models = nursery.values("calibrated_anyhow", 4, topology=PAIR, **given)
    assert all(model == models[0] for model in models)


@pytest.mark.parametrize("regime", ["direct", "relay"])
def test_a_calibration_of_one_regime(nursery, regime):
    models = nursery.values("calibrated_regime", 4, topology=PAIR, regime=regime)
    assert {key.split()[0] for key in models[0]["factors"]} == {regime}


def test_values_of_the_wrong_kind_are_refused(nursery):
    for said in nursery.values("refused_values", 2):
        assert said == {key: f"comm.{key}" for key in said}
