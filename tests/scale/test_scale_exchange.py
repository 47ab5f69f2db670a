"""The closed form of the exchange's time against the cost model's own list of hops."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.comm.cost import CostModel
from janus.comm.layout import candidates
from janus.scale import Cluster
from janus.scale.exchange import FORMS, ExchangeCost, Link, Pools, routes, split
from janus.scale.pieces import relay_s, spread_s
from janus.types import Topology

COST = CostModel({"in_node": 3e-6, "between_nodes": 11e-6}, {"in_node": 1 / 300e9, "between_nodes": 1 / 25e9})
SLOW_INSIDE = CostModel({"in_node": 2e-6, "between_nodes": 1e-7}, {"in_node": 1 / 20e9, "between_nodes": 1 / 90e9})
BYTES = CostModel({"in_node": 0, "between_nodes": 0}, {"in_node": 1 / 50e9, "between_nodes": 1 / 60e9})


def about(seconds):
    return pytest.approx(seconds, rel=1e-12, abs=1e-18)  # float sums in another order


@given(
    st.sampled_from([COST, SLOW_INSIDE, BYTES]),
    st.integers(1, 14),
    st.integers(1, 20),
    st.integers(0, 300) | st.integers(0, 30_000),
    st.integers(1, 5),
    st.sampled_from([2, 4096, 14336]),
)
@settings(deadline=None)
def test_closed_form_equals_the_list_of_hops(model, n_a, n_e, B, size, row_bytes):
    cost, pools = ExchangeCost(model, size), Pools(n_a, n_e, B, size)
    near, far = cost.link("in_node", row_bytes), cost.link("between_nodes", row_bytes)
    topology = Topology.parse(f"{n_a}A{n_e}E", gpus_per_node=size)
    for regime, form in FORMS.items():  # also those that "auto" leaves out for these pools
        found = candidates(regime, topology)
        listed = [sum(model.phase_seconds(route, topology, split(B, n_a), row_bytes)) for route in found]
        for route, want in zip(found, listed, strict=True):
            assert form(pools, (route.depth,), near, far) == about(want), route
        assert form(pools, tuple(route.depth for route in found), near, far) == about(min(listed))
    assert cost.layer_s(n_a, n_e, B, row_bytes) == about(cost.listed_s(n_a, n_e, B, row_bytes))


@pytest.mark.parametrize(
    ("n_a", "n_e", "size", "B"), [(8, 64, 8, 4001), (3, 20, 8, 999), (2, 19, 1, 300), (64, 64, 8, 777)]
)
def test_closed_form_of_larger_pools(n_a, n_e, size, B):
    cost = ExchangeCost(COST, size)
    listed = cost.listed_s(n_a, n_e, B, 14336)
    assert cost.layer_s(n_a, n_e, B, 14336) == about(listed)


@pytest.mark.parametrize(
    ("n_a", "n_e", "size", "regimes"),
    [
        (1, 1, 8, "direct"),
        (3, 2, 1, "direct"),
        (8, 8, 8, "direct gather spread"),
        (8, 16, 8, "direct gather spread relay"),
    ],
)
def test_the_regimes_are_those_that_auto_tries(n_a, n_e, size, regimes):
    cost = ExchangeCost(COST, size)
    assert list(cost.regimes_s(n_a, n_e, 64, 4096)) == regimes.split()
    topology = Topology.parse(f"{n_a}A{n_e}E", gpus_per_node=size)
    tried = [(regime, depth) for regime, depths in routes(n_a, n_e, size) for depth in depths]
    assert tried == [(route.regime, route.depth) for route in candidates("auto", topology)]


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
    cost = ExchangeCost(CostModel({"in_node": 0, "between_nodes": 1e-6}, {"in_node": 0, "between_nodes": 1e-9}), 1)
    near, far = cost.link("in_node", 100), cost.link("between_nodes", 100)
    for form in FORMS.values():
        assert form(Pools(2, 1, 6, 1), (1,), near, far) == pytest.approx(2 * (2e-6 + 600e-9))


def test_pieces_by_hand():
    # 1 attention instance of 5 rows, 2 experts in nodes of their own, no neighbours to spread to; 1 us + 0.1 us per row
    link = Link(1e-6, 1e-7)
    pools = Pools(1, 2, 5, 1)
    # spread in halves of 2 and 3 rows: the sender's port carries each to both nodes
    assert spread_s(pools, (2,), link, link) == pytest.approx(2 * (2 * (1e-6 + 2e-7) + 2 * (1e-6 + 3e-7)))
    # relay: 2 rows to one expert and 3 to the other, then each hands its own to the other: out 5 rows, then 3
    assert relay_s(pools, (1,), link, link) == pytest.approx(2 * (2e-6 + 5e-7 + 1e-6 + 3e-7))
    # in a node of two the piece is handed on inside it: 2 phases, and with halves 3, of which the middle does both
    near, pair = Link(0, 1e-8), Pools(1, 2, 5, 2)
    assert spread_s(pair, (1,), near, link) == pytest.approx(2 * (1e-6 + 5e-7 + 5e-8))
    assert spread_s(pair, (2,), near, link) == pytest.approx(2 * (1e-6 + 2e-7 + 1e-6 + 3e-7 + 3e-8))
    assert spread_s(pair, (1, 2), near, link) == spread_s(pair, (1,), near, link)


def test_a_cluster_gives_its_latencies_and_bandwidths():
    cost = ExchangeCost.of(Cluster("h100-sxm"))
    assert cost.model.beta_s_per_byte == {"in_node": 1 / 450e9, "between_nodes": 1 / 50e9}
    assert cost.gpus_per_node == 8


@given(st.integers(0, 50), st.integers(1, 9))
def test_split_is_even(B, parts):
    counts = split(B, parts)
    assert sum(counts) == B
    assert max(counts) - min(counts) <= 1
    assert counts == [Pools(parts, 1, B, 1).rows(a) for a in range(parts)]
