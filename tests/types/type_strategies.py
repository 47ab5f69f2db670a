"""Good nouns of every kind, and nonsense of every kind, for the property tests of janus.types."""

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from janus import JanusError
from janus.types import Placement, RequestTrace, RoutingTrace, Topology


class Hostile:
    """Answers every protocol with an unrelated exception."""

    def __index__(self):
        raise RuntimeError("no index")

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array")

    def __iter__(self):
        raise RuntimeError("no iteration")


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(min_value=2**31),
    st.integers(max_value=-(2**31)),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.sampled_from([10**400, 1j, np.float32("nan"), np.uint64(2**64 - 1), np.bool_(True), Hostile(), object(), int]),
)
ARRAYS = st.sampled_from(
    [
        np.zeros((2, 2)),
        np.full((1, 2, 2), 2**32),  # wraps to 0 in 32 bits
        np.full((2, 2), 2**64 - 1, dtype=np.uint64),
        np.zeros((0, 3), dtype=int),
        np.zeros((2, 0, 1), dtype=int),
        np.array([np.nan, np.inf]),
        np.array(["a", "b"]),
        np.array([[object()]]),
        np.zeros((1, 1, 1, 1), dtype=int),
        np.array(3),
        np.zeros(2, dtype="datetime64[s]"),
        np.zeros(2, dtype=[("a", int)]),
    ]
)
NONSENSE = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


def only_janus_error(prefix: str, call: Any, *args: Any, **kwargs: Any) -> None:
    """`call` may work or refuse with a code of its family; any other exception fails the test."""
    try:
        call(*args, **kwargs)
        return
    except JanusError as error:
        code, text = error.code, str(error)
    assert code.startswith(prefix), f"{code} is not of the family {prefix}"
    assert len(text) < 1500


def refuses(code: str, words: str, call: Any, *args: Any, **kwargs: Any) -> None:
    """`call` raises exactly this code, and its message says these words."""
    with pytest.raises(JanusError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code
    assert words in caught.value.message


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    sizes = [draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)) for _ in range(2)]
    total = sum(map(sum, sizes))
    ranks = iter(draw(st.permutations(range(total + draw(st.integers(0, 3)))))[:total])
    pools = [tuple(tuple(next(ranks) for _ in range(n)) for n in pool) for pool in sizes]
    nodes = draw(st.permutations(range(len(sizes[0]) + len(sizes[1]))))
    cut = draw(st.integers(0, len(nodes)))
    hosts = tuple(tuple(group) for group in (nodes[:cut], nodes[cut:]) if group) if draw(st.booleans()) else ()
    return Topology(*pools, hosts=hosts)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    layers, instances, width = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    experts = draw(st.integers(1, instances * width))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    slots = np.full((layers, instances, width), -1)
    for layer in slots:
        layer.ravel()[rng.permutation(layer.size)[:experts]] = rng.permutation(experts)
        for instance in layer:
            for c in np.flatnonzero(instance < 0):
                choice = rng.integers(-1, experts)
                instance[c] = -1 if choice in instance else choice
    if layers == 1 and draw(st.booleans()):
        return Placement(slots[0], experts)
    ids = np.cumsum(rng.integers(1, 4, layers)).tolist() if draw(st.booleans()) else None
    return Placement(slots, experts, layer_ids=ids)


@st.composite
def routing_traces(draw: st.DrawFn) -> RoutingTrace:
    tokens, layers, top_k = draw(st.integers(0, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    experts = draw(st.sampled_from([1, 3, 8, 255, 256, 257, 32767]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = rng.integers(-1 if draw(st.booleans()) else 0, experts, (tokens, layers, top_k))
    known = {"request": rng.permutation(tokens), "step": rng.integers(0, 3, tokens)} if draw(st.booleans()) else {}
    return RoutingTrace(ids, experts, source=draw(st.text(max_size=9)), synthetic=draw(st.booleans()), **known)


@st.composite
def request_traces(draw: st.DrawFn) -> RequestTrace:
    times = sorted(draw(st.lists(st.floats(0, 1e6), max_size=12)))
    lengths = [draw(st.lists(st.integers(1, 2**31 - 1), min_size=len(times), max_size=len(times))) for _ in range(2)]
    about = {"recorded": draw(st.booleans()), "dropped": draw(st.integers(0, 9)), "source": draw(st.text(max_size=9))}
    return RequestTrace(times, *lengths, duration_s=draw(st.none() | st.floats(1e6, 1e9)), **about)
