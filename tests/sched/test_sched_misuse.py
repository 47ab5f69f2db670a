"""Nonsense in, a `JanusError` out, or the right answer; and statistics that a refused batch does not touch. Layer 1."""

import threading

import numpy as np
import pytest

from janus import JanusError
from janus.sched import Balancer, BalancerStats, balance
from janus.types import Placement

THREE = Placement([[0, 1, 2], [0, 3, 4], [1, 2, 5]], num_experts=6)
LAYERS = Placement(np.stack([THREE.slots[0]] * 2), num_experts=6)
GOOD = np.array([[0, 1], [2, -1]])


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("layer", [1, np.int8(1), np.array(1)])
def test_a_layer_of_any_integer_kind_is_counted(layer, backend):
    for placement, options in ((LAYERS, {}), (THREE, {"num_layers": 2})):
        balancer = Balancer(placement, max_tokens=2, backend=backend, record_load=True, **options)
        balancer(GOOD, layer)
        assert balancer.stats.batches.tolist() == [0, 1]
        assert balancer.expert_load.tolist() == [[0] * 6, [1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("method", ["exact", "tokens"])
def test_a_refused_batch_leaves_no_trace(method, backend):
    balancer = Balancer(THREE, max_tokens=2, method=method, backend=backend, record_load=True)
    balancer(GOOD, 0)
    sums, load, last = balancer.stats.sums, balancer.expert_load, balancer.load.tolist()
    for bad in (np.array([[0, 6]]), np.zeros((3, 1), dtype=int), np.zeros(2), [[0]]):
        with pytest.raises(JanusError):
            balancer(bad, 0)
    assert (balancer.stats.sums == sums).all()
    assert (balancer.expert_load == load).all()
    assert balancer.load.tolist() == last


@pytest.mark.parametrize(
    ("ids", "code", "words"),
    [
        (np.ma.masked_array(GOOD, mask=[[1, 0], [0, 0]]), "sched.input", r"filled\(-1\)"),
        (np.broadcast_to(np.array([[0]]), (2**31, 1)), "sched.limit", "at most 2147483647 entries"),
        ([[0, 1]], "sched.input", r"np\.asarray"),
        (np.zeros(3, dtype=int), "sched.shape", r"reshape"),
        (np.array([[0, 6]]), "sched.range", "made for this model"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_with_the_remedy(ids, code, words):
    for call in (lambda: balance(ids, THREE), lambda: Balancer(THREE, max_tokens=4)(ids, 0)):
        with pytest.raises(JanusError, match=words) as caught:
            call()
        assert caught.value.code == code


def test_tensors_that_no_cpu_can_read_are_refused():
    torch = pytest.importorskip("torch")
    good = torch.from_numpy(GOOD)
    for odd in (torch.empty((2, 2), dtype=torch.bits8), good.to_sparse()):
        for call in (lambda ids: balance(ids, THREE), lambda ids: Balancer(THREE, max_tokens=4)(ids, 0)):
            with pytest.raises(JanusError, match="no host copy") as caught:
                call(odd)
            assert caught.value.code == "sched.input"
    with pytest.raises(JanusError, match="no host copy"):
        balance(good.to("meta"), THREE)


def test_output_made_under_inference_mode_serves_outside_it():
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        balancer = Balancer(THREE, max_tokens=2)
        balancer(torch.from_numpy(GOOD), 0)
    assert not balancer(torch.from_numpy(GOOD), 0).is_inference()


@pytest.mark.parametrize("value", [-1, True, 2.0, "8", None, 2**24 + 1, 2**62, 2**70, np.array([1, 2]), float("nan")])
def test_max_tokens_is_checked(value):
    with pytest.raises(JanusError, match=r"max_tokens.*must be an integer in 0\.\.16777216") as caught:
        Balancer(THREE, max_tokens=value)
    assert caught.value.code == "sched.max_tokens"


@pytest.mark.parametrize("value", [-1, True, 2.0, "8", 2**62, np.array([1, 2])])
def test_num_layers_is_checked(value):
    with pytest.raises(JanusError, match=r"num_layers must be an integer in 1\.\.65536") as caught:
        Balancer(THREE, max_tokens=2, num_layers=value)
    assert caught.value.code == "sched.option"


@pytest.mark.parametrize("name", ["record_load", "check_ids"])
@pytest.mark.parametrize("value", [1, "yes", float("nan"), np.array([1, 2])])
def test_switches_are_true_or_false(name, value):
    with pytest.raises(JanusError, match=f"{name} must be True or False") as caught:
        Balancer(THREE, max_tokens=2, **{name: value})
    assert caught.value.code == "sched.option"
    with pytest.raises(JanusError, match="leave check_ids out"):
        Balancer(THREE, max_tokens=2, check_ids=np.False_)
    assert Balancer(THREE, max_tokens=2, **{name: np.True_}).backend == "numba"


@pytest.mark.parametrize("device", ["cuda:x", "cuda:-1", "cpu:x", "cpu:", "cuda:", "gpu", "", None, 0])
def test_a_device_that_is_none_is_refused(device):
    for backend in ("auto", "numba"):
        with pytest.raises(JanusError) as caught:
            Balancer(THREE, max_tokens=2, device=device, backend=backend)
        assert caught.value.code == "sched.device"


def test_two_readings_must_fit_to_be_subtracted():
    balancer = Balancer(THREE, max_tokens=2)
    before = balancer.stats
    balancer(GOOD, 0)
    after = balancer.stats
    for earlier, words in [
        (after, "reset_stats"),
        (Balancer(THREE, max_tokens=2, num_layers=3).stats, "one Balancer"),
        (Balancer(Placement([[0]], num_experts=1), max_tokens=2).stats, "one Balancer"),
        (None, "BalancerStats"),
    ]:
        with pytest.raises(JanusError, match=words) as caught:
            before.since(earlier)
        assert caught.value.code == "sched.stats"
    with pytest.raises(JanusError, match=r"one of 'batches'.*got 'amax'") as caught:
        after.column("amax")
    assert caught.value.code == "sched.stats"


@pytest.mark.parametrize(("sums", "G"), [([[1] * 8], 3), (np.zeros((1, 7), dtype=int), 3), (np.zeros((1, 8)), 3),
                                         (np.zeros((1, 8), dtype=int), 0)])  # fmt: skip
def test_sums_that_are_none_are_refused(sums, G):
    with pytest.raises(JanusError, match="int64"):
        BalancerStats(sums, G)


def test_balancers_of_several_threads_do_not_meet():
    rng = np.random.default_rng(0)
    work = [rng.integers(-1, 6, size=(64, 4)) for _ in range(8)]
    want = [balance(ids, THREE).physical_ids for ids in work]
    wrong = []

    def serve(ids, expected):
        balancer = Balancer(THREE, max_tokens=64)
        wrong.extend(1 for _ in range(200) if not np.array_equal(balancer(ids, 0), expected))
        wrong.extend([1] * (int(balancer.stats.batches[0]) != 200))

    threads = [threading.Thread(target=serve, args=pair) for pair in zip(work, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
