"""The closed form of the exchange's time against the cost model's own list of hops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.comm.cost import CostModel
from janus.scale import Cluster
from janus.scale.exchange import REGIMES, ExchangeCost, Pools, direct_s, gather_s, split
from janus.types import Topology

COST = CostModel({"in_node": 3e-6, "between_nodes": 11e-6}, {"in_node": 1 / 300e9, "between_nodes": 1 / 25e9})


@given(
    st.integers(1, 14), st.integers(1, 14), st.integers(0, 600), st.integers(1, 5), st.sampled_from([2, 4096, 14336])
)
def test_closed_form_equals_the_list_of_hops(n_a, n_e, B, size, row_bytes):
    cost = ExchangeCost(COST, size)
    near, far = cost.link("in_node", row_bytes), cost.link("between_nodes", row_bytes)
    pools, topology = Pools(n_a, n_e, B, size), Topology.parse(f"{n_a}A{n_e}E", gpus_per_node=size)
    ours = {"direct": direct_s(pools, far), "gather": gather_s(pools, near, far)}
    for regime in REGIMES:
        want = COST.predict(regime, topology=topology, counts=split(B, n_a), row_bytes=row_bytes)
        assert ours[regime] == pytest.approx(want, rel=1e-12, abs=1e-18)  # float sums in another order
    assert cost.layer_s(n_a, n_e, B, row_bytes) == min(ours.values())


def test_by_hand():
    # 2 attention instances of 3 rows to one expert in another node: one message each way, 6 rows at its port
    cost = ExchangeCost(CostModel({"in_node": 0, "between_nodes": 1e-6}, {"in_node": 0, "between_nodes": 1e-9}), 1)
    near, far = cost.link("in_node", 100), cost.link("between_nodes", 100)
    assert direct_s(Pools(2, 1, 6, 1), far) == pytest.approx(2 * (2e-6 + 600e-9))
    assert gather_s(Pools(2, 1, 6, 1), near, far) == pytest.approx(2 * (2e-6 + 600e-9))


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
