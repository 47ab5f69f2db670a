"""One batch, one layer: optimal, the same on every backend and run, and honest about wrong input. Layer 1 (integers)."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import CROSSINGS, crossing_case, hard_case, optimum, random_ids, random_slots

from janus import JanusError
from janus.sched import balance, reference
from janus.sched.tables import LayerTables
from janus.types import Placement

METHODS = ("exact", "greedy", "tokens", "random", "round_robin")
EXAMPLE = Placement([[0, 1, 2], [0, 3, 4], [1, 2, 5]], num_experts=6)  # the worked example of docs/sched.md
BATCH = np.array([[0, 1], [2, -1]])


@st.composite
def cases(draw, max_experts=40, max_instances=8):
    E, G = draw(st.integers(1, max_experts)), draw(st.integers(1, max_instances))
    least = -(-E // G)
    C = draw(st.integers(least, least + 4))
    T, K = draw(st.integers(0, 24)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    slots = random_slots(rng, E, G, C)
    return random_ids(rng, E, T, K, G), Placement(slots, E)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_exact_reaches_the_optimum_of_max_flow(case):
    ids, placement = case
    got = balance(ids, placement, backend="numba")
    assert got.a_max == optimum(ids, placement.slots[0])
    assert got.lower_bound <= got.a_max


def test_exact_reaches_the_optimum_where_the_greedy_start_does_not():
    rng, needed = np.random.default_rng(5), 0
    for _ in range(150):
        ids, slots = hard_case(rng)
        placement = Placement(slots, int(slots.max()) + 1)
        got, want = balance(ids, placement, backend="numba"), optimum(ids, slots)
        assert got.a_max == want
        assert balance(ids, placement, backend="reference").physical_ids.tobytes() == got.physical_ids.tobytes()
        needed += start_a_max(ids, placement) > want
    assert needed >= 30  # of 150: the search for paths really ran


def start_a_max(ids, placement):
    """a_max of the greedy start of the exact method, before any path."""
    tables = LayerTables.build(placement, 0, "exact")
    tokens = np.bincount(ids.ravel(), minlength=placement.num_experts).tolist()
    replica = np.array(reference.start(tokens, tables, tie_by_tokens=True))
    return np.bincount(replica[replica >= 0] // placement.slots_per_instance).max()


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from(METHODS), st.sampled_from([np.int32, np.int64, np.int16]))
def test_numba_equals_reference_bit_for_bit(case, method, dtype):
    ids, placement = case
    a, b = (balance(ids.astype(dtype), placement, method=method, backend=x) for x in ("reference", "numba"))
    assert (a.backend, b.backend) == ("reference", "numba")
    for field in dataclasses.fields(a):
        if field.name != "backend":
            x, y = np.asarray(getattr(a, field.name)), np.asarray(getattr(b, field.name))
            assert x.dtype == y.dtype, field.name
            assert x.tobytes() == y.tobytes(), field.name


@pytest.mark.parametrize("seed", CROSSINGS)
def test_of_targets_on_one_level_the_least_loaded_is_taken(seed):
    ids, slots = crossing_case(seed)
    placement = Placement(slots, int(slots.max()) + 1)
    a, b = (balance(ids, placement, backend=name).physical_ids for name in ("reference", "numba"))
    assert a.tolist() == b.tolist()


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(METHODS))
def test_ids_map_back_and_tallies_agree_with_them(case, method):
    ids, placement = case
    got = balance(ids, placement, method=method, backend="numba")
    phy = got.physical_ids
    assert ((phy == -1) == (ids == -1)).all()
    assert (placement.phy2log[0][phy[phy >= 0]] == ids[ids >= 0]).all()
    per_slot = np.bincount(phy[phy >= 0], minlength=placement.phy2log.shape[1])
    assert (got.tokens_per_slot == per_slot).all()
    assert (got.load == (per_slot > 0).reshape(placement.num_instances, -1).sum(1)).all()
    assert got.a_max == got.load.max()
    assert got.lower_bound <= got.a_max
    for e in range(placement.num_experts):
        used = phy[ids == e]
        assert got.replica[e] == (used[0] if len(used) else -1)


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(["exact", "greedy"]))
def test_every_activated_expert_has_exactly_one_replica(case, method):
    ids, placement = case
    got = balance(ids, placement, method=method, backend="numba")
    active = np.unique(ids[ids >= 0])
    assert got.load.sum() == len(active)
    assert (np.flatnonzero(got.replica >= 0) == active).all()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_exact_is_never_worse_than_greedy(case):
    ids, placement = case
    assert balance(ids, placement).a_max <= balance(ids, placement, method="greedy").a_max


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_the_worked_example_of_the_docs(backend):
    greedy = balance(BATCH, EXAMPLE, method="greedy", backend=backend)
    exact = balance(BATCH, EXAMPLE, backend=backend)
    assert greedy.physical_ids.tolist() == [[0, 6], [2, -1]]
    assert greedy.load.tolist() == [2, 0, 1]
    assert exact.physical_ids.tolist() == [[3, 6], [2, -1]]
    assert exact.load.tolist() == [1, 1, 1]
    assert (greedy.a_max, exact.a_max, exact.lower_bound) == (2, 1, 1)
    assert exact.replica.tolist() == [3, 6, 2, -1, -1, -1]
    assert exact.tokens_per_slot.tolist() == [0, 0, 1, 1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_chain_over_three_instances_is_found(backend):
    # only expert 1 can leave for instance 2, and it sits on instance 1: expert 0 follows it out of the full instance 0
    placement = Placement([[0, 2, 3, 4, -1], [0, 1, 2, 3, 4], [1, -1, -1, -1, -1]], num_experts=5)
    ids = np.array([[0, 1, 2, 3, 4]])
    assert balance(ids, placement, method="greedy", backend=backend).load.tolist() == [3, 2, 0]
    got = balance(ids, placement, backend=backend)
    assert got.replica.tolist() == [5, 10, 1, 8, 3]
    assert got.load.tolist() == [2, 2, 1]


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_ties_go_to_fewer_tokens_then_to_the_lower_instance(backend):
    placement = Placement([[0, 2], [1, 2]], num_experts=3)
    fewer = balance(np.array([[0, 1], [0, 2]]), placement, backend=backend)  # instance 0 has two tokens, 1 has one
    tied = balance(np.array([[0, 1], [2, -1]]), placement, backend=backend)
    assert fewer.replica.tolist() == [0, 2, 3]
    assert tied.replica.tolist() == [0, 2, 1]
    assert balance(np.array([[0, 1], [0, 2]]), placement, method="greedy").replica.tolist() == [0, 2, 1]


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_experts_with_fewest_replicas_choose_first(backend):
    placement = Placement([[0, 1], [0, 1], [0, 2]], num_experts=3)  # 0 on three instances, 1 on two
    assert balance(np.array([[0, 1]]), placement, backend=backend).replica.tolist() == [2, 1, -1]
    assert balance(np.array([[0, 1]]), placement, method="greedy", backend=backend).replica.tolist() == [0, 3, -1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (2, 2)])
def test_an_empty_batch_activates_nothing(method, backend, shape):
    got = balance(np.full(shape, -1), EXAMPLE, method=method, backend=backend)
    assert got.physical_ids.shape == shape
    assert (got.physical_ids == -1).all()
    assert (got.a_max, got.lower_bound, got.load.tolist()) == (0, 0, [0, 0, 0])


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_give_the_same_bits_and_leave_the_input_alone(method):
    rng = np.random.default_rng(3)
    ids, placement = random_ids(rng, 32, 64, 4), Placement(random_slots(rng, 32, 4, 12), 32)
    before = ids.copy()
    runs = {balance(ids, placement, method=method).physical_ids.tobytes() for _ in range(5)}
    assert len(runs) == 1
    assert (ids == before).all()


def test_random_and_round_robin_use_every_replica():
    placement = Placement([[0, 1], [0, 2], [0, 3]], num_experts=4)
    ids = np.zeros((300, 1), dtype=np.int64)
    assert balance(ids, placement, method="round_robin").tokens_per_slot[[0, 2, 4]].tolist() == [100, 100, 100]
    assert balance(ids, placement, method="tokens").tokens_per_slot[[0, 2, 4]].tolist() == [100, 100, 100]
    assert balance(ids, placement, method="random").tokens_per_slot[[0, 2, 4]].min() > 70  # 100 +- 8.2


def test_random_depends_on_the_whole_batch():
    placement = Placement([[0, 1], [0, 1]], num_experts=2)
    a, b = np.zeros((64, 1), dtype=np.int64), np.zeros((64, 1), dtype=np.int64)
    b[-1] = 1
    first, second = (balance(x, placement, method="random").physical_ids[:-1] for x in (a, b))
    assert (first != second).any()


def test_layers_have_their_own_map():
    placement = Placement([[[0], [1]], [[1], [0]]], num_experts=2)
    assert balance(np.array([[0]]), placement, layer=1).physical_ids.tolist() == [[1]]
    with pytest.raises(JanusError, match=r"placement\.layer"):
        balance(np.array([[0]]), placement, layer=2)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_every_integer_dtype_comes_back_as_it_was(dtype, backend):
    ids = np.array([[0, 1], [2, 5]], dtype=dtype)
    got = balance(ids, EXAMPLE, backend=backend).physical_ids
    assert got.dtype == ids.dtype.newbyteorder("=")
    assert got.tolist() == [[0, 1], [7, 8]]


def test_strided_and_read_only_input():
    wide = np.array([[0, 9, 1, 9], [2, 9, -1, 9]])
    strided = wide[:, ::2]
    frozen = BATCH.copy()
    frozen.flags.writeable = False
    for ids in (strided, frozen, np.asfortranarray(BATCH)):
        assert balance(ids, EXAMPLE, backend="numba").physical_ids.tolist() == [[3, 6], [2, -1]]


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.int16):
        got = balance(torch.tensor([[0, 1], [2, 5]], dtype=dtype), EXAMPLE).physical_ids
        assert isinstance(got, torch.Tensor)
        assert got.dtype == dtype
        assert got.tolist() == [[0, 1], [7, 8]]
    for bad in (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)):
        with pytest.raises(JanusError, match="integers"):
            balance(bad, EXAMPLE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("value", [6, -2, 2**31, 2**32])
def test_an_id_out_of_range_is_refused_with_its_place(method, backend, value):
    with pytest.raises(JanusError, match=rf"0\.\.5; token 1, choice 0 holds {value}") as caught:
        balance(np.array([[0, 1], [value, 7]]), EXAMPLE, method=method, backend=backend)
    assert caught.value.code == "sched.range"


def test_the_largest_unsigned_id_is_not_taken_for_minus_one():
    with pytest.raises(JanusError, match="holds 18446744073709551615"):
        balance(np.array([[2**64 - 1]], dtype=np.uint64), EXAMPLE)


@pytest.mark.parametrize(
    ("ids", "code"),
    [
        (np.zeros(3, dtype=int), "sched.shape"),
        (np.zeros((1, 2, 3), dtype=int), "sched.shape"),
        (np.zeros((1, 2)), "sched.dtype"),
        (np.zeros((1, 2), dtype=bool), "sched.dtype"),
        ([[0, 1]], "sched.input"),
    ],
)
def test_what_is_no_batch_is_refused(ids, code):
    with pytest.raises(JanusError) as caught:
        balance(ids, EXAMPLE)
    assert caught.value.code == code


def test_physical_ids_must_fit_the_dtype():
    with pytest.raises(JanusError, match="up to 149 must fit"):
        balance(np.zeros((1, 1), dtype=np.int8), Placement.contiguous(100, 1, 150))


def test_what_this_version_lacks_is_refused_by_name():
    with pytest.raises(JanusError, match="'exact', 'greedy'") as caught:
        balance(BATCH, EXAMPLE, method="fastest")
    with pytest.raises(JanusError, match="'reference', 'numba', 'triton'"):
        balance(BATCH, EXAMPLE, backend="cuda")
    with pytest.raises(JanusError, match="methods 'exact', 'greedy', got 'tokens'") as caught:
        balance(BATCH, EXAMPLE, backend="triton", method="tokens")
    assert caught.value.code == "sched.backend"
