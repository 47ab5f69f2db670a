"""The balancer on a real GPU: its ids, graphs, streams, and that a call neither syncs nor allocates. Layer 3 (GPU)."""

import numpy as np
import pytest
from oracle import is_optimum, random_ids, random_slots

from janus import JanusError
from janus.sched import Balancer, balance
from janus.types import Placement

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
E, G, C, L, K = 64, 8, 12, 3, 4


def made(method="exact", **options):
    rng = np.random.default_rng(7)
    placement = Placement(np.stack([random_slots(rng, E, G, C) for _ in range(L)]), E)
    return rng, placement, Balancer(placement, method=method, max_tokens=256, device="cuda", **options)


def drawn(rng, T=64):
    return torch.from_numpy(random_ids(rng, E, T, K, G).astype(np.int64)).cuda()


def host(ids, placement, layer, method="exact"):
    return balance(ids.cpu().numpy(), placement, layer=layer, method=method, backend="numba")


@pytest.mark.parametrize("method", ["exact", "greedy"])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_ids_loads_and_sums_are_those_of_the_cpu(method, dtype):
    rng, placement, balancer = made(method, record_load=True)
    twin = Balancer(placement, method=method, backend="numba", max_tokens=256, record_load=True)
    assert balancer.backend == "triton"
    for i in range(60):
        ids, layer = drawn(rng, int(rng.integers(0, 257))).to(getattr(torch, dtype)), i % L
        got, want = balancer(ids, layer), twin(ids.cpu(), layer)
        assert got.dtype == ids.dtype
        assert torch.equal(got.cpu(), want)
        assert balancer.load.tolist() == twin.load.tolist()
    assert (balancer.stats.sums == twin.stats.sums).all()
    assert (balancer.expert_load == twin.expert_load).all()


def test_balance_takes_a_gpus_tensor_and_fills_every_field():
    rng, placement, _ = made()
    ids = drawn(rng)
    got, want = balance(ids, placement, layer=1), host(ids, placement, 1)
    assert (got.backend, got.physical_ids.device.type) == ("triton", "cuda")
    assert np.array_equal(got.physical_ids.cpu().numpy(), want.physical_ids)
    for field in ("replica", "load", "tokens_per_slot", "a_max", "lower_bound"):
        assert np.array_equal(np.asarray(getattr(got, field)), np.asarray(getattr(want, field))), field


def test_long_chains_reach_the_maximum_flow_optimum():
    rng = np.random.default_rng(11)  # one shape for all: another E, G or C is compiled anew
    placement = Placement(np.stack([random_slots(rng, E, G, C, kinds=("ring",)) for _ in range(L)]), E)
    balancer = Balancer(placement, max_tokens=256, device="cuda")
    for i in range(60):
        ids = drawn(rng)
        balancer(ids, i % L)
        assert is_optimum(ids.cpu().numpy(), placement.slots[i % L], int(balancer.load.max()))


def test_a_call_can_be_captured_and_replayed_on_new_ids():
    rng, placement, balancer = made()
    ids = drawn(rng)
    kept = [torch.empty_like(ids) for _ in range(L)]
    for layer in range(L):
        balancer(ids, layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(L):
            kept[layer].copy_(balancer(ids, layer))
    for _ in range(20):
        ids.copy_(drawn(rng))
        graph.replay()
        torch.cuda.synchronize()
        for layer in range(L):
            assert np.array_equal(kept[layer].cpu().numpy(), host(ids, placement, layer).physical_ids)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch calls it a prototype
def test_a_call_neither_syncs_nor_allocates():
    rng, _, balancer = made()
    ids = drawn(rng)
    balancer(ids, 0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for layer in range(L):
            balancer(ids, layer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_work_goes_to_the_current_stream():
    rng, placement, balancer = made()
    ids, stream = drawn(rng), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # tens of milliseconds before the ids change
        ids.copy_(ids.flip(0))
        got = balancer(ids, 0).clone()
    stream.synchronize()
    assert np.array_equal(got.cpu().numpy(), host(ids, placement, 0).physical_ids)


def test_a_thousand_runs_give_the_same_bits():
    rng, _, balancer = made()
    ids = drawn(rng, 256)
    first = balancer(ids, 0).clone()
    differing = sum(int((balancer(ids, 0) != first).any()) for _ in range(1000))
    assert differing == 0


def test_bad_ids_are_counted_or_refused():
    _, placement, balancer = made()
    bad = torch.tensor([[0, E], [-2, 1]], device="cuda")
    mended = torch.tensor([[0, -1], [-1, 1]])
    assert np.array_equal(balancer(bad, 0).cpu().numpy(), host(mended, placement, 0).physical_ids)
    assert balancer.stats.bad_ids.tolist() == [2, 0, 0]
    checked = made(check_ids=True)[2]
    with pytest.raises(JanusError, match=r"sched\.range.*token 0, choice 1 holds 64"):
        checked(bad, 0)
    assert checked(mended.cuda(), 0).tolist() == host(mended, placement, 0).physical_ids.tolist()


def test_ids_on_the_cpu_are_refused():
    with pytest.raises(JanusError, match=r"sched\.device"):
        made()[2](torch.zeros((2, 2), dtype=torch.int64), 0)
