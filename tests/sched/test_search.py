"""The local search: what it counts is the exact a_max, compiled or not. Layer 1 (integers)."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import optimum, random_slots

from janus.sched import search_loops
from janus.sched.search_state import make_state

STEPS = (60, 40, 0, 4)  # changes, failures in a row, price, checkpoint


def random_state(seed, *, node_size=1, least=1, held=None, batches=12):
    rng = np.random.default_rng(seed)
    G = node_size * int(rng.integers(1, 5))
    E = int(rng.integers(2, 4 * G + 2))
    slots = random_slots(rng, E, G, -(-E // G) + int(rng.integers(0, 4)), kinds=("even", "skewed"))
    active = rng.random((E, batches)) < rng.random((E, 1))
    held = rng.random((G, E)) < 0.5 if held is None else held
    return make_state(slots, active, held, node_size=node_size, least=least, seed=seed)


def a_max_by_flow(state):
    n = len(state.top)
    batches = [np.flatnonzero(state.active[:, i])[None] for i in range(n)]
    return [optimum(ids, state.slots) for ids in batches]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_every_batch_is_at_its_optimum_before_and_after(seed):
    state = random_state(seed)
    assert state.top.tolist() == a_max_by_flow(state)
    search_loops.search(state, *STEPS)
    assert state.top.tolist() == a_max_by_flow(state)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(0, 3))
def test_the_sum_with_the_price_never_rises(seed, price):
    def cost(state):
        return int(state.top.sum()) + price * sum(
            not state.held[g, e] for g, row in enumerate(state.slots) for e in row if e >= 0
        )

    state = random_state(seed)
    before = cost(state)
    search_loops.search(state, 60, 40, price, 4)
    assert cost(state) <= before


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000))
def test_the_tables_stay_those_of_the_map(seed):
    state = random_state(seed)
    search_loops.search(state, *STEPS)
    G, E = len(state.slots), len(state.replicas)
    for e in range(E):
        hosts = [g for g in range(G) if e in state.slots[g]]
        assert sorted(state.hosts[e, : state.replicas[e]].tolist()) == hosts
        assert (state.slots == e).sum() == len(hosts) >= 1
    for g in range(G):
        several = [e for e in state.slots[g].tolist() if e >= 0 and state.replicas[e] > 1]
        assert state.shared[g, : state.num_shared[g]].tolist() == several
    for i in range(len(state.top)):  # every active expert is served by one of its hosts
        active = np.flatnonzero(state.active[:, i])
        assert all(e in state.slots[state.home[i, e]] for e in active)
        assert np.bincount(state.home[i, active], minlength=G).tolist() == state.load[i].tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 3))
def test_no_change_brings_replicas_together_or_takes_the_last_but_least(seed, node_size):
    state = random_state(seed, node_size=node_size)
    nodes = len(state.slots) // node_size

    def apart(e):
        hosts = np.flatnonzero((state.slots == e).any(axis=1))
        return len(set(hosts // node_size)) >= min(len(hosts), nodes)

    were = [apart(e) for e in range(len(state.replicas))]
    search_loops.search(state, *STEPS)
    assert all(apart(e) for e, was in enumerate(were) if was)
    two = random_state(seed, least=2)
    before = two.replicas.copy()
    search_loops.search(two, *STEPS)
    assert (two.replicas >= np.minimum(before, 2)).all()


def test_a_change_undone_leaves_the_same_map():
    slots = np.array([[0, 1, 2], [2, 3, -1], [0, 4, 3]], dtype=np.int32)
    state = make_state(slots, np.ones((5, 4), dtype=bool), np.zeros((3, 5), dtype=bool))
    replicas, (e, f, h) = state.replicas.copy(), (1, 3, 2)
    for swap in (True, False):
        search_loops.change(state, e, f, 0, h, swap)
        assert (state.slots != slots).any()
        search_loops.change(state, f, e, 0, h, swap)
        assert (state.slots == slots).all()
        assert (state.replicas == replicas).all()


def test_a_swap_by_hand():
    """Experts 0 and 1 always fire together and share an instance: one change parts them."""
    active = np.array([[1] * 8, [1] * 8, [0] * 8, [0] * 8], dtype=bool)
    state = make_state(np.array([[0, 1], [2, 3]], dtype=np.int32), active, np.zeros((2, 4), dtype=bool))
    assert state.top.tolist() == [2] * 8
    search_loops.search(state, 10, 10, 0, 4)
    assert state.top.tolist() == [1] * 8
    assert not {0, 1} <= set(state.slots[0].tolist())


def test_a_price_that_is_too_high_stops_it():
    active = np.array([[1] * 8, [1] * 8, [0] * 8, [0] * 8], dtype=bool)
    slots = np.array([[0, 1], [2, 3]], dtype=np.int32)
    held = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=bool)
    for price, moved in ((3, True), (4, False)):  # two slots change, eight batches gain one
        state = make_state(slots, active, held)
        search_loops.search(state, 10, 10, price, 4)
        assert (state.slots != slots).any() == moved


@pytest.fixture
def uncompiled(monkeypatch):
    """The same file, loaded where numba cannot be imported."""
    monkeypatch.setitem(sys.modules, "numba", None)
    spec = importlib.util.spec_from_file_location("uncompiled_loops", search_loops.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.numba is None
    return module


@pytest.mark.parametrize("seed", range(6))
def test_compiled_and_uncompiled_write_the_same_integers(uncompiled, seed):
    assert search_loops.numba is not None
    one, two = (random_state(seed, node_size=1 + seed % 2) for _ in range(2))
    search_loops.search(one, 60, 40, seed % 3, 4)
    uncompiled.search(two, 60, 40, seed % 3, 4)
    for name in ("slots", "hosts", "replicas", "home", "load", "top", "rng"):
        assert (getattr(one, name) == getattr(two, name)).all(), name


def test_without_numba_place_gives_the_same_map():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from janus.sched import place, searching\n"
        "searching.BATCHES = 48\n"
        "print(place([9, 7, 5, 3, 2, 1, 1, 1], 3, 4, top_k=2, batch_sizes=(4,)).slots[0].tolist())"
    )
    lines = []
    for source in (code, code.replace("sys.modules['numba'] = None", "")):
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        lines.append(done.stdout)
    assert lines[0] == lines[1]


def test_random_numbers_are_xorshift():
    """The published triple (13, 17, 5), worked out with Python's own integers."""
    rng = np.array([12345], dtype=np.int64)
    x, mine, ours = 12345, [], []
    for _ in range(5):
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        mine.append(x * 10 >> 32)
        ours.append(search_loops.random_below(rng, 10))
    assert ours == mine
