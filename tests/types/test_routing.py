"""RoutingTrace: counting, sampling, drawing from counts, and what is refused."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from type_strategies import NONSENSE, only_janus_error, refuses, routing_traces

from janus.types import RoutingTrace, read_expert_counts, sample


@pytest.fixture(scope="module")
def gptoss() -> RoutingTrace:
    return RoutingTrace.load(sample("gptoss20b-routing"))


def distinct(batch_BLK: np.ndarray) -> float:
    return float(np.mean([len(np.unique(batch_BLK[:, layer])) for layer in range(batch_BLK.shape[1])]))


@given(routing_traces().filter(lambda trace: trace.num_experts <= 257))
@settings(max_examples=60, deadline=None)
def test_counts_and_coactivation_equal_plain_loops(trace):
    counts = np.zeros((trace.num_layers, trace.num_experts), dtype=np.int64)
    pairs = np.zeros((trace.num_layers, trace.num_experts, trace.num_experts), dtype=np.int64)
    for token in trace.ids.tolist():
        for layer, chosen in enumerate(token):
            for e in chosen:
                counts[layer, e] += e >= 0
            for e in set(chosen) - {-1}:
                for f in set(chosen) - {-1, e}:
                    pairs[layer, e, f] += 1
    assert (trace.counts() == counts).all()
    for layer in range(trace.num_layers):
        assert (trace.coactivation(layer) == pairs[layer]).all()


def test_coactivation_is_summed_over_chunks(monkeypatch, gptoss):
    whole = gptoss.coactivation(2)
    monkeypatch.setattr("janus.types.routing.COACTIVATION_CHUNK", 100)
    assert (gptoss.coactivation(2) == whole).all()
    assert (whole == whole.T).all()
    assert whole.sum() == gptoss.num_tokens * 4 * 3


@given(NONSENSE, NONSENSE, NONSENSE)
@settings(max_examples=150, deadline=None)
def test_nonsense_is_refused_as_a_routing_error(first, second, third):
    good = [[[0, 1]], [[1, 2]]]
    only_janus_error("routing.", RoutingTrace, first, second)
    only_janus_error("routing.", RoutingTrace, good, first)
    only_janus_error("routing.", RoutingTrace, good, 3, request=first, step=second)
    only_janus_error("routing.", RoutingTrace.from_requests, first, second)
    only_janus_error("routing.", RoutingTrace.from_counts, first, second, tokens=4)
    only_janus_error("routing.", RoutingTrace.from_counts, [[3, 1]], first, tokens=4, seed=second)
    trace = RoutingTrace(good, 3)
    only_janus_error("routing.", trace.coactivation, first)
    only_janus_error("routing.", trace.sample, second, first)
    only_janus_error("routing.", trace.sample, 2, np.random.default_rng(0), how=first)
    only_janus_error("routing.", trace.steps, first, second)
    only_janus_error("routing.", RoutingTrace.synthetic, like=first, num_experts=4, top_k=2, tokens=4)


@given(NONSENSE)
@settings(max_examples=60, deadline=None)
def test_nonsense_sizes_of_a_synthetic_model_are_refused(value):
    trace = RoutingTrace([[[0, 1]]], 3)
    sizes = {"num_experts": 4, "top_k": 2, "num_layers": 2, "tokens": 4, "seed": 0}
    for name in ("top_k", "seed"):
        only_janus_error("routing.", RoutingTrace.synthetic, like=trace, **(sizes | {name: value}))
    if (
        not isinstance(value, int) or isinstance(value, bool) or value < 100
    ):  # a large size is honest work, not nonsense
        for name in ("num_experts", "num_layers", "tokens"):
            only_janus_error("routing.", RoutingTrace.synthetic, like=trace, **(sizes | {name: value}))


@pytest.mark.parametrize(
    ("code", "words", "args"),
    [
        ("routing.shape", "integers [T, L, K]; got float64", (np.zeros((2, 1, 1)), 4)),
        ("routing.shape", "at least one layer and one choice, got (2, 0, 1)", (np.zeros((2, 0, 1), int), 4)),
        ("routing.range", "0..3; token 1, layer 0 holds 4", ([[[0]], [[4]]], 4)),
        ("routing.range", "holds 65536", ([[[65536]]], 4)),
        ("routing.range", "1..32767, got 40000", ([[[0]]], 40_000)),
    ],
)
def test_a_bad_trace_names_rule_and_value(code, words, args):
    refuses(code, words, RoutingTrace, *args)


def test_request_and_step_belong_together():
    ids = np.zeros((2, 1, 1), int)
    refuses("routing.step", "both be integers", RoutingTrace, ids, 1, request=[0, 1])
    refuses("routing.step", "T = 2; got an array of int64 (1,)", RoutingTrace, ids, 1, request=[0], step=[0])
    refuses("routing.step", "occurs twice", RoutingTrace, ids, 1, request=[0, 0], step=[1, 1])


def test_flattening_keeps_request_and_step():
    topk = np.arange(2 * 3 * 4 * 1).reshape(2, 3, 4, 1)
    trace = RoutingTrace.from_requests(topk, 24)
    for t, (request, step) in enumerate(zip(trace.request, trace.step, strict=True)):
        assert t == request * 3 + step
        assert (trace.ids[t] == topk[request, step]).all()


def test_a_step_batch_is_one_step_of_distinct_requests(gptoss):
    rng = np.random.default_rng(0)
    requests, steps = 5, 7
    where = np.arange(requests * steps).reshape(requests, steps, 1, 1)  # the id names request and step
    trace = RoutingTrace.from_requests(where, requests * steps)
    for _ in range(20):
        batch = trace.sample(5, rng, how="step").ravel()
        assert len(set(batch % steps)) == 1
        assert sorted(batch // steps) == [0, 1, 2, 3, 4]
    refuses("routing.step", "at most 5", trace.sample, 6, rng, how="step")
    refuses("routing.step", 'use how="tokens"', RoutingTrace(where.reshape(-1, 1, 1), 35).sample, 2, rng, how="step")
    refuses("routing.sample", "'tokens', 'step'", trace.sample, 2, rng, how="steps")
    assert gptoss.sample(192, rng, how="step").shape == (192, 24, 4)


def test_tokens_are_drawn_without_replacement_until_they_run_out():
    trace = RoutingTrace(np.arange(10).reshape(10, 1, 1), 10)
    rng = np.random.default_rng(0)
    assert sorted(trace.sample(10, rng).ravel()) == list(range(10))
    assert trace.sample(0, rng).shape == (0, 1, 1)
    assert len(set(trace.sample(25, rng).ravel())) < 25
    refuses("routing.shape", "0 tokens", RoutingTrace(np.zeros((0, 1, 1), int), 1).sample, 1, rng)


def test_every_token_is_equally_likely():
    trace, rng = RoutingTrace(np.arange(8).reshape(8, 1, 1), 8), np.random.default_rng(0)
    seen = np.bincount(np.concatenate([trace.sample(3, rng).ravel() for _ in range(4000)]), minlength=8)
    assert abs(seen - 1500).max() < 5 * np.sqrt(4000 * 3 / 8 * 5 / 8)  # 5 sigma


def test_a_real_step_activates_as_many_experts_as_independent_tokens(gptoss):
    rng = np.random.default_rng(0)
    for B in (8, 64):
        tokens, steps = (
            np.mean([distinct(gptoss.sample(B, rng, how=how)) for _ in range(40)]) for how in ("tokens", "step")
        )
        assert abs(tokens - steps) < 0.03 * tokens  # measured 0.5 %; noise of 40 draws about 0.5 %


def test_steps_leave_out_a_chat_template(gptoss):
    late = gptoss.steps(60, 200)
    assert set(late.step.tolist()) == {63, 73, 83, 93, 103, 113, 123}
    assert "steps 60..199" in late.source
    refuses("routing.step", "steps run to 123", gptoss.steps, 124, 200)
    refuses("routing.step", "does not know", RoutingTrace([[[0]]], 1).steps, 0, 1)


def test_drawn_tokens_have_the_popularity_of_the_counts():
    counts = read_expert_counts(sample("olmoe-mixtral-counts"))["olmoe/github"]
    trace = RoutingTrace.from_counts(counts, 8, tokens=20_000, seed=1, source="olmoe/github")
    assert (np.diff(np.sort(trace.ids, axis=2), axis=2) > 0).all()  # distinct within a token
    expected = 20_000 * 8 * counts / counts.sum(axis=1, keepdims=True)
    off = abs(trace.counts() - expected).sum(axis=1) / 2 / (20_000 * 8)
    assert off.max() < 0.012  # total variation; sampling noise alone is about 0.006
    hot = expected.argmax(axis=1)
    assert np.allclose(trace.counts()[range(3), hot], expected[range(3), hot], rtol=0.03)
    assert trace.source == "tokens drawn independently from counts: olmoe/github"
    assert not trace.synthetic


def test_drawing_is_a_function_of_its_seed():
    one, two, other = (RoutingTrace.from_counts([[5, 3, 2, 1]], 2, tokens=50, seed=seed) for seed in (3, 3, 4))
    assert one == two
    assert one != other


def test_counts_that_cannot_fill_a_token_are_refused():
    refuses("routing.counts", "3 distinct experts, but only 2", RoutingTrace.from_counts, [[4, 4, 0, 0]], 3)
    refuses("routing.counts", "got -1 at [0, 1]", RoutingTrace.from_counts, [[4, -1]], 1)
    refuses("routing.shape", "1..2, got 3", RoutingTrace.from_counts, [[4, 4]], 3)


def test_a_synthetic_trace_has_the_quantiles_of_the_real_one(gptoss):
    trace = RoutingTrace.synthetic(like=gptoss, num_experts=160, top_k=6, num_layers=12, tokens=4000, seed=2)
    assert (trace.num_experts, trace.top_k, trace.num_layers, trace.num_tokens) == (160, 6, 12, 4000)
    assert trace.synthetic is True
    assert trace.source.startswith("synthetic routing like [recorded: gpt-oss-20b")
    real, made = gptoss.counts(), trace.counts()
    for layer in range(12):
        old = np.sort(real[layer * 2] / real[layer * 2].mean())
        new = np.sort(made[layer] / made[layer].mean())
        levels = np.linspace(0.02, 0.98, 25)
        gap = np.quantile(new, levels) - np.quantile(old, levels)
        assert abs(gap).mean() < 0.08  # in units of the mean popularity; noise of 150 choices per expert is about 0.08
    assert made.argmax(axis=1).std() > 20  # the hot expert sits anywhere in 0..159


def test_a_synthetic_trace_of_the_same_size_keeps_the_popularities(gptoss):
    trace = RoutingTrace.synthetic(like=gptoss, num_experts=32, top_k=4, tokens=20_000)
    real, made = (np.sort(t.counts() / t.counts().sum(axis=1, keepdims=True)) for t in (gptoss, trace))
    assert abs(real - made).sum(axis=1).max() / 2 < 0.012


def test_the_flag_and_the_maker_share_a_name(gptoss):
    assert gptoss.synthetic is False
    assert callable(RoutingTrace.synthetic)
    with pytest.raises(AttributeError, match="frozen"):
        gptoss.synthetic = True
    assert pickle.loads(pickle.dumps(gptoss)) == gptoss
    assert not pickle.loads(pickle.dumps(gptoss)).ids.flags.writeable


def test_like_must_hold_choices():
    empty = RoutingTrace(np.full((3, 1, 2), -1), 4)
    refuses("routing.counts", "only 0 have any", RoutingTrace.synthetic, like=empty, num_experts=4, top_k=2)
    refuses("routing.shape", "like must be a RoutingTrace", RoutingTrace.synthetic, like=None, num_experts=4, top_k=2)
