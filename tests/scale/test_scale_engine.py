"""A step of a colocated engine against sums done by hand, and what must rise or fall with what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.errors import JanusError
from janus.scale import Cluster, EngineCoefficients, EngineConfig, EngineModel, Hardware, ModelSpec
from janus.scale.engine.fit import fit_log_positive
from janus.scale.engine.work import borrowed_popularity, decode_work, prefill_work, touched
from janus.scale.model import AttentionSpec

# Attention 2.4 million parameters a layer, the dense layer 6, an expert 0.3 (0.6 MB), head and embedding 1 each;
# 800 bytes of cache per token and layer.
TOY = ModelSpec(
    name="toy", layers=2, moe_layers=1, hidden=1000, experts=8, top_k=2, expert_width=100, shared_width=0, dense_width=2000,
    vocab=1000, attention=AttentionSpec("gqa", 10, 2, 100, 100),
)  # fmt: skip
GPU = Hardware("round", 6 * 2**30, 1e12, 1e14, 2e14, 1e11, 4, 80)
CLUSTER = Cluster(GPU)
CONFIG = EngineConfig(TOY, CLUSTER, batch=4, isl=100, osl=200)
ROUND = EngineCoefficients(memory=0.5, compute=0.5, link=0.5, layer_us=10, message_us=5, step_ms=0.1)
TWO = [1, 1, 0, 0, 0, 0, 0, 0]  # every token chooses these two experts
GPT = ModelSpec.from_config("gpt-oss-120b")
DEEPSEEK = ModelSpec.from_config("deepseek-v3")
H200 = Cluster("h200-sxm")


def step(config=CONFIG, popularity=TWO, coefficients=ROUND):
    return EngineModel(coefficients, popularity).step(config)


def test_the_parts_of_a_step_on_one_gpu_are_those_done_by_hand():
    got = step()
    # (10.8 + 1) million weights of 2 bytes, 4 requests x 200 tokens x 2 layers x 800 bytes: 24.88 MB at 0.5 TB/s
    # 4 x 2 x 11.8 MFLOP and 4 x 400 x 4000 FLOP of scores: 100.8 MFLOP at 50 TFLOP/s
    assert got.attention == pytest.approx(0.04976 + 0.002016)
    assert got.moe == pytest.approx(0.0024 + 0.000096)  # two experts; 8 routed tokens x 0.6 MFLOP
    assert got.fixed == pytest.approx(2 * 0.01 + 0.1)
    assert got.comm == 0
    # 4 / 200 prompts per step, each 2160 + 40 + 120 MFLOP and the launches of two layers
    assert got.prefill == pytest.approx(0.02 * (0.0464 + 0.02))
    assert got.tpot == pytest.approx(sum(got[:5]))
    assert got.running == 4


def test_tensor_parallel_halves_reads_and_pays_two_collectives_per_layer():
    one, two = step(), step(replace(CONFIG, tp=2))
    assert two.attention == pytest.approx(one.attention / 2)
    assert two.moe == pytest.approx(one.moe / 2)
    # a ring of two moves 4 x 2000 bytes, twice per layer, two layers: 32 kB at 50 GB/s; four collectives of 5 us
    assert two.comm == pytest.approx(0.00064 + 0.02)


def test_a_norm_over_all_heads_is_one_more_collective_per_layer():
    full = replace(TOY, attention=replace(TOY.attention, qk_norm="full"))
    plain, more = step(replace(CONFIG, tp=2)), step(replace(CONFIG, model=full, tp=2))
    assert more.comm - plain.comm == pytest.approx(2 * 0.005)
    assert step(replace(CONFIG, model=full)).comm == 0


def test_latent_cache_is_not_cut_by_tensor_parallelism_and_head_caches_at_most_by_their_heads():
    latent = EngineConfig(DEEPSEEK, H200, 4, 1024, 1024, tp=8)
    assert latent.cache_bytes_per_token == DEEPSEEK.kv_bytes_per_token()
    named = replace(DEEPSEEK, attention=replace(DEEPSEEK.attention, kv_heads=128))  # as config.json writes it
    assert replace(latent, model=named).cache_bytes_per_token == DEEPSEEK.kv_bytes_per_token()
    assert replace(CONFIG, tp=2).cache_bytes_per_token == 400
    assert replace(CONFIG, tp=4).cache_bytes_per_token == 400  # two key/value heads


def test_attention_data_parallel_copies_weights_and_divides_requests():
    one, two = step(), step(replace(CONFIG, dp=2))
    weights = 23.6e6 / 0.5e12 * 1e3
    assert two.attention - weights == pytest.approx((one.attention - weights) / 2)
    assert two.moe == pytest.approx(one.moe / 2)  # the experts are cut over both
    assert two.comm == pytest.approx(0.00032 + 0.01)  # rows gathered and scattered once per layer


def test_expert_parallel_ranks_hold_whole_experts_and_the_busiest_counts():
    everyone = replace(TOY, top_k=8)
    cut = step(replace(CONFIG, model=everyone, tp=2), [1] * 8)
    whole = step(replace(CONFIG, model=everyone, tp=2, ep=2), [1] * 8)
    assert whole.moe == pytest.approx(cut.moe)
    assert step(replace(CONFIG, tp=2, ep=2)).moe > step(replace(CONFIG, tp=2)).moe  # two hot experts may sit together


def test_pipeline_stages_share_the_requests_and_pass_the_weights_in_turn():
    one, two = step(), step(replace(CONFIG, pp=2))
    weights = 23.6e6 / 0.5e12 * 1e3
    assert two.attention - weights == pytest.approx((one.attention - weights) / 2)
    assert two.comm == pytest.approx(0.005)
    assert two.fixed == one.fixed
    assert two.prefill == pytest.approx(one.prefill / 2)
    assert replace(CONFIG, tp=2, dp=2, pp=2).gpus == 8


def test_engines_wider_than_a_node_pay_for_the_network():
    inside, across = (step(replace(CONFIG, tp=tp, batch=400)).comm for tp in (4, 8))
    # 400 rows of 2 kB, twice in two layers: 2 x 3/4 of them on the link, half of 2 x 1/2 ... a quarter each on a card
    link, card = 4 * 1.5 * 8e5 / 0.5e11 * 1e3, 4 * 8e5 / 4 / 0.5e10 * 1e3
    assert inside == pytest.approx(link + 0.02)
    assert across == pytest.approx(link + card + 0.02)


def test_longer_answers_dilute_the_prompts():
    short, long = step(), step(replace(CONFIG, osl=400))
    assert long.prefill == pytest.approx(short.prefill / 2)


def test_a_prompt_reads_the_experts_that_no_decode_touched():
    before, after = touched((0.5,) * 4, 2, 1), touched((0.5,) * 4, 102, 1)
    work = prefill_work(CONFIG, before, after)
    assert work.moe_read == pytest.approx((after.distinct - before.distinct) * 0.6e6 / 1e12 * 1e3)
    assert prefill_work(CONFIG, after, after).moe_read == 0


def test_a_window_bounds_what_decode_and_prompt_look_at():
    windowed = replace(TOY, attention=replace(TOY.attention, window=10, window_layers=1))
    full, cut = (decode_work(replace(CONFIG, model=m), 4, touched((1.0,), 4, 1)) for m in (TOY, windowed))
    assert full.attention_read - cut.attention_read == pytest.approx(4 * 190 * 800 / 1e12 * 1e3)


def test_sparse_attention_reads_every_index_key_and_few_cached_tokens():
    v32 = ModelSpec.from_config("deepseek-v3.2")
    config = EngineConfig(v32, H200, 8, 32_000, 1000, tp=8)
    none = touched((1.0,), 8, 1)
    sparse = decode_work(config, 8, none).attention_read
    weights = decode_work(config, 1e-12, none).attention_read
    index = v32.index_bytes_per_token
    cached = 8 * v32.layers * (2048 * (v32.kv_bytes_per_token() - index) + 32_500 * index)
    assert sparse - weights == pytest.approx(1e3 * cached / 4.8e12)


def test_memory_bounds_what_runs():
    config = replace(CONFIG, isl=100_000, osl=20_000, batch=500)
    room = CLUSTER.usable_bytes - config.weight_bytes
    assert config.running() == pytest.approx(room / (110_000 * 2 * 800))
    assert replace(config, dp=2).running() > 1.9 * config.running()
    assert step(config).running == config.running()
    assert step(config).tpot == pytest.approx(step(replace(config, batch=5000)).tpot)


def test_a_model_too_large_for_its_gpus_is_refused_with_both_sizes():
    with pytest.raises(JanusError, match=r"need 6[0-9][0-9] GiB per GPU, usable are 127 GiB; raise tp"):
        EngineModel().predict(EngineConfig(DEEPSEEK, H200, 4, 1024, 1024))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": 0}, "batch must be a whole number >= 1, got 0"),
        ({"batch": 2.5}, "batch must be a whole number"),
        ({"osl": 1}, "osl must be a whole number >= 2, got 1"),
        ({"tp": True}, "tp must be a whole number"),
        ({"ep": 3}, "ep must divide tp x dp"),
        ({"tp": 16, "ep": 16}, "at most the model's 8 experts"),
        ({"tp": 12}, "tp is at most 10 heads"),
        ({"pp": 3}, "pp at most 2 layers"),
        ({"cluster": "h100-sxm"}, "takes a ModelSpec and a Cluster, got ModelSpec, str"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, says):
    with pytest.raises(JanusError, match=says):
        replace(CONFIG, **change)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "fast"])
def test_coefficients_are_positive_numbers(value):
    with pytest.raises(JanusError, match=r"EngineCoefficients\.layer_us"):
        EngineCoefficients(layer_us=value)


@pytest.mark.parametrize("counts", [[], [0, 0], [1, -1], [float("nan")], [[1, 2]], ["many"], 3])
def test_popularity_is_one_row_of_counts(counts):
    with pytest.raises(JanusError, match="one layer's counts per expert"):
        EngineModel(popularity=counts)


@given(
    batch=st.integers(1, 300), isl=st.integers(1, 9000), osl=st.integers(2, 9000), tp=st.sampled_from([1, 2, 4, 8]),
    model=st.sampled_from([GPT, replace(GPT, expert_dtype="fp8", dense_dtype="fp8")]),
)  # fmt: skip
def test_more_requests_or_longer_prompts_never_shorten_a_step(batch, isl, osl, tp, model):
    config = EngineConfig(model, H200, batch, isl, osl, tp=tp)
    engine = EngineModel()
    if config.running() < batch:
        return  # what runs then falls with the length of a request
    base = engine.predict(config)
    assert engine.predict(replace(config, batch=batch + 1)) >= base * (1 - 1e-9)
    longer = replace(config, isl=isl + 100)
    if longer.running() >= batch:
        assert engine.predict(longer) > base


@given(tp=st.sampled_from([1, 2, 4]), dp=st.sampled_from([1, 2]), batch=st.integers(1, 64), osl=st.integers(2, 999))
def test_the_row_times_the_factors_is_the_step(tp, dp, batch, osl):
    config = replace(CONFIG, tp=tp, dp=dp, ep=dp, batch=batch, osl=osl)
    engine = EngineModel(ROUND, TWO)
    assert engine.work_row(config) @ ROUND.factors == pytest.approx(engine.predict(config))


@given(
    p=st.lists(st.floats(0, 1), min_size=1, max_size=9), tokens=st.floats(0, 200), ep=st.integers(1, 4)
)  # fmt: skip
def test_touched_experts_lie_between_an_even_share_and_all(p, tokens, ep):
    got, alone = touched(tuple(p), tokens, ep), touched(tuple(p), tokens, 1)
    assert alone.distinct == pytest.approx(sum(1 - (1 - q) ** tokens for q in p))
    assert alone.tokens == pytest.approx(tokens * sum(p))
    for part, total in zip(got, alone, strict=True):
        assert total / ep <= part * (1 + 1e-9) + 1e-12
        assert part <= total * (1 + 1e-9) + 1e-12


def test_the_busiest_rank_is_what_drawing_tokens_and_ranks_gives():
    """Plain reference: independent choices by coin, experts dealt to ranks at random."""
    p, rng, most = borrowed_popularity(32, 4), np.random.default_rng(1), []
    for _ in range(2000):
        active = (rng.random((16, 32)) < p).any(axis=0)
        most.append(rng.permutation(active).reshape(4, 8).sum(axis=1).max())
    # of the expectations, not of the draws: somewhat below the mean of the maxima
    assert 0.8 * np.mean(most) < touched(p, 16, 4).distinct < np.mean(most)


def test_borrowed_popularity_is_skewed_and_sums_to_top_k():
    p = borrowed_popularity(256, 8)
    assert sum(p) == pytest.approx(8)
    assert list(p) == sorted(p, reverse=True)
    assert p[0] > 2 * 8 / 256 > 8 / 256 > 2 * p[-1]
    uniform = 256 * (1 - (1 - 8 / 256) ** 64)
    assert touched(p, 64, 1).distinct < 0.95 * uniform


def test_borrowed_routing_says_so():
    assert EngineModel().routing.startswith("synthetic routing")
    assert EngineModel(popularity=[1, 2]).routing == "routing by the popularity given"


def test_a_fit_recovers_the_coefficients_that_made_the_times():
    true = EngineCoefficients(memory=0.6, compute=0.3, link=0.4, layer_us=90, message_us=9, step_ms=2)
    configs = [
        EngineConfig(m, H200, batch, isl, osl, tp=tp)
        for m in (GPT, replace(DEEPSEEK, layers=20, moe_layers=17))
        for batch in (1, 8, 64)
        for isl, osl in ((128, 128), (8192, 512), (512, 4096))
        for tp in (4, 8)
    ]
    times = [EngineModel(true).predict(config) for config in configs]
    found = EngineModel.fit(list(zip(configs, times, strict=True)), weight=1e-9).coefficients
    for name in ("memory", "compute", "link", "layer_us", "message_us", "step_ms"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-3)


def test_rows_that_measured_something_else_do_not_bend_a_fit():
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.1, 1, (200, 3))
    times = rows @ [1.0, 2.0, 4.0]
    times[:10] *= 10
    found = fit_log_positive(rows, times, np.array([2.0, 2.0, 2.0]), 1e-6)
    assert found == pytest.approx([1, 2, 4], rel=0.05)


def test_a_factor_no_row_responds_to_stays_at_its_prior():
    rows = np.array([[1.0, 0.0], [2.0, 0.0]])
    assert fit_log_positive(rows, np.array([3.0, 6.0]), np.array([1.0, 7.0]), 0.1)[1] == pytest.approx(7)


@pytest.mark.parametrize("weight", [0.01, 1, 100])
def test_a_prior_counts_like_so_many_points(weight):
    found = fit_log_positive(np.ones((4, 1)), np.full(4, 1.1), np.ones(1), weight)
    assert np.log(found[0]) == pytest.approx(4 * np.log(1.1) / (4 + weight))


@pytest.mark.parametrize(
    ("points", "options", "says"),
    [
        ([], {}, "at least one point"),
        ([(CONFIG, 0)], {}, "tpot_ms must be a finite number > 0, got 0"),
        ([(CONFIG, float("nan"))], {}, "tpot_ms must be a finite number"),
        ([(CONFIG, 1.0)], {"weight": 0}, "weight must be a finite number > 0"),
    ],
)
def test_a_fit_without_sense_is_refused(points, options, says):
    with pytest.raises(JanusError, match=says):
        EngineModel.fit(points, **options)


def test_three_points_of_an_engine_correct_the_others():
    slow = EngineModel(EngineCoefficients(memory=0.6, layer_us=150))
    config = EngineConfig(GPT, H200, 4, 1024, 1024, tp=2)
    few = [replace(config, batch=batch) for batch in (4, 16, 64)]
    ours = EngineModel.fit([(c, slow.predict(c)) for c in few])
    other = replace(config, batch=32, isl=4096)
    want = slow.predict(other)
    assert abs(ours.predict(other) / want - 1) < 0.03 < abs(EngineModel().predict(other) / want - 1)
