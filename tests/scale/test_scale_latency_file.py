"""Latency models come back from their files as they were, and no broken file raises anything but a JanusError."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.scale import Cluster, Efficiency, Hardware, LatencyModel, ModelSpec
from janus.scale.timing.exchange import ExchangeCost
from janus.scale.timing.latency import Activated
from janus.scale.timing.latency_file import from_dict, to_dict
from janus.scale.timing.scaled import ScaledLatencyModel, StepTerms


class Fixed:
    def at(self, n_e, B):
        return Activated(12.0, B / n_e)


@pytest.fixture(scope="module")
def fitted(made_up_tables):
    model = ModelSpec.from_config("deepseek-v3", kv_dtype="fp8")
    return LatencyModel.fit(made_up_tables, model=model, cluster=Cluster("h200-sxm"))


@pytest.fixture(scope="module")
def plain():
    cluster = Cluster("h100-sxm", gpus_per_node=4)
    return LatencyModel.roofline(ModelSpec.from_config("gpt-oss-20b"), cluster, efficiency=Efficiency(memory=0.7))


@pytest.fixture(scope="module")
def scaled(fitted):
    inner = ScaledLatencyModel(fitted, StepTerms(1.7, 4.0, 0.5), ["1A6E at B = 64"])
    return ScaledLatencyModel(inner, StepTerms(0.9, 0.0, 0.25))


@pytest.mark.parametrize("which", ["fitted", "plain", "scaled"])
def test_a_file_holds_everything(which, request, tmp_path):
    before = request.getfixturevalue(which)
    before.save(tmp_path / "latency.json")
    after = LatencyModel.load(tmp_path / "latency.json")
    assert type(after) is type(before)
    assert (after.model, after.cluster, after.expert_cluster) == (before.model, before.cluster, before.expert_cluster)
    assert after.efficiency == before.efficiency
    assert after.provenance == before.provenance
    for n_a, n_e, B, context in ((1, 4, 3, 17.5), (3, 20, 700, 3000.0), (2, 6, 64, 99_000.0)):
        assert after.tpot(n_a, n_e, B, context, Fixed()) == before.tpot(n_a, n_e, B, context, Fixed())
        assert after.sources(n_a, n_e, B, context, Fixed()) == before.sources(n_a, n_e, B, context, Fixed())
    assert to_dict(after) == to_dict(before)


def test_a_file_names_its_format(plain, tmp_path):
    plain.save(tmp_path / "latency.json")
    assert json.loads((tmp_path / "latency.json").read_text())["format"] == "janus.latency/1"


def test_a_scaled_model_keeps_its_terms_their_points_and_its_price(scaled, tmp_path):
    owned = Cluster(Hardware.preset("h200-sxm", usd_per_hour=7.0), gpus=24)
    scaled.owned(owned, owned).save(tmp_path / "latency.json")
    after = LatencyModel.load(tmp_path / "latency.json")
    assert after.terms == scaled.terms
    assert (after.base.terms, after.base.points) == (scaled.base.terms, ("1A6E at B = 64",))
    assert after.cluster == after.expert_cluster == owned
    assert after.tpot(2, 4, 64, 999.0, Fixed()) == scaled.tpot(2, 4, 64, 999.0, Fixed())


class Slower(LatencyModel):
    pass


class Free(ExchangeCost):
    pass


def test_what_a_file_cannot_bring_back_is_not_written(plain, tmp_path):
    args = plain.model, plain.cluster, plain.efficiency
    free = LatencyModel(*args, Free(plain.cost.model, 4))
    for other in (Slower(*args, plain.cost), free, ScaledLatencyModel(free, StepTerms())):
        with pytest.raises(JanusError, match=r"latency\.file.*not a (Slower|Free)"):
            other.save(tmp_path / "latency.json")
    assert not (tmp_path / "latency.json").exists()


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ((), {}, "scaled must be a list of 1 to 8 objects"),
        ((), [], "scaled must be a list of 1 to 8 objects, got 0"),
        ((0,), 3, "scaled[0] must be a JSON object"),
        ((0, "scale"), 0, "scaled[0] must have scale > 0"),
        ((0, "scale"), float("nan"), "scaled[0].scale must be a finite number"),
        ((1, "request_us"), -1, "scaled[1] must have scale > 0, request_us >= 0"),
        ((1, "row_us"), ..., "missing: ['row_us']"),
        ((0, "points"), ..., "scaled[0].points must be a list"),
        ((0, "points"), [3], "scaled[0].points must be a str"),
    ],
)
def test_nonsense_in_the_terms_is_refused(scaled, path, value, reason):
    with pytest.raises(JanusError) as caught:
        from_dict(changed(to_dict(scaled), ("scaled", *path), value))
    assert caught.value.code == "latency.file"
    assert reason in caught.value.message


def changed(data, path, value):
    """`data` with one nested value replaced, or removed by ``...``."""
    data = copy.deepcopy(data)
    *inner, last = path
    at = data
    for step in inner:
        at = at[step]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return data


FITTED = ("kernels", "fitted", 0)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("format",), "janus.latency/2", "format must be 'janus.latency/1'"),
        (("format",), 1, "format must be"),
        (("model",), ..., "missing: ['model']"),
        (("model", "hidden"), "7168", "model.hidden must be an integer"),
        (("model", "hidden"), -1, "model.hidden must be an integer"),
        (("model", "hidden"), 10**400, "model.hidden must be an integer"),
        (("model", "tied"), 1, "model.tied must be a bool"),
        (("model", "extra"), 1, "unknown: ['extra']"),
        (("model", "attention", "kind"), "linear", "model.attention.kind must be one of"),
        (("model", "attention", "window"), 1.5, "model.attention.window must be an integer"),
        (("model", "expert_dtype"), "fp6", "dtype must be one of"),
        (("model", "top_k"), 999, "top_k must lie in"),
        (("cluster", "hardware", "memory_bytes"), -1.0, "Hardware.memory_bytes must be"),
        (("cluster", "hardware"), "h100-sxm", "cluster.hardware must be a JSON object"),
        (("cluster", "memory_use"), "most", "cluster.memory_use must be a finite number"),
        (("efficiency", "memory"), 7.0, "at most 1"),
        (("efficiency", "memory"), None, "efficiency.memory must be a finite number"),
        (("cost", "links", "alpha_s"), {}, "alpha_s"),
        (("cost", "links", "foo"), 1, "unknown: ['foo']"),
        (("cost", "node_sizes"), [], "one or two sizes"),
        (("cost", "node_sizes"), [0], "cost.node_sizes must be an integer"),
        (("comm_floor_us",), -1, "comm_floor_us must be"),
        (("comm_floor_us",), True, "comm_floor_us must be"),
        (("notes",), {"prefill": "x"}, "a part in notes must be one of"),
        (("notes",), {"moe": 1}, "notes.moe must be text"),
        (("kernels",), [], "kernels must be a JSON object"),
        (("kernels", "fitted"), {}, "kernels.fitted must be a list"),
        ((*FITTED, "form"), "cubic", "form must be one of"),
        ((*FITTED, "coefficients", "fixed_us"), 0, "fixed_us must be a finite number > 0"),
        ((*FITTED, "coefficients", "fixed_us"), ..., "missing: ['fixed_us']"),
        ((*FITTED, "key", "dtype"), 8, "key.dtype must be a str"),
        ((*FITTED, "us"), [], "numbers for each of the 0 times"),
        ((*FITTED, "us", 0), -1, "numbers > 0"),
        ((*FITTED, "residual"), [0.0], "as many numbers as us"),
        ((*FITTED, "points", 0), [1], "must hold 3 numbers"),
        ((*FITTED, "error"), "small", "error must be a finite number"),
    ],
)
def test_nonsense_is_refused_with_the_field_and_the_rule(fitted, tmp_path, path, value, reason):
    file = tmp_path / "latency.json"
    file.write_text(json.dumps(changed(to_dict(fitted), path, value)))
    with pytest.raises(JanusError) as caught:
        LatencyModel.load(file)
    assert caught.value.code == "latency.file"
    assert reason in caught.value.message
    assert str(file) in caught.value.message


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "3", '{"format": "janus.latency/1"}', "NaN", "{" * 2000])
def test_what_is_no_latency_file_is_refused(tmp_path, text):
    file = tmp_path / "latency.json"
    file.write_text(text)
    with pytest.raises(JanusError, match=r"latency\.file"):
        LatencyModel.load(file)


def leaves(data, path=()):
    """Every path into nested JSON."""
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data[:3]):
            yield (*path, key)
            yield from leaves(value, (*path, key))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}), st.just(...),
    st.just([[1]]), st.just({"a": 1}), st.just(1e308), st.just(10**30),
)  # fmt: skip


@pytest.mark.parametrize("size", [0, -1.0])
def test_a_kernel_of_a_shape_without_size_is_refused(fitted, size):
    whole = to_dict(fitted)
    i = next(i for i, kernel in enumerate(whole["kernels"]["fitted"]) if kernel["form"] == "moe")
    with pytest.raises(JanusError, match="hidden must be a finite number > 0"):
        from_dict(changed(whole, ["kernels", "fitted", i, "key", "hidden"], size))


def test_a_residual_that_is_no_logarithm_of_a_ratio_is_refused(fitted):
    broken = changed(to_dict(fitted), ["kernels", "fitted", 0, "residual", 0], 10**30)
    with pytest.raises(JanusError, match=r"residual must hold logarithms .* from -69 to 69; got 1e\+30"):
        from_dict(broken)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_broken_field_raises_anything_but_a_janus_error(scaled, data):
    whole = to_dict(scaled)
    broken = changed(whole, data.draw(st.sampled_from(list(leaves(whole)))), data.draw(JUNK))
    try:
        latency = from_dict(broken)
    except JanusError:
        return
    latency.tpot(2, 4, 64, 1000.0, Fixed())
