"""The Triton kernel: the same integers as numba. Layer 2 (Triton's interpreter), or layer 3 where there is a GPU."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import CROSSINGS, crossing_case, hard_case, optimum, random_ids, random_slots

from janus import JanusError
from janus.sched import Balancer, balance
from janus.types import Placement

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from janus.sched.device import DeviceEngine, Launch  # noqa: E402  (needs both)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIR = Placement([[0, 1], [0, 1]], num_experts=2)


def same(ids, placement, method="exact"):
    """Every field of both assignments, to the bit; returns the kernel's."""
    want = balance(ids, placement, method=method, backend="numba")
    got = balance(torch.tensor(ids, device=DEVICE), placement, method=method, backend="triton")
    assert got.backend == "triton"
    assert got.physical_ids.device.type == DEVICE
    for field in dataclasses.fields(want):
        if field.name not in ("backend", "physical_ids"):
            a, b = np.asarray(getattr(want, field.name)), np.asarray(getattr(got, field.name))
            assert (a == b).all(), field.name
    assert got.physical_ids.cpu().numpy().tobytes() == want.physical_ids.tobytes()
    return got


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["exact", "greedy"]), st.sampled_from(["i4", "i8"]))
def test_every_field_equals_numbas(seed, method, dtype):
    rng = np.random.default_rng(seed)
    E, G = int(rng.integers(1, 40)), int(rng.integers(1, 9))
    slots = random_slots(rng, E, G, -(-E // G) + int(rng.integers(0, 6)))
    ids = random_ids(rng, E, int(rng.integers(0, 30)), int(rng.integers(1, 9)), G).astype(dtype)
    same(ids, Placement(slots, E), method)


@pytest.mark.parametrize("seed", range(4))
def test_long_chains_reach_the_maximum_flow_optimum(seed):
    ids, slots = hard_case(np.random.default_rng(seed))
    got = same(ids, Placement(slots, int(slots.max()) + 1))
    assert got.a_max == optimum(ids, slots)


@pytest.mark.parametrize("seed", CROSSINGS)
def test_of_targets_on_one_level_the_least_loaded_is_taken(seed):
    ids, slots = crossing_case(seed)
    same(ids, Placement(slots, int(slots.max()) + 1))


@pytest.mark.parametrize(("E", "G"), [(1, 1), (50, 33), (70, 64), (80, 65), (130, 128)])
def test_sets_of_instances_of_every_width(E, G):
    """32-bit words up to 32 instances, 64-bit up to 64, two of them up to 128; the ring needs chains."""
    rng = np.random.default_rng(G)
    slots = random_slots(rng, E, G, 2 if G > 1 else 1, kinds=("ring",))
    same(random_ids(rng, E, 40, 2, G), Placement(slots, E))


@pytest.mark.parametrize("G", [6, 40, 70])
def test_a_row_of_instances_is_walked_all_the_way(G):
    """Expert e on instances e and e + 1, a last one on 0, 1 and 2: all but the last instance are busy when it comes."""
    slots = np.full((G, 3), -1)
    for e in range(G - 1):
        slots[e, 0], slots[e + 1, 1] = e, e
    slots[:3, 2] = G - 1
    ids = np.arange(G)[:, None]
    assert same(ids, Placement(slots, G), "greedy").a_max == 2
    got = same(ids, Placement(slots, G))
    assert (got.a_max, got.load.tolist()) == (1, [1] * G)


@pytest.mark.parametrize("max_tokens", [40, 16384])
def test_ids_do_not_depend_on_how_the_work_is_cut(max_tokens):
    """Many counting and rewriting programs, and keys of 32 and of 64 bits."""
    rng = np.random.default_rng(5)
    placement = Placement(random_slots(rng, 20, 5, 9, kinds=("ring",)), 20)
    ids = random_ids(rng, 20, 40, 3)
    launch = Launch(counters=20, counted=4, count_block=4, rewriters=3, block=32)
    engine = DeviceEngine(placement, "exact", max_tokens, DEVICE, check_ids=True, launch=launch)
    got = engine(torch.tensor(ids, device=DEVICE), 0, 0)
    assert (got.cpu().numpy() == balance(ids, placement, backend="numba").physical_ids).all()
    assert int(engine.sums[0, 1]) == (ids >= 0).sum()  # every counting program's part was summed


def test_wide_keys():
    """130 slots per instance and batches of 16,384 tokens: load, tokens and instance need more than 31 bits."""
    slots = np.full((2, 130), -1)
    slots[0, :3], slots[1, 120:123] = [0, 1, 2], [2, 0, 3]
    placement = Placement(slots, 4)
    ids = np.array([[0, 1], [2, 3], [0, -1]])
    balancer = Balancer(placement, backend="triton", device=DEVICE, max_tokens=16384)
    assert not balancer._engine._constants["NARROW"]
    got = balancer(torch.tensor(ids, device=DEVICE), 0)
    assert (got.cpu().numpy() == balance(ids, placement, backend="numba").physical_ids).all()


def test_a_sequence_of_batches_leaves_the_same_statistics_and_loads():
    rng = np.random.default_rng(3)
    placement = Placement(np.stack([random_slots(rng, 12, 3, 6) for _ in range(2)]), 12)
    here = Balancer(placement, max_tokens=8, backend="numba", record_load=True)
    there = Balancer(placement, max_tokens=8, backend="triton", device=DEVICE, record_load=True)
    for layer in (0, 1, 1):
        ids = random_ids(rng, 12, int(rng.integers(0, 9)), 2)
        want, got = here(ids, layer), there(torch.tensor(ids, device=DEVICE), layer)
        assert (got.cpu().numpy() == want).all()
        assert there.load.tolist() == here.load.tolist()
    assert (there.stats.sums == here.stats.sums).all()
    assert there.stats.batches.tolist() == [1, 2]
    assert (there.expert_load == here.expert_load).all()
    there.reset_stats()
    assert not there.stats.sums.any()
    assert not there.expert_load.any()


def test_layers_that_share_a_map_are_counted_apart():
    here, there = (
        Balancer(PAIR, max_tokens=4, backend=name, device=device, num_layers=3, record_load=True)
        for name, device in (("numba", "cpu"), ("triton", DEVICE))
    )
    for layer, e in ((0, 0), (2, 1), (2, 1)):
        here(np.array([[e]]), layer), there(torch.tensor([[e]], device=DEVICE), layer)
    for balancer in (here, there):
        assert balancer.stats.batches.tolist() == [1, 0, 2]
        assert balancer.expert_load.tolist() == [[1, 0], [0, 0], [0, 2]]
        with pytest.raises(JanusError, match=r"layer must lie in 0\.\.2, got 3"):
            balancer(np.array([[0]]), 3)


def test_an_id_out_of_range_becomes_minus_one_and_is_counted():
    balancer = Balancer(PAIR, max_tokens=4, backend="triton", device=DEVICE)
    got = balancer(torch.tensor([[0, 2], [-2, 1], [2**40, -1]], device=DEVICE), 0)
    assert got.tolist() == [[0, -1], [-1, 3], [-1, -1]]
    assert balancer.stats.bad_ids.tolist() == [3]


def test_an_id_out_of_range_is_refused_when_checks_are_asked_for():
    balancer = Balancer(PAIR, max_tokens=4, backend="triton", device=DEVICE, check_ids=True)
    with pytest.raises(JanusError, match="token 1, choice 0 holds 7") as caught:
        balancer(torch.tensor([[0, 1], [7, 1]], device=DEVICE), 0)
    assert caught.value.code == "sched.range"
    assert balancer(torch.tensor([[1, 0]], device=DEVICE), 0).tolist() == [[3, 0]]


@pytest.mark.parametrize(
    ("ids", "code", "words"),
    [
        (torch.zeros(2, 2), "sched.dtype", "int32 or int64, got torch.float32"),
        (torch.zeros(2, 2, dtype=torch.int16), "sched.dtype", "int16"),
        (torch.zeros(2, dtype=torch.int64), "sched.shape", r"\(2,\)"),
        (torch.zeros(2, 3, dtype=torch.int64).T, "sched.contiguous", "strides"),
        (torch.zeros(5, 1, dtype=torch.int64), "sched.max_tokens", "max_tokens=4 tokens, got 5"),
        (torch.zeros(1, 17, dtype=torch.int64), "sched.limit", "at most 16 experts, got 17"),
        ([[0, 1]], "sched.input", "got list"),
    ],
)
def test_what_the_kernel_cannot_take_is_refused_before_a_launch(ids, code, words):
    balancer = Balancer(PAIR, max_tokens=4, backend="triton", device=DEVICE)
    with pytest.raises(JanusError, match=words) as caught:
        balancer(ids.to(DEVICE) if isinstance(ids, torch.Tensor) else ids, 0)
    assert caught.value.code == code
    assert balancer.stats.batches.tolist() == [0]


@pytest.mark.parametrize(
    ("placement", "options", "code", "words"),
    [
        (Placement.contiguous(513, 1), {}, "sched.limit", "at most 512 experts, got 513"),
        (Placement.contiguous(130, 129), {}, "sched.limit", "at most 128 instances, got 129"),
        (Placement.contiguous(2, 1, 4097), {}, "sched.limit", "at most 4096 slots per instance, got 4097"),
        (PAIR, {"max_tokens": 16385}, "sched.limit", "at most 16384 tokens, got 16385"),
        (PAIR, {"method": "random"}, "sched.backend", "'exact', 'greedy', got 'random'"),
        (PAIR, {"device": "meta"}, "sched.device", "'cpu' or 'cuda', got 'meta'"),
    ],
)
def test_what_the_kernel_was_not_made_for_is_refused_at_the_start(placement, options, code, words):
    with pytest.raises(JanusError, match=words) as caught:
        Balancer(placement, **{"backend": "triton", "device": DEVICE, "max_tokens": 4} | options)
    assert caught.value.code == code


@pytest.mark.skipif(DEVICE == "cuda", reason="about machines without a GPU")
def test_without_a_gpu_a_device_is_refused(monkeypatch):
    with pytest.raises(JanusError, match="torch sees none"):
        Balancer(PAIR, max_tokens=4, device="cuda:0")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(JanusError, match="runs on a GPU, got device 'cpu'"):
        Balancer(PAIR, max_tokens=4, backend="triton")
