"""The reusable form: the same ids as `balance`, without allocation. Layer 1 (integers)."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import random_ids, random_slots

from janus import JanusError
from janus.sched import Balancer, balance, place
from janus.types import Placement

METHODS = ("exact", "greedy", "tokens", "random", "round_robin")


def layered(seed, L=3, E=24, G=4, C=8):
    rng = np.random.default_rng(seed)
    return rng, Placement(np.stack([random_slots(rng, E, G, C) for _ in range(L)]), E)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(METHODS), st.sampled_from(["numba", "reference"]))
def test_a_sequence_of_batches_equals_single_calls(seed, method, backend):
    rng, placement = layered(seed)
    balancer = Balancer(placement, method=method, backend=backend, max_tokens=16)
    for layer in rng.integers(0, 3, size=6).tolist():
        dtype = rng.choice(["i4", "i8", "u1", "i2"])
        ids = random_ids(rng, 24, int(rng.integers(0, 17)), int(rng.integers(1, 5)))
        ids = np.abs(ids).astype(dtype)
        got, want = balancer(ids, layer), balance(ids, placement, layer=layer, method=method, backend=backend)
        assert got.dtype == ids.dtype
        assert got.tobytes() == want.physical_ids.tobytes()
        assert (balancer.load == want.load).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_numba_path_allocates_no_array(method):
    rng, placement = layered(1)
    balancer = Balancer(placement, method=method, backend="numba", max_tokens=4096)
    ids = random_ids(rng, 24, 4096, 4)
    balancer(ids, 0)
    tracemalloc.start()
    for layer in range(3):
        balancer(ids, layer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4096  # bytes: a few views; one output array would be 131,072


def test_the_view_is_overwritten_by_the_next_call():
    placement = Placement([[0, 1], [0, 1]], num_experts=2)
    balancer = Balancer(placement, max_tokens=4)
    first = balancer(np.array([[0], [1]]), 0)
    assert first.tolist() == [[0], [3]]
    second = balancer(np.array([[1], [0]]), 0)
    assert np.shares_memory(first, second)
    assert first.tolist() == [[3], [0]]


def test_torch_tensors_come_back_as_tensors():
    torch = pytest.importorskip("torch")
    balancer = Balancer(Placement([[0, 1], [0, 1]], num_experts=2), max_tokens=4, device=torch.device("cpu"))
    for dtype in (torch.int64, torch.int32, torch.uint8):
        got = balancer(torch.tensor([[0], [1]], dtype=dtype), 0)
        assert isinstance(got, torch.Tensor)
        assert (got.dtype, got.tolist()) == (dtype, [[0], [3]])
    with pytest.raises(JanusError, match="'meta'") as caught:
        balancer(torch.empty(2, 1, dtype=torch.int64, device="meta"), 0)
    assert caught.value.code == "sched.device"


def test_a_bad_batch_leaves_the_balancer_usable():
    balancer = Balancer(Placement([[0, 1], [0, 1]], num_experts=2), max_tokens=4)
    with pytest.raises(JanusError, match="token 1, choice 0 holds 2"):
        balancer(np.array([[0], [2]]), 0)
    assert balancer(np.array([[0], [1]]), 0).tolist() == [[0], [3]]


def test_what_it_cannot_do_is_refused():
    placement = Placement([[0, 1]], num_experts=2)
    with pytest.raises(JanusError, match="max_tokens=2 tokens, got 3"):
        Balancer(placement, max_tokens=2)(np.zeros((3, 1), dtype=int), 0)
    for bad in (-1, 2.0, True):
        with pytest.raises(JanusError, match="max_tokens must be an integer"):
            Balancer(placement, max_tokens=bad)
    with pytest.raises(JanusError, match="got device 'cuda'"):
        Balancer(placement, max_tokens=2, device="cuda:0", backend="numba")
    with pytest.raises(JanusError, match="one per layer, got num_layers=3"):
        Balancer(Placement([[[0, 1]]], num_experts=2), max_tokens=2, num_layers=3)
    with pytest.raises(JanusError, match="num_layers"):
        Balancer(placement, max_tokens=2, num_layers=0)
    with pytest.raises(JanusError, match="leave check_ids out"):
        Balancer(placement, max_tokens=2, check_ids=False)


def test_backend_says_what_auto_chose():
    placement = Placement([[0, 1]], num_experts=2)
    assert Balancer(placement, max_tokens=2).backend == "numba"
    assert Balancer(placement, max_tokens=2, backend="reference").backend == "reference"


@pytest.mark.parametrize("call", [lambda p: balance(np.array([[0]]), p), lambda p: Balancer(p, max_tokens=1)])
def test_what_is_no_placement_is_refused(call):
    with pytest.raises(JanusError, match=r"sched\.placement.*Placement") as caught:
        call([[0, 1], [1, 0]])
    assert "place(" in caught.value.message


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("method", METHODS)
def test_statistics_are_sums_over_the_batches_of_a_layer(method, backend):
    rng, placement = layered(2)
    balancer = Balancer(placement, method=method, backend=backend, max_tokens=16, record_load=True)
    want, load = np.zeros((3, 8), dtype=np.int64), np.zeros((3, 24), dtype=np.int64)
    for layer in (0, 2, 2, 2):
        ids = random_ids(rng, 24, int(rng.integers(0, 17)), 3)
        balancer(ids, layer)
        a = balance(ids, placement, layer=layer, method=method, backend=backend)
        tokens = np.bincount(ids[ids >= 0], minlength=24)
        spent = a.tokens_per_slot.reshape(4, -1).sum(axis=1)
        sums = [1, tokens.sum(), (tokens > 0).sum(), a.load.sum(), a.a_max, a.lower_bound, spent.max(), 0]
        want[layer] += np.array(sums)
        load[layer] += tokens
    assert (balancer.stats.sums == want).all()
    assert (balancer.expert_load == load).all()


def test_statistics_are_means_and_differences_for_people():
    balancer = Balancer(Placement([[0, 1], [0, 1]], num_experts=2), max_tokens=4)
    balancer(np.array([[0], [0], [1]]), 0)  # expert 0 on instance 0, expert 1 on instance 1
    first = balancer.stats
    balancer(np.array([[0], [0], [-1]]), 0)
    assert first.batches.tolist() == [1]  # a reading, not a view
    assert balancer.stats.experts.tolist() == [1.5]
    assert balancer.stats.tokens_max.tolist() == [2.0]
    assert balancer.stats.since(first).tokens_mean.tolist() == [1.0]
    overall = balancer.stats.overall()
    assert overall == pytest.approx(
        {"batches": 2, "a_max": 1, "lower_bound": 1, "experts": 1.5, "tokens_max": 2, "tokens_mean": 1.25, "bad_ids": 0}
    )
    balancer.reset_stats()
    assert not balancer.stats.sums.any()
    assert np.isnan(balancer.stats.a_max).all()


def test_expert_loads_are_recorded_when_asked_for_and_can_be_placed():
    placement = Placement([[0, 1], [0, 1]], num_experts=2)
    balancer = Balancer(placement, max_tokens=4, record_load=True)
    balancer(np.array([[0], [0], [1]]), 0)
    assert balancer.expert_load.tolist() == [[2, 1]]
    assert place(balancer.expert_load, 2, 2, top_k=1).num_layers == 1
    with pytest.raises(JanusError, match="record_load=True"):
        _ = Balancer(placement, max_tokens=4).expert_load


def test_making_a_balancer_leaves_no_statistics():
    assert not Balancer(Placement([[0, 1]], num_experts=2), max_tokens=2).stats.sums.any()
