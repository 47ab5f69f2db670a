"""Layer 2, gloo processes: experts over several ranks against the layer that has them all; refusals; losses; a model."""

from __future__ import annotations

import pytest

CASES = {
    1: [dict(E=5, K=2, C=6, tokens=[7])],
    2: [dict(E=7, K=3, C=5, tokens=[4, 9]), dict(E=3, K=1, C=2, tokens=[0, 5])],
    3: [dict(E=7, K=3, C=4, tokens=[5, 0, 11]), dict(E=8, K=8, C=3, tokens=[1, 2, 3])],
    4: [dict(E=13, K=4, C=5, tokens=[3, 0, 1, 8]), dict(E=6, K=2, C=5, tokens=[0, 0, 0, 6])],
}


def _cases(world):
    nothing = dict(E=6, K=2, C=6, tokens=[0] * world)
    return [case | {"scope": scope} for case in (*CASES[world], nothing) for scope in ("batch", "rank")]


@pytest.mark.parametrize("world", CASES)
def test_the_same_as_the_layer_with_all_experts_in_every_regime(parallel_nursery, world):
    values = parallel_nursery.values("parallel_same", world, cases=_cases(world))
    assert (sum(map(sum, (value["rows"] for value in values))) > 0) == (world > 1), "rows have travelled"
    assert any(value["idle"] > 2 for value in values) == (world > 1)


@pytest.mark.parametrize("method", ["greedy", "tokens", "random", "round_robin"])
def test_every_method_of_balancing(parallel_nursery, method):
    cases = [CASES[3][0] | {"scope": scope, "method": method} for scope in ("batch", "rank")]
    parallel_nursery.values("parallel_same", 3, cases=cases)


@pytest.mark.parametrize(
    "topology",
    [{"attention": [[0, 1]], "experts": [[2, 3]]}, {"attention": [[3, 1]], "experts": [[0], [2]]}],
    ids=["two nodes of two", "mixed up"],
)
def test_over_nodes(parallel_nursery, topology):
    values = parallel_nursery.values("parallel_same", 4, cases=_cases(4), topology=topology)
    assert any(sum(value["rows"]) for value in values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(parallel_nursery, dtype):
    parallel_nursery.values("parallel_halves", 3, dtype=dtype)


@pytest.mark.parametrize("world", [1, 3])
def test_batches_that_outgrow_the_room_of_the_ids(parallel_nursery, world):
    parallel_nursery.values("parallel_sizes", world)


@pytest.mark.parametrize(
    ("field", "odd"),
    [
        ("placement", {"C": 4}),
        ("weights", {"dtype": "bfloat16"}),
        ("weights", {"hidden": 14}),
        ("balance", {"method": "greedy"}),
        ("scope", {"scope": "rank"}),
        ("quantize", {"quantize": "int8"}),
    ],
)
def test_layers_that_differ_are_refused_on_every_rank_with_one_sentence(parallel_nursery, field, odd):
    values = parallel_nursery.values("parallel_contract", 3, per_rank=[{}, odd, {}])
    assert values == [values[0]] * 3
    code, message = values[0]
    assert code == "comm.contract"
    assert f"every rank must give the same {field}; rank 0 has" in message


def test_a_placement_for_another_number_of_ranks_is_refused_everywhere(parallel_nursery):
    values = parallel_nursery.values("parallel_contract", 3, per_rank=[{"instances": 2}] * 3)
    assert {code for code, _ in values} == {"placement.instances"}
    assert "the group has 3 ranks, the placement 2 instances" in values[0][1]


def test_a_rank_that_makes_no_layer_is_named_in_time(parallel_nursery):
    per_rank = [{}, {"E": 10, "C": 1, "instances": 20, "method": "fairly"}, {}]  # refused before anybody is asked
    values = parallel_nursery.values("parallel_contract", 3, per_rank=per_rank)
    assert values == [["lost rendezvous", "1"], ["sched.method", values[1][1]], ["lost rendezvous", "1"]]


JOINT = {"top_k": "top_k", "weights": "weights_dtype", "order": "layer"}
ALONE = {
    "shape": "layer.shape",
    "no tensor": "layer.shape",
    "ids": "layer.dtype",
    "kind": "layer.dtype",
    "dtype": "layer.dtype",
}


@pytest.mark.parametrize("scope", ["batch", "rank"])
def test_calls_that_do_not_fit_together_are_refused_and_the_group_goes_on(parallel_nursery, scope):
    values = parallel_nursery.values("parallel_calls", 3, scope=scope)
    for name, field in JOINT.items():
        assert [value[name] for value in values] == [values[0][name]] * 3
        code, message = values[0][name]
        assert code == "experts.call"
        assert f"; {field} differs: rank 0 has" in message
        assert "rank 1 has" in message
    alone = ALONE | ({"range": "sched.range"} if scope == "rank" else {})
    for name, code in alone.items():  # who made the mistake hears of it, the others of who made it
        assert [value[name][0] for value in values] == ["experts.refused", code, "experts.refused"], name
        assert "rank 1 refused its call" in values[2][name][1]
    if scope == "batch":
        assert {value["range"][0] for value in values} == {"sched.range"}
    assert {value["gradient"][0] for value in values} == {"layer.grad"}
    assert {value["none"][0] for value in values} == {""}


@pytest.mark.parametrize(("sig", "timeout_s"), [("SIGKILL", 15.0), ("SIGSTOP", 1.5)])
def test_a_lost_rank_is_named_before_the_deadline(parallel_nursery, sig, timeout_s):
    outcomes = parallel_nursery.run("parallel_lost", 3, victim=1, sig=sig, timeout_s=timeout_s, deadline_s=40)
    for outcome in outcomes[::2]:
        assert outcome.exit_code == 0, outcome.error
        code, peer, seconds = outcome.value
        assert (code, peer) == ("lost all_to_all", "1")
        assert seconds < 8
    assert outcomes[1].signal is not None


def test_a_rank_that_fails_in_its_slots_is_lost_to_the_others_and_goes_no_further(parallel_nursery):
    values = parallel_nursery.values("parallel_failing", 3, victim=2)
    first, then = zip(*values, strict=True)
    assert [code for code, _ in first] == ["lost all_to_all", "lost all_to_all", "test.failed"]
    assert [code for code, _ in then] == ["lost all_to_all", "lost all_to_all", "experts.broken"]
    assert {peer for code, peer in first[:2]} == {"2"}
    assert "NoneType" in then[2][1]


@pytest.mark.parametrize(("family", "scope"), [("olmoe", "batch"), ("deepseek_v3", "rank")])
def test_a_converted_model_keeps_its_own_slots_and_generates_unequal_lengths(parallel_nursery, family, scope):
    values = parallel_nursery.values("parallel_model", 3, family=family, scope=scope)
    assert all(value["same"] for value in values)
    per_expert = 3 * 64 * (48 if family == "olmoe" else 32)
    layers = 3 - (family != "olmoe")
    for value in values:  # 9 of 16 experts' worth of slots in each MoE layer
        assert value["before"] - value["kept"] == layers * (16 - 9) * per_expert
