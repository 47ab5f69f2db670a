"""Cuts fit the machine for every batch, the table goes before the rule, and launches follow from sizes."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.experts import tuning
from janus.experts.launches import Weights, launches, most_tiles
from janus.experts.tuning import Cut, Problem, Tiles, cut_from, cut_of, cut_to, key_of, rule, table

PROBLEMS = st.builds(
    Problem,
    tokens=st.integers(1, 5000),
    choices=st.integers(1, 16),
    slots=st.integers(1, 4096),
    hidden=st.integers(1, 8192),
    inner=st.integers(1, 16384),
    item=st.sampled_from([2, 4]),
    stored=st.sampled_from([1, 2, 4]),
    pair=st.sampled_from([1, 2]),
    processors=st.sampled_from([2, 108, 132, 148]),
    shared=st.sampled_from([99 << 10, 163 << 10, 227 << 10]),
)
QWEN = Problem(tokens=1, choices=8, slots=128, hidden=2048, inner=768)


@given(PROBLEMS)
def test_a_cut_by_rule_fits_any_gpu(problem):
    cut = rule(problem)
    assert cut.rows in (16, 32, 64, 128)
    assert cut.split in (1, 2, 4)
    for how in (cut.up, cut.down):
        assert how.columns // problem.pair >= 16  # what a matrix instruction takes
        assert how.depth in (32, 64, 128)  # within one scale of quantized weights
        step = how.depth * (cut.rows * problem.item + how.columns * problem.stored)
        assert (how.stages - 1) * step <= problem.shared
        assert 2 <= how.stages <= 6


@pytest.mark.parametrize(
    ("tokens", "choices", "slots", "rows"),
    [(1, 8, 128, 16), (8, 8, 128, 16), (64, 8, 128, 16), (64, 8, 16, 64), (256, 8, 128, 64), (1024, 8, 16, 128)],
)
def test_rows_are_what_a_slot_hardly_exceeds(tokens, choices, slots, rows):
    problem = dataclasses.replace(QWEN, tokens=tokens, choices=choices, slots=slots)
    assert rule(problem).rows == rows


def test_one_token_still_gives_every_multiprocessor_work():
    """8 experts of 768: 384 programs of 16 gates and ups, 512 of 32 columns."""
    made = launches(QWEN, Weights(), entries_silu(), rule(QWEN))
    assert made.grids["up"][0] >= 2 * QWEN.processors
    assert made.grids["down"][0] >= 2 * QWEN.processors
    alone = dataclasses.replace(QWEN, choices=1)
    assert launches(alone, Weights(), entries_silu(), rule(alone)).grids["down"][0] >= QWEN.processors


def entries_silu():
    from janus.experts.activation import Activation

    return Activation("silu")


def test_one_entry_takes_two_launches_and_many_take_four():
    few = launches(QWEN, Weights(), entries_silu(), rule(QWEN))
    assert (few.sorts, few.combines) == (False, False)
    problem = dataclasses.replace(QWEN, tokens=100)
    many = launches(problem, Weights(), entries_silu(), rule(problem))
    assert (many.sorts, many.combines) == (True, True)
    assert many.shapes == ((1 + 3 * many.cap,), (800,), (800, 768), (1, 800, 2048))
    raw = launches(problem, Weights(), None, rule(problem))
    assert raw.shapes[2] == (800, 1536)
    assert (raw.fixed["up"]["KIND"], many.fixed["up"]["KIND"]) == ("", "silu")


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 12), st.integers(1, 5))
def test_there_are_never_more_tiles(ids, slots, rows):
    counts = [sum(i == s for i in ids) for s in range(slots)]
    n = len(ids)
    assert sum(-(-count // rows) for count in counts) <= most_tiles(n, slots, rows)


def test_the_table_goes_before_the_rule(tmp_path, monkeypatch):
    other = Cut(32, Tiles(64, 64, 8, 3), Tiles(128, 64, 8, 3), 2, 4, True)
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"measured": "here", "cuts": {key_of(QWEN, "9.0", "bfloat16"): cut_to(other)}}))
    monkeypatch.setattr(tuning, "TABLE", path)
    assert cut_of(QWEN, "9.0", "bfloat16") == other
    assert cut_of(QWEN, "9.0", "fp8") == rule(QWEN)
    assert cut_of(QWEN, "8.0", "bfloat16") == rule(QWEN)
    assert cut_of(dataclasses.replace(QWEN, tokens=2), "9.0", "bfloat16") == rule(dataclasses.replace(QWEN, tokens=2))


def test_the_committed_table_is_readable_and_says_whether_it_was_measured():
    said = json.loads(tuning.TABLE.read_text())
    assert isinstance(said["measured"], str)
    assert said["measured"]
    for cut in table(tuning.TABLE).values():
        assert cut_from(cut_to(cut)) == cut


def test_batches_of_like_sizes_share_a_key():
    keys = {key_of(dataclasses.replace(QWEN, tokens=tokens), "9.0", "bfloat16") for tokens in range(40, 65)}
    assert keys == {"9.0 bfloat16 2048x768 active<=128 rows<=16"}
