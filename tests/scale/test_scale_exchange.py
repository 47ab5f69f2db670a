"""The closed form of the exchange's time against the cost model's own list of hops."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.comm import layout
from janus.comm.cost import CostModel
from janus.comm.layout import candidates
from janus.scale import Cluster, Hardware
from janus.scale.timing import exchange_loops as loops
from janus.scale.timing.exchange import ExchangeCost, Link, split
from janus.types import Topology

COST = CostModel({"in_node": 3e-6, "between_nodes": 11e-6}, {"in_node": 1 / 300e9, "between_nodes": 1 / 25e9})
SLOW_INSIDE = CostModel({"in_node": 2e-6, "between_nodes": 1e-7}, {"in_node": 1 / 20e9, "between_nodes": 1 / 90e9})
BYTES = CostModel({"in_node": 0, "between_nodes": 0}, {"in_node": 1 / 50e9, "between_nodes": 1 / 60e9})


def about(seconds):
    return pytest.approx(seconds, rel=1e-12, abs=1e-18)  # float sums in another order


def closed(route, pools, near, far):
    if route.regime in layout.PIPELINED:
        return getattr(loops, f"{route.regime}_s")(pools, route.depth, near, far)
    return getattr(loops, f"{route.regime}_s")(pools, near, far)


@given(
    st.sampled_from([COST, SLOW_INSIDE, BYTES]),
    st.integers(1, 14),
    st.integers(1, 20),
    st.integers(0, 300) | st.integers(0, 30_000),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from([2, 4096, 14336]),
)
@settings(deadline=None)
def test_closed_form_equals_the_list_of_hops(model, n_a, n_e, B, sizes, row_bytes):
    """Every route, also those that "auto" leaves out; nodes of one size in both pools, and of two."""
    cost = ExchangeCost(model, *sizes)
    near, far = cost.link("in_node", row_bytes), cost.link("between_nodes", row_bytes)
    topology = cost.topology(n_a, n_e)
    for route in layout.possible(topology):
        listed = sum(model.phase_seconds(route, topology, split(B, n_a), row_bytes))
        assert closed(route, loops.Pools(n_a, n_e, B, *sizes), near, far) == about(listed), route
    assert cost.layer_s(n_a, n_e, B, row_bytes) == about(cost.listed_s(n_a, n_e, B, row_bytes))


@pytest.mark.parametrize(
    ("n_a", "n_e", "sizes", "B"),
    [(8, 64, (8, 8), 4001), (3, 20, (8, 4), 999), (2, 19, (1, 1), 300), (64, 64, (8, 8), 777), (40, 70, (4, 72), 6000)],
)
def test_closed_form_of_larger_pools(n_a, n_e, sizes, B):
    cost = ExchangeCost(COST, *sizes)
    assert cost.layer_s(n_a, n_e, B, 14336) == about(cost.listed_s(n_a, n_e, B, 14336))


def test_the_pieces_of_the_closed_form_are_those_of_the_exchange():
    assert loops.MOST_PIECES == layout.MOST_PIECES
    for regime, most in (("spread", loops.SPREAD_DEPTH), ("relay", loops.RELAY_DEPTH)):
        depths = [route.depth for route in layout.ROUTES if route.regime == regime]
        assert depths == [2**i for i in range(len(depths))]
        assert depths[-1] == most
    assert list(loops.REGIMES) == list(dict.fromkeys(route.regime for route in layout.ROUTES))


@pytest.mark.parametrize(
    ("n_a", "n_e", "sizes", "regimes"),
    [
        (1, 1, (8, 8), "direct"),
        (3, 2, (1, 1), "direct"),
        (3, 2, (1, 2), "direct gather spread"),
        (8, 8, (8, 8), "direct gather spread"),
        (8, 16, (8, 8), "direct gather spread relay"),
        (8, 8, (8, 4), "direct gather spread relay"),
    ],
)
def test_the_regimes_are_those_that_auto_tries(n_a, n_e, sizes, regimes):
    cost = ExchangeCost(COST, *sizes)
    assert list(cost.regimes_s(n_a, n_e, 64, 4096)) == regimes.split()
    tried = dict.fromkeys(route.regime for route in candidates("auto", cost.topology(n_a, n_e)))
    assert list(tried) == regimes.split()


@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(0, 20_000)), max_size=8), st.integers(1, 8)
)
@settings(deadline=None)
def test_many_at_once_are_the_single_ones(rows, size):
    cost = ExchangeCost(COST, size, 4)
    n_a, n_e, B = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    assert cost.layers_s(n_a, n_e, B, 4096).tolist() == [cost.layer_s(*row, 4096) for row in rows]


def test_one_value_serves_all_of_many():
    cost = ExchangeCost(COST, 8)
    assert cost.layers_s([1, 2, 3], 6, 64, 4096).tolist() == [cost.layer_s(a, 6, 64, 4096) for a in (1, 2, 3)]


@pytest.mark.parametrize("given_", [([0], 1, 1), (1, [1, -2], 1), (1, 1, [-1]), ([1.5], 1, 1)])
def test_pools_without_instances_are_refused(given_):
    cost = ExchangeCost(COST, 8)
    with pytest.raises(JanusError) as error:
        cost.layers_s(*given_, 4096)
    assert error.value.code == "exchange.range"
    with pytest.raises(JanusError, match="n_a must be a whole number >= 1"):
        cost.layer_s(0, 1, 1, 4096)


@pytest.mark.parametrize(
    ("regime", "n_a", "n_e", "size", "B"),
    [("direct", 2, 3, 1, 4), ("gather", 8, 64, 8, 8), ("spread", 8, 8, 8, 4096), ("relay", 1, 64, 8, 4096)],
)
def test_each_regime_wins_somewhere(regime, n_a, n_e, size, B):
    found = ExchangeCost(CostModel(), size).regimes_s(n_a, n_e, B, 10240)
    assert [name for name in found if found[name] <= min(found.values())] == [regime]


@pytest.mark.parametrize(
    "shared", [{"round_s": 1e-5}, {"node_beta_s_per_byte": {"in_node": 0, "between_nodes": 1 / 1e9}},
               {"world_alpha_s": {"in_node": 1e-5, "between_nodes": 0}}],
)  # fmt: skip
def test_a_model_with_shared_ports_or_a_time_per_phase_lists_the_hops(shared):
    cost = ExchangeCost(replace(COST, **shared), 2)
    want = cost.model.predict(
        "auto", topology=Topology.parse("3A5E", gpus_per_node=2), counts=[4, 3, 3], row_bytes=4096
    )
    assert cost.layer_s(3, 5, 10, 4096) == want > ExchangeCost(COST, 2).layer_s(3, 5, 10, 4096)


def test_by_hand():
    # 2 attention instances of 3 rows to one expert in another node: one message each way, 6 rows at its port
    near, far = Link(0, 0), Link(1e-6, 1e-7)
    for route in layout.ROUTES[:3]:
        assert closed(route, loops.Pools(2, 1, 6, 1, 1), near, far) == pytest.approx(2 * (2e-6 + 6e-7))


def test_pieces_by_hand():
    # 1 attention instance of 5 rows, 2 experts in nodes of their own, no neighbours to spread to; 1 us + 0.1 us per row
    link = Link(1e-6, 1e-7)
    pools = loops.Pools(1, 2, 5, 1, 1)
    # spread in halves of 2 and 3 rows: the sender's port carries each to both nodes
    assert loops.spread_s(pools, 2, link, link) == pytest.approx(2 * (2 * (1e-6 + 2e-7) + 2 * (1e-6 + 3e-7)))
    # relay: 2 rows to one expert and 3 to the other, then each hands its own to the other: out 5 rows, then 3
    assert loops.relay_s(pools, 1, link, link) == pytest.approx(2 * (2e-6 + 5e-7 + 1e-6 + 3e-7))
    # in a node of two the piece is handed on inside it: 2 phases, and with halves 3, of which the middle does both
    near, pair = Link(0.0, 1e-8), loops.Pools(1, 2, 5, 2, 2)
    assert loops.spread_s(pair, 1, near, link) == pytest.approx(2 * (1e-6 + 5e-7 + 5e-8))
    assert loops.spread_s(pair, 2, near, link) == pytest.approx(2 * (1e-6 + 2e-7 + 1e-6 + 3e-7 + 3e-8))


def test_a_cluster_gives_its_latencies_and_bandwidths():
    cost = ExchangeCost.of(Cluster("h100-sxm"))
    assert cost.model.beta_s_per_byte == {"in_node": 1 / 450e9, "between_nodes": 1 / 50e9}
    assert (cost.gpus_per_node, cost.expert_gpus_per_node) == (8, 8)


def test_two_clusters_give_the_slower_of_each_class_of_links_and_their_own_nodes():
    slow_inside = Cluster(Hardware("x", 1e9, 1e12, 1e14, 1e14, 2e11, 4, 800), inter_node_latency_s=2e-5)
    for pair in ((Cluster("h100-sxm"), slow_inside), (slow_inside, Cluster("h100-sxm"))):
        cost = ExchangeCost.of(*pair)
        assert cost.model.alpha_s == {"in_node": 5e-6, "between_nodes": 2e-5}
        assert cost.model.beta_s_per_byte == {"in_node": 1 / 2e11, "between_nodes": 1 / 50e9}
        assert (cost.gpus_per_node, cost.expert_gpus_per_node) == tuple(c.node_size for c in pair)


@given(st.integers(0, 50), st.integers(1, 9))
def test_split_is_even(B, parts):
    counts = split(B, parts)
    assert sum(counts) == B
    assert max(counts) - min(counts) <= 1
    pools = loops.Pools(parts, 1, B, 1, 1)
    assert counts == [loops.before(pools, a + 1) - loops.before(pools, a) for a in range(parts)]
