"""The pure parts of the generation loop: padding, chunks, stopping, sampling, refusals."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.runner.generate import Batch, Sampling, Timing, check_prompts, check_room

PROMPTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=20), max_size=6)


def batch(prompts, limit=4, stop=frozenset(), sampling=None):
    return Batch(prompts, range(len(prompts)), limit, stop, sampling or Sampling(), pad=0)


@given(PROMPTS)
@settings(max_examples=50, deadline=None)
def test_left_padding_keeps_every_token_in_place(prompts):
    made = batch(prompts)
    assert made.width == max(map(len, prompts), default=0)
    for ids, mask, prompt in zip(made.ids, made.mask, prompts, strict=True):
        assert ids[made.width - len(prompt) :].tolist() == prompt
        assert mask.sum() == len(prompt)
        assert ids[mask.bool()].tolist() == prompt


@given(PROMPTS, st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_chunks_cover_every_column_once_within_the_limit(prompts, max_tokens):
    made = batch(prompts)
    chunks = made.chunks(max_tokens)
    assert [c for part in chunks for c in range(part.start, part.stop)] == list(range(made.width if prompts else 0))
    if len(prompts) <= max_tokens:
        assert all((part.stop - part.start) * len(prompts) <= max_tokens for part in chunks)


def test_a_completion_ends_at_its_limit_or_with_a_stop_id():
    made = batch([[1], [1], [1]], limit=2, stop=frozenset({7}))
    logits = torch.zeros(3, 10)
    logits[0, 7] = logits[1, 3] = logits[2, 4] = 1
    made.take(logits)
    assert made.done == [True, False, False]
    made.take(logits)
    assert made.completions == [[7], [3, 3], [4, 4]]
    assert all(made.done)


def test_a_limit_of_zero_serves_nothing():
    made = batch([[1, 2]], limit=0)
    assert made.chunks(10) == []
    assert made.completions == [[]]


def test_equal_seeds_and_indices_draw_equal_tokens_in_any_company():
    logits, sampling = torch.randn(3, 50), Sampling(do_sample=True, seed=3)
    together = batch([[1]] * 3, sampling=sampling)
    together.take(logits)
    alone = Batch([[1]], [2], 4, frozenset(), sampling, pad=0)
    alone.take(logits[2:])
    assert alone.completions[0] == together.completions[2]


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(do_sample=True, top_k=2), {8, 9}),
        (Sampling(do_sample=True, top_p=0.5), {9}),
        (Sampling(do_sample=True, temperature=1e-3), {9}),
        (Sampling(do_sample=False, temperature=50.0), {9}),
    ],
)
def test_options_narrow_what_can_be_drawn(sampling, allowed):
    logits = torch.arange(10.0).repeat(64, 1)
    generators = [torch.Generator().manual_seed(i) for i in range(64)]
    assert set(sampling.pick(logits, generators).tolist()) == allowed


def test_sampling_follows_the_probabilities():
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).repeat(4000, 1)
    picked = Sampling(do_sample=True).pick(logits, [torch.Generator().manual_seed(i) for i in range(4000)])
    share = picked.bincount(minlength=3) / 4000
    # Standard error of a share is at most sqrt(0.25 / 4000) = 0.008; five of them.
    assert (share - torch.tensor([0.7, 0.2, 0.1])).abs().max() < 0.04


@pytest.mark.parametrize(
    "options",
    [
        *({"temperature": t} for t in (0.0, -1.0, float("nan"), float("inf"), "hot", None)),
        *({"top_k": k} for k in (0, 2.5, "3", True)),
        *({"top_p": p} for p in (0.0, 1.5, "all")),
        *({"seed": s} for s in (None, 1.5, "x")),
    ],
)
def test_impossible_sampling_is_refused(options):
    with pytest.raises(JanusError) as error:
        Sampling(do_sample=True, **options)
    assert error.value.code == "generate.sampling"


@pytest.mark.parametrize(
    ("prompts", "limit", "code"),
    [
        ("text", 1, "generate.prompts"),
        ([[]], 1, "generate.prompts"),
        (["text"], 1, "generate.prompts"),
        ([[1, 10]], 1, "generate.prompts"),
        ([[1, -1]], 1, "generate.prompts"),
        ([[1.5]], 1, "generate.prompts"),
        ([[True]], 1, "generate.prompts"),
        ([[1]], -1, "generate.prompts"),
        ([[1]], "2", "generate.prompts"),
        ([[1]], True, "generate.prompts"),
        ([[1] * 15], 6, "generate.length"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused(prompts, limit, code):
    with pytest.raises(JanusError) as error:
        check_prompts(prompts, limit, vocab_size=10, max_positions=20)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("prompts", "one_step", "code"),
    [
        ([[1]] * 5, False, "generate.prompts"),  # 3 prompts on the first of two ranks, where 2 fit
        ([[1], [1, 2, 3]], True, "generate.length"),  # the second rank's
        ([[1, 1], [1], [1]], True, "generate.length"),  # 2 x 2 with padding
    ],
)
def test_what_one_rank_cannot_hold_is_refused_on_every_rank(prompts, one_step, code):
    with pytest.raises(JanusError) as error:
        check_room(prompts, 2, 2, one_step=one_step)
    assert error.value.code == code


def test_prompts_that_fit_have_room():
    check_room([[1]] * 4, 2, 2, one_step=False)
    check_room([[1, 2, 3]], 2, 2, one_step=False)  # in chunks
    check_room([[1, 2], [1]], 3, 2, one_step=True)
    check_room([], 2, 2, one_step=True)


def test_good_prompts_pass():
    check_prompts([[1], (2, 3)], 5, vocab_size=10, max_positions=None)
    check_prompts([], 0, vocab_size=10, max_positions=20)


def test_tpot_is_the_mean_of_the_steps_after_the_first_token():
    assert Timing(decode_s=[0.1, 0.3]).tpot_ms == pytest.approx(200)
    assert Timing(prefill_s=1.0).tpot_ms is None


def test_transformers_marks_models_that_cannot_take_a_prompt_in_chunks():
    assert transformers.JambaForCausalLM._is_stateful  # its state is lost between chunks: other tokens, no error
    assert not transformers.MixtralForCausalLM._is_stateful
