"""Who sends what to whom: against plain loops; rows packed and taken apart; notices that fit together or do not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus import JanusError, Topology
from janus.experts.members import ExpertGroup
from janus.experts.notices import DTYPES, IDLE, REFUSED, TOKENS, Notice, compare
from janus.experts.packing import pack, unpack, width
from janus.experts.trip import arriving, leaving, local, targets


@st.composite
def worlds(draw):
    """Physical ids of every rank's tokens: any number of ranks, slots, choices; duplicates and -1 among them."""
    G, C, K = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    counts = draw(st.lists(st.integers(0, 4), min_size=G, max_size=G))
    ids = draw(st.lists(st.integers(-1, G * C - 1), min_size=sum(counts) * K, max_size=sum(counts) * K))
    return G, C, counts, torch.tensor(ids, dtype=torch.long).view(-1, K)


def loops(G, C, rows):
    """Of one rank: (target, token) of every row that leaves, in order."""
    return [(g, t) for g in range(G) for t, row in enumerate(rows) if any(r // C == g for r in row if r >= 0)]


@given(worlds())
def test_every_token_goes_once_to_every_rank_that_it_needs(world):
    G, C, counts, physical = world
    parts = physical.split(counts)
    leaves = [leaving(part, G, C) for part in parts]
    for rows, part in zip(leaves, parts, strict=True):
        pairs = loops(G, C, part.tolist())
        assert list(zip(rows.targets_S.tolist(), rows.tokens_S.tolist(), strict=True)) == pairs
        assert rows.sent == [sum(g == target for target, _ in pairs) for g in range(G)]
        assert len(pairs) == int(targets(part, G, C).sum())
    for me in range(G):
        slots_AK, expected = arriving(physical, counts, me, C)
        assert expected == [rows.sent[me] for rows in leaves], "both ends count alike"
        wanted = [row for part in parts for row in part.tolist() if any(r // C == me for r in row if r >= 0)]
        assert slots_AK.tolist() == [[r - me * C if r >= 0 and r // C == me else -1 for r in row] for row in wanted]


@given(worlds())
def test_parts_are_added_per_token_in_order_of_rank(world):
    G, C, _, physical = world
    rows = leaving(physical, G, C)
    assert rows.place_BM.shape == (len(physical), min(physical.shape[1], G))
    back = torch.randn(len(rows.tokens_S), 3, dtype=torch.float32)
    want = torch.zeros(len(physical), 3)
    for (_, token), part in zip(loops(G, C, physical.tolist()), back, strict=True):
        want[token] += part
    assert torch.equal(rows.merge(back), want)
    assert rows.merge(back.bfloat16()).dtype == torch.float32


def test_slots_of_a_rank_by_rank_of_each_row():
    physical = torch.tensor([[0, 5], [3, -1]], dtype=torch.int32)
    assert local(physical, torch.tensor([[1], [1]]), 3).tolist() == [[-1, 2], [0, -1]]


@pytest.mark.parametrize("S", [0, 1, 5])
def test_columns_come_out_as_they_went_in(S):
    columns = [torch.randn(S, 3).bfloat16(), torch.randn(S, 2), torch.arange(2 * S, dtype=torch.int32).view(S, 2)]
    kinds = [(column.shape[1], column.dtype) for column in columns]
    rows = pack(columns)
    assert rows.shape == (S, width(kinds)) == (S, 22)  # 6 bytes of the first: the next is not aligned where it lies
    for got, column in zip(unpack(rows, kinds), columns, strict=True):
        assert got.dtype == column.dtype
        assert torch.equal(got, column)


BATCH = torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.bfloat16)
PLAIN = Notice(REFUSED, layer=7, placement=3)


def test_a_notice_of_a_call():
    said = PLAIN.of_call(*BATCH)
    assert said == Notice(TOKENS, 2, 4, 0, 1, 7, 3)
    assert Notice(*said.words(torch.device("cpu")).tolist()) == said
    assert PLAIN.of_call(*(t[:0] for t in BATCH)) == dataclasses.replace(PLAIN, state=IDLE)
    for wrong in (BATCH[0].to(torch.complex64), BATCH[0].int()):
        assert _code(lambda wrong=wrong: PLAIN.of_call(wrong, *BATCH[1:])) == "layer.dtype"
    for wrong in (BATCH[1].bool(), BATCH[1].float(), BATCH[1].to(torch.complex64)):
        assert _code(lambda wrong=wrong: PLAIN.of_call(BATCH[0], wrong, BATCH[2])) == "layer.dtype"


GROUP: ExpertGroup = SimpleNamespace(roster=SimpleNamespace(rank=lambda member: 10 + member))


def _table(**odd):
    good = PLAIN.of_call(*BATCH)
    return [
        list(dataclasses.astuple(n))
        for n in (PLAIN.of_call(*(t[:0] for t in BATCH)), good, dataclasses.replace(good, **odd))
    ]


def test_notices_that_fit_together():
    assert [notice.tokens for notice in compare(GROUP, _table(tokens=9))] == [0, 2, 9]


@pytest.mark.parametrize(
    ("odd", "code", "words"),
    [
        ({"state": REFUSED}, "experts.refused", "rank 12 refused"),
        ({"top_k": 5}, "experts.call", "top_k differs: rank 11 has 4, rank 12 has 5"),
        ({"dtype": 2}, "experts.call", f"dtype differs: rank 11 has {DTYPES[0]}, rank 12 has {DTYPES[2]}"),
        ({"weights_dtype": 0}, "experts.call", "weights_dtype differs: rank 11"),
        ({"layer": 8}, "experts.call", "layer differs: rank 10 has 7, rank 12 has 8"),
        ({"placement": 8}, "experts.call", "placement differs: rank 10"),
    ],
)
def test_notices_that_do_not(odd, code, words):
    with pytest.raises(JanusError, match=words) as error:
        compare(GROUP, _table(**odd))
    assert error.value.code == code


def _code(call) -> str:
    with pytest.raises(JanusError) as error:
        call()
    return error.value.code


def test_options_are_refused_before_any_rank_is_asked():
    assert _code(lambda: ExpertGroup(scope="world")) == "experts.scope"
    assert _code(lambda: ExpertGroup(regime="relay")) == "alltoall.regime"
    assert _code(lambda: ExpertGroup(cost="cheap")) == "alltoall.cost"
    assert [_code(lambda s=s: ExpertGroup(timeout_s=s)) for s in (0, -1, "1")] == ["alltoall.timeout"] * 3
    assert _code(ExpertGroup) == "alltoall.group"
    assert _code(lambda: ExpertGroup(Topology(((0,),), ((1,),)))) == "alltoall.group"
