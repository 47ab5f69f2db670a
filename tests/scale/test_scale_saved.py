"""Plans read back from files: the same plan, or a `JanusError` that names the field."""

import contextlib
import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus import JanusError
from janus.scale import SavedPlan, plan
from janus.scale.plans import saved
from janus.scale.plans.plan_fields import CHECKS


@pytest.fixture(scope="module")
def infeasible(olmoe, small_cluster, skewed):
    return plan(
        olmoe, small_cluster, demand=3000, slo=0.1, trace=skewed(16, 64), context=400, max_attention=3, max_experts=4,
        max_batch=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def good(small_plan):
    return json.loads(json.dumps(small_plan.to_dict()))


def refusal(data):
    with pytest.raises(JanusError) as error:
        SavedPlan.from_dict(data)
    return error.value


def changed(data, path, value):
    """A copy with one value replaced."""
    out = copy.deepcopy(data)
    holder = out
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return out


def test_a_saved_plan_says_what_the_plan_said(small_plan, tmp_path):
    small_plan.save(tmp_path / "plan.json")
    found = SavedPlan.load(tmp_path / "plan.json")
    names = ("feasible", "binding", "verdict", "disaggregate", "n_attention", "n_experts", "gpus", "batch", "slo")
    assert [getattr(found, n) for n in names] == [getattr(small_plan, n) for n in names]
    assert found.tpot_ms == small_plan.tpot_ms
    assert found.topology == small_plan.topology
    assert found.placement == small_plan.placement
    assert (found.model, found.hardware) == ("olmoe-1b-7b", "toy")
    assert found.data == json.loads((tmp_path / "plan.json").read_text())
    with pytest.raises(AttributeError):
        found.batch = 1  # type: ignore[misc]


def test_an_infeasible_plan_has_no_pools(infeasible, tmp_path):
    infeasible.save(tmp_path / "plan.json")
    found = SavedPlan.load(tmp_path / "plan.json")
    assert (found.feasible, found.gpus, found.batch, found.binding) == (False, 0, 0, "slo")
    assert found.topology is None
    assert found.placement is None
    assert math.isnan(found.tpot_ms)


def test_fields_of_later_versions_are_kept(good):
    found = SavedPlan.from_dict({**good, "usd_per_hour": 12.5})
    assert found.data["usd_per_hour"] == 12.5


@pytest.mark.parametrize("name", CHECKS)
def test_a_missing_field_is_named(good, name):
    error = refusal({key: value for key, value in good.items() if key != name})
    assert error.code == "plan.file"
    assert name in error.message


@pytest.mark.parametrize("name", CHECKS)
def test_a_field_of_another_type_is_refused(good, name):
    for value in (object(), 1j, np.zeros(2)):
        assert refusal({**good, name: value})


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("context",), float("nan"), "context must be a finite number > 0"),
        (("context",), 10**400, "context"),
        (("demand",), -1, "demand"),
        (("headroom", "rate"), 0.5, "headroom.rate must be a finite number >= 1"),
        (("headroom", "length"), True, "headroom.length"),
        (("headroom",), 1.0, "headroom must be an object"),
        (("feasible",), 1, "feasible must be true or false"),
        (("prefill",), "here", "prefill must be one of"),
        (("slots_per_instance",), 0, "slots_per_instance"),
        (("slo", "tpot_ms"), float("inf"), "slo.tpot_ms"),
        (("slo", "percentile"), 101, "percentile"),
        (("pick", "n_a"), 2.0, "pick.n_a"),
        (("pick", "tpot_ms"), None, "pick.tpot_ms"),
        (("pick", "gpus"), 99, "pick.gpus must be"),
        (("pick", "breakdown", "moe"), -1, "pick.breakdown.moe"),
        (("colocated", "copies"), 7, "colocated.gpus must be"),
        (("candidates",), {}, "candidates must be a list"),
        (("candidates", 3, "n_e"), "4", "candidates[3].n_e"),
        (("candidates", 0, "detail"), None, "candidates[0].detail"),
        (("rejections", "slo"), -2, "rejections.slo"),
        (("rejections",), [1], "rejections must be an object"),
        (("topology", "experts"), [[0]], "rank plays one role"),
        (("placement", "num_experts"), 2**40, "every expert needs a slot"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(good, path, value, says):
    assert says in refusal(changed(good, path, value)).message


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("feasible",), False, "feasible must be true"),
        (("binding",), "slo", "binding must name"),
        (("topology", "attention"), [[50, 51, 52, 53, 54, 55, 56]], "topology must have the pick's pools"),
        (("topology",), None, "topology must have the pick's pools"),
        (("placement",), None, "placement must have the pick's expert instances"),
        (("slots_per_instance",), 1, "slots_per_instance slots"),
        (("pick", "batch"), 1, "pick must be one of the candidates"),
        (("rejections",), {}, "rejections must count"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(good, path, value, says):
    error = refusal(changed(good, path, value))
    assert error.code == "plan.file"
    assert says in error.message


@pytest.mark.parametrize("data", [None, [], "plan", {}, {"format": 1}, {"format": "janus.placement/1"}])
def test_what_is_no_plan_is_refused(data):
    assert refusal(data).code == "plan.file"


def test_a_later_format_is_told_apart(good):
    assert "this version of Janus reads janus.plan/1" in refusal({**good, "format": "janus.plan/2"}).message


def test_whatever_is_wrong_with_a_file_is_the_files_mistake(good, tmp_path):
    path = tmp_path / "plan.json"
    text = json.dumps(changed(good, ("slo", "percentile"), 101))
    for content in (text, text[: len(text) // 2], "", "[" * 100_000, json.dumps({**good, "context": float("nan")})):
        path.write_text(content)
        with pytest.raises(JanusError, match=r"plan\.json") as error:
            SavedPlan.load(path)
        assert error.value.code == "plan.file"


def test_a_file_above_the_limit_is_not_read(small_plan, tmp_path, monkeypatch):
    small_plan.save(tmp_path / "plan.json")
    monkeypatch.setattr(saved, "MAX_BYTES", 1000)
    with pytest.raises(JanusError, match="at most 1000 bytes") as error:
        SavedPlan.load(tmp_path / "plan.json")
    assert error.value.code == "plan.file"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(name=st.sampled_from(sorted(CHECKS)), value=JSON)
def test_any_value_in_any_field_gives_a_plan_or_a_refusal(good, name, value):
    with contextlib.suppress(JanusError):
        assert SavedPlan.from_dict({**good, name: value}).gpus >= 0


def test_the_gpus_of_both_pools_are_read_back(good):
    assert SavedPlan.from_dict(changed(good, ["expert_hardware"], "other")).expert_hardware == "other"
    older = {name: value for name, value in good.items() if name != "expert_hardware"}
    assert SavedPlan.from_dict(older).expert_hardware == good["hardware"]
    assert "expert_hardware" in refusal(changed(good, ["expert_hardware"], 5)).message
