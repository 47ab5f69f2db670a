"""The slots of a batch are those `balance` gives, whatever way they are found; ids out of range never get through."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError, Placement
from janus.experts import choosing
from janus.experts.choosing import ReplicaChooser
from janus.sched import RooflineCost, balance

IN_ORDER = Placement.contiguous(6, 1)
MOVED = Placement([[5, 0, -1], [1, 4, -1], [2, 3, -1]], 6)
REPLICATED = Placement([[0, 1, 2, 3], [3, 4, 5, 0], [2, 1, 4, 5]], 6)
IDS = torch.tensor([[0, 5], [-1, 3], [2, 2]])
METHODS = ("exact", "greedy", "tokens", "random", "round_robin")


def make(placement: Placement, method: str = "exact", **options) -> ReplicaChooser:
    return ReplicaChooser(placement, 0, method, options.pop("cost", None), options.pop("backend", "auto"), **options)


def want(ids: torch.Tensor, placement: Placement, method: str = "exact") -> torch.Tensor:
    return torch.from_numpy(balance(ids.numpy().astype(np.int64), placement, method=method).physical_ids)


@pytest.mark.parametrize("placement", [IN_ORDER, MOVED, REPLICATED], ids=["in-order", "moved", "replicated"])
@pytest.mark.parametrize("method", METHODS)
def test_the_slots_are_those_of_balance(placement, method):
    chooser = make(placement, method)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8):
        got = chooser(IDS.to(dtype))
        assert torch.equal(got.long(), want(IDS, placement, method))
        assert got.dtype in (torch.int64, torch.int32)
    assert torch.equal(chooser(IDS.abs().to(torch.uint8)).long(), want(IDS.abs(), placement, method))


@given(st.permutations(range(6)), st.lists(st.lists(st.integers(-1, 5), min_size=3, max_size=3), max_size=5))
@settings(max_examples=30)
def test_one_slot_each_is_a_look_up_on_both_kinds_of_device(order, rows):
    placement = Placement([[order[0], -1, *order[1:3]], [-1, *order[3:]]], 6)
    ids = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    chooser = make(placement)
    assert torch.equal(chooser(ids), want(ids, placement))
    assert torch.equal(chooser._look_up_on_device(ids), want(ids, placement))  # what a GPU runs
    assert chooser.bad_ids == 0


def test_experts_in_order_cost_no_look_up():
    assert make(IN_ORDER)(IDS) is IDS
    assert make(Placement([[0, 1, 2, -1], [-1, 3, 4, 5]], 6))(IDS) is not IDS


@pytest.mark.parametrize("placement", [IN_ORDER, MOVED, REPLICATED], ids=["in-order", "moved", "replicated"])
@pytest.mark.parametrize("bad", [-2, 6, 2**40, -(2**40)])
def test_ids_out_of_range_are_refused_on_a_cpu(placement, bad):
    with pytest.raises(JanusError, match=rf"0\.\.5; token 1, choice 0 holds {bad}") as error:
        make(placement)(torch.tensor([[0, 5], [bad, 3]]))
    assert error.value.code == "sched.range"


def test_on_a_gpu_ids_out_of_range_count_as_absent_unless_checked():
    ids = torch.tensor([[0, 6], [-2, 2**63 - 1], [-(2**63), -1]])
    chooser = make(MOVED)
    assert chooser._look_up_on_device(ids).tolist() == [[1, -1], [-1, -1], [-1, -1]]
    assert chooser.bad_ids == 4
    assert chooser._look_up_on_device(ids.int()[:1]).tolist() == [[1, -1]]
    assert chooser.bad_ids == 5
    checked = make(MOVED, check_ids=True)
    with pytest.raises(JanusError, match="token 0, choice 1 holds 6"):
        checked._look_up_on_device(ids)
    assert checked._look_up_on_device(IDS).tolist() == want(IDS, MOVED).tolist()


def test_the_kernel_of_the_balancer_gives_the_same_and_checks_on_a_cpu():
    chooser = make(REPLICATED, backend="triton")
    assert torch.equal(chooser(IDS), want(IDS, REPLICATED))
    assert torch.equal(chooser(IDS.t().contiguous().t()), want(IDS, REPLICATED))
    assert chooser.bad_ids == 0
    with pytest.raises(JanusError, match="holds 6"):
        chooser(torch.tensor([[6]]))


def test_batches_beyond_the_buffers_are_served_by_balance(monkeypatch):
    monkeypatch.setattr(choosing, "MOST_TOKENS", {"cpu": 2})
    chooser, calls = make(REPLICATED), []
    monkeypatch.setattr(
        choosing, "balance", lambda ids, *args, **kw: calls.append(len(ids)) or balance(ids, *args, **kw)
    )
    for tokens in (1, 2, 3):
        assert torch.equal(chooser(IDS[:tokens]), want(IDS[:tokens], REPLICATED))
    assert calls == [3]


def test_a_balancer_is_made_once_and_a_copy_makes_its_own():
    cost = RooflineCost(1.0, 0.5)
    chooser = make(REPLICATED, "cost", cost=cost)
    first = chooser(IDS)
    assert chooser(IDS).data_ptr() == first.data_ptr()  # a view that calls overwrite
    for other in (copy.deepcopy(chooser), pickle.loads(pickle.dumps(chooser))):
        assert not other._balancers
        assert torch.equal(other(IDS), first)
        assert other(IDS).data_ptr() != first.data_ptr()


def test_made_inside_inference_mode_it_works_outside():
    for placement in (IN_ORDER, MOVED, REPLICATED):
        chooser = make(placement)
        with torch.inference_mode():
            inside = chooser(IDS).tolist()
            chooser._look_up_on_device(IDS)
        assert chooser(IDS).tolist() == inside
        chooser._look_up_on_device(IDS)


def test_another_placement_of_the_layer_gets_a_chooser_with_the_same_options():
    maps = Placement([[[0, 1, 2, 3, 4, 5]], [[5, 4, 3, 2, 1, 0]]], 6)
    chooser = ReplicaChooser(maps, 1, "greedy", None, "reference", True)
    assert chooser(IDS).tolist() == [[5, 0], [-1, 2], [3, 3]]
    assert chooser.serving(maps) is chooser
    other = chooser.serving(REPLICATED)  # one map for every layer
    assert torch.equal(other(IDS), want(IDS, REPLICATED, "greedy"))
    assert (other.method, other.backend, other.check_ids) == ("greedy", "reference", True)
    assert other.assignment(IDS).backend == "reference"
