"""Layer 1: a model fitted to times predicts what it has not seen; torch-free."""

from __future__ import annotations

import random

import numpy as np
import pytest

from janus.comm.cost import CostModel
from janus.comm.fitting import Observation, fit
from janus.comm.layout import candidates
from janus.types import Topology

TRUE = CostModel(
    {"in_node": 2e-5, "between_nodes": 3e-5}, {"in_node": 3e-10, "between_nodes": 1e-10},
    node_beta_s_per_byte={"in_node": 0, "between_nodes": 4e-8}, world_alpha_s={"in_node": 2e-5, "between_nodes": 3e-5},
    world_beta_s_per_byte={"in_node": 2e-10, "between_nodes": 5e-10}, round_s=1e-4, factors={"relay x2": [[1, 1.2]]},
)  # fmt: skip
ROW = 8192


def pools(attention_nodes, expert_nodes, size):
    nodes = [tuple(range(i * size, (i + 1) * size)) for i in range(attention_nodes + expert_nodes)]
    return Topology(tuple(nodes[:attention_nodes]), tuple(nodes[attention_nodes:]))


@pytest.mark.parametrize("topology", [pools(2, 2, 2), pools(1, 4, 2), pools(4, 4, 4), pools(1, 4, 1)], ids=str)
def test_other_counts_are_predicted_from_a_few_noisy_ones(topology):
    rng = random.Random(0)

    def true(route, b):
        return sum(TRUE.phase_seconds(route, topology, (b,) * topology.n_attention, ROW))

    routes = candidates("auto", topology)
    seen = [
        Observation(route, (b,) * topology.n_attention, true(route, b) * rng.uniform(0.95, 1.05))
        for route in routes
        for b in (1, 16, 64)
    ]
    found = fit(seen, topology, ROW)
    errors = []
    for route in routes:
        for b in (2, 8, 40, 128):
            predicted = sum(found.phase_seconds(route, topology, (b,) * topology.n_attention, ROW))
            errors.append(abs(predicted / true(route, b) - 1))
    assert np.median(errors) < 0.05, "the noise of what was seen"
    assert max(errors) < 0.20
    chosen = [found.route(topology=topology, counts=(b,) * topology.n_attention, row_bytes=ROW) for b in (1, 8, 64)]
    best = [min(routes, key=lambda route: true(route, b)) for b in (1, 8, 64)]
    for b, mine, least in zip((1, 8, 64), chosen, best, strict=True):
        assert true(mine, b) <= 1.1 * true(least, b)


def test_nothing_is_negative_and_one_time_is_enough():
    topology = pools(1, 1, 1)
    (route,) = candidates("auto", topology)
    found = fit([Observation(route, (4,), 0.001)], topology, ROW)
    assert found.predict("direct", topology=topology, counts=(4,), row_bytes=ROW) == pytest.approx(0.001, rel=0.01)
