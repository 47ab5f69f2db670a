"""Nonsense given to the public functions: a `JanusError` with its code, never another exception, never an answer."""

import numpy as np
import pytest

from janus import JanusError
from janus.scale import ActivationTable, Cluster, Efficiency, LatencyModel, ModelSpec, plan

ARGS = {"demand": 500, "slo": 20, "context": 400, "max_attention": 2, "max_experts": 3, "max_batch": 64}


def code(call, *args, **kwargs):
    with pytest.raises(JanusError) as error:
        call(*args, **kwargs)
    return error.value.code


@pytest.fixture(scope="module")
def table():
    return ActivationTable.build(np.arange(1, 9), [(2, 4), (4, 4)], [2, 8], top_k=2, samples=2)


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({"batch_sizes": [1.5]}, "activation.grid"),  # would be measured as 1
        ({"batch_sizes": ["a"]}, "activation.grid"),
        ({"batch_sizes": 7}, "activation.grid"),
        ({"batch_sizes": [True]}, "activation.grid"),
        ({"grid": [("a", 4)]}, "activation.grid"),
        ({"grid": [(2, 4.0)]}, "activation.grid"),
        ({"samples": 1}, "activation.range"),  # its standard error would read 0
        ({"samples": 0}, "activation.range"),
        ({"layers": 0}, "activation.range"),
        ({"seed": -1}, "activation.range"),
        ({"seed": "x"}, "activation.range"),
        ({"top_k": 2.5}, "routing.top_k"),
        ({"top_k": "2"}, "routing.top_k"),
        ({"top_k": True}, "routing.top_k"),
        ({"top_k": 9}, "routing.top_k"),
        ({"trace": [[1, 2], [3]]}, "routing.counts"),
        ({"trace": None}, "routing.counts"),
        ({"method": None}, "sched.method"),
        ({"method": "cost"}, "sched.cost"),
    ],
)
def test_a_table_of_nonsense(changed, want):
    args = {"trace": np.arange(1, 9), "grid": [(2, 4)], "batch_sizes": [1, 4], "top_k": 2, **changed}
    assert code(ActivationTable.build, **args) == want


@pytest.mark.parametrize(
    "where", [(0, 4), (5, 4), (1, 4), (2.5, 4), ("a", 4), (2, 0), (2, -1), (2, float("nan")), (3, None)]
)
def test_no_point_of_the_table(table, where):
    assert code(table.at, *where) == "activation.range"


def test_no_batch_has_no_bound(table):
    for B in (0, -3, float("nan"), None):
        assert code(table.bound, 2, B) == "activation.range"


@pytest.mark.parametrize(
    "where",
    [(0, 2, 4, 10), (1.5, 2, 4, 10), ("a", 2, 4, 10), (1, 0, 4, 10), (1, 2, 0, 10), (1, 2, 2.5, 10), (1, 2, 4, -10),
     (1, 2, 4, float("nan")), (1, 2, 4, None)],
)  # fmt: skip
def test_no_step(table, where, olmoe):
    latency = LatencyModel.roofline(olmoe, Cluster("h100-sxm"))
    assert code(latency.tpot, *where, table) == "latency.range"


def test_a_latency_model_of_the_wrong_things(olmoe):
    cluster = Cluster("h100-sxm")
    assert code(LatencyModel.roofline, "olmoe-1b-7b", cluster) == "latency.kind"
    assert code(LatencyModel.roofline, olmoe, "h100-sxm") == "latency.kind"
    assert code(LatencyModel.roofline, olmoe, cluster, efficiency=0.5) == "latency.kind"


@pytest.mark.parametrize("field", ["layers", "moe_layers", "hidden", "experts", "top_k", "expert_width", "vocab"])
@pytest.mark.parametrize("value", [0, -5, 2.5, "x", True])
def test_a_size_of_a_model_is_a_whole_number(field, value):
    with pytest.raises(JanusError, match=field) as error:
        ModelSpec.from_config("olmoe-1b-7b", **{field: value})
    assert error.value.code == "model.config"


@pytest.mark.parametrize("field", ["shared_width", "dense_width", "expert_bias"])
def test_a_width_may_be_zero_but_not_less(field):
    assert getattr(ModelSpec.from_config("olmoe-1b-7b", **{field: 0}), field) == 0
    assert code(ModelSpec.from_config, "olmoe-1b-7b", **{field: -1}) == "model.config"


@pytest.mark.parametrize("source", [42, None, ["olmoe-1b-7b"]])
def test_no_model(source):
    assert code(ModelSpec.from_config, source) == "model.config"
    assert code(ModelSpec.from_config, {}) == "model.family"
    assert code(ModelSpec.from_config, "olmoe-1b-7b", attention=None) == "model.config"


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({"cluster": "h100-sxm"}, "scale.cluster"),
        ({"model": 42}, "model.config"),
        ({"slo": None}, "slo.range"),
        ({"seed": -1}, "activation.range"),
        ({"latency": "fast"}, "scale.latency"),
        ({"trace": [[1, 2], [3]]}, "routing.counts"),
        ({"demand": None, "batch": 65}, "scale.range"),  # more than the buffers are sized for
        ({"demand": None, "batch": 8, "headroom": 2.0}, "scale.range"),  # nothing to multiply
        ({"demand": None, "batch": 8.0}, "scale.range"),
        ({"prefill": "attention", "input_tokens": "a", "output_tokens": 4}, "scale.prefill"),
        ({"trace": np.ones((5, 64))}, "routing.model"),
    ],
)
def test_a_plan_of_nonsense(changed, want, olmoe, small_cluster):
    args = {"model": olmoe, "cluster": small_cluster, "trace": [range(1, 65)], **ARGS, **changed}
    assert code(plan, **args) == want


def test_a_latency_of_another_model_or_card_is_refused(olmoe, small_cluster):
    """Memory is counted for the cluster given: times of another one would make a plan of two machines."""
    for latency in (
        LatencyModel.roofline(olmoe, Cluster("h200-sxm")),
        LatencyModel.roofline(ModelSpec.from_config("deepseek-v2-lite"), small_cluster),
    ):
        assert code(plan, olmoe, small_cluster, trace=[range(1, 65)], latency=latency, **ARGS) == "scale.latency"
    own = LatencyModel.roofline(olmoe, small_cluster, efficiency=Efficiency(step_us=1e6))
    slow = {**ARGS, "demand": 50, "slo": 5000, "max_experts": 4, "max_batch": 128}
    assert plan(olmoe, small_cluster, trace=[range(1, 65)], latency=own, **slow).tpot_ms > 1000


def test_buffers_that_fill_the_card_are_named_as_the_reason(olmoe):
    with pytest.raises(JanusError, match=r"buffers for max_batch=100000000 \(1144\.4 GiB\).*smaller max_batch"):
        plan(olmoe, Cluster("h100-sxm"), trace=[range(1, 65)], **{**ARGS, "max_batch": 100_000_000})
