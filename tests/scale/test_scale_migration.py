"""The price of a move, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from janus import Placement
from janus.scale import Cluster, ModelSpec
from janus.scale.online.migration import Migration, Pools

NIC = 50e9  # bytes/s of one H100's card


@pytest.fixture(scope="module")
def model():
    return replace(ModelSpec.from_config("olmoe-1b-7b"), layers=4, moe_layers=4, experts=4, top_k=2)


def pools(n_a, slots):
    return Pools(n_a, np.asarray(slots).shape[-2], Placement(slots, 4))


def between(model, old, new, startup_s=60.0):
    return Migration.between(model, Cluster("h100-sxm"), old, new, startup_s)


def test_the_same_pools_cost_nothing(model):
    same = pools(2, [[0, 1], [2, 3]])
    assert between(model, same, same) == Migration(0, 0, 0.0, 0.0, 0.0)
    assert same.gpus == 4


def test_one_map_stands_for_every_layer(model):
    """Expert 3 into one slot: four layers of it, by one card."""
    cost = between(model, pools(1, [[0, 1, -1], [2, 3, -1]]), pools(1, [[0, 1, 3], [2, 3, -1]]))
    assert cost.moved_bytes == 4 * model.expert_bytes
    assert cost.transfer_s == pytest.approx(4 * model.expert_bytes / NIC)
    assert cost.gpu_s == pytest.approx(3 * cost.transfer_s)  # three GPUs wait


def test_a_map_per_layer_counts_its_own_slots(model):
    old = pools(1, [[[0, 1], [2, 3]]] * 4)
    new = pools(1, [[[0, 1], [2, 3]]] * 3 + [[[1, 2], [0, 3]]])  # slots are compared by their number
    cost = between(model, old, new)
    assert cost.moved_bytes == 3 * model.expert_bytes
    assert cost.transfer_s == pytest.approx(2 * model.expert_bytes / NIC)  # the instance with more to load


def test_attention_that_is_added_is_started_and_loaded(model):
    cost = between(model, pools(1, [[0, 1], [2, 3]]), pools(3, [[0, 1], [2, 3]]))
    side = model.attention_side_bytes
    assert cost.moved_bytes == 2 * side
    assert cost.added == 2
    assert cost.transfer_s == pytest.approx(2 * side / NIC)  # one old instance sends to both
    assert cost.seconds == pytest.approx(60 + cost.transfer_s)
    assert cost.gpu_s == pytest.approx(2 * 60 + 5 * cost.transfer_s)


def test_instances_that_go_cost_nothing_by_themselves(model):
    cost = between(model, pools(3, [[0, 1], [2, 3], [0, 1]]), pools(1, [[0, 1], [2, 3]]))
    assert (cost.moved_bytes, cost.added, cost.seconds) == (0, 0, 0.0)


def test_the_first_pools_come_from_storage(model):
    cost = between(model, None, pools(1, [[0, 1, -1], [2, 3, 0]]))
    assert cost.moved_bytes == 5 * 4 * model.expert_bytes + model.attention_side_bytes
    assert cost.added == 3
    most = max(3 * 4 * model.expert_bytes, model.attention_side_bytes)
    assert cost.transfer_s == pytest.approx(most / NIC)


def test_an_expert_instance_that_is_added_receives_all_its_slots(model):
    cost = between(model, pools(1, [[0, 1], [2, 3]]), pools(1, [[0, 1], [2, 3], [0, 2]]))
    assert cost.added == 1
    assert cost.moved_bytes == 2 * 4 * model.expert_bytes
    assert cost.transfer_s == pytest.approx(8 * model.expert_bytes / NIC)
