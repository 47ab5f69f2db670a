"""The activation table: against plain enumeration, between its points, and its bound."""

import math
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError, RoutingTrace
from janus.scale import ActivationTable
from janus.scale.activation.batches import Routing, inclusion
from janus.scale.activation.montecarlo import MonteCarlo, busiest
from janus.scale.activation.table import analytic_bound
from janus.sched import balance


@pytest.fixture(scope="module")
def table(skewed):
    grid = [(4, 6), (6, 6), (8, 6)]
    return ActivationTable.build(skewed(5, 20), grid, [1, 4, 16, 64], top_k=3, layers=3, samples=6)


def test_every_point_is_the_mean_over_layers_and_batches(table):
    """Again with `balance`, its reported a_max and its own counts of tokens."""
    carlo = table.carlo
    placement = carlo.placement(6, 6)
    for B in table.batch_sizes:
        loads, tokens = [], []
        for batch in carlo.batches(B):
            for i, ids in enumerate(batch):
                assert ids.shape == (B, 3)
                out = balance(ids, placement, layer=i, backend="reference")
                loads.append(out.a_max)
                tokens.append(out.tokens_per_slot.reshape(6, 6).sum(axis=1).max())
        assert table.at(6, B).a_max == pytest.approx(np.mean(loads))
        assert table.at(6, B).tokens == pytest.approx(np.mean(tokens))


def test_a_max_lies_between_its_limits(table):
    for n_e in (4, 6, 8):
        for B in table.batch_sizes:
            a_max = table.at(n_e, B).a_max
            assert 1 <= a_max <= min(6, 3 * B)
            assert table.worst_layer(n_e, B) >= a_max - 1e-9
            assert 0 <= table.stderr(n_e, B) < 1
    assert table.at(8, 64).a_max < table.at(4, 64).a_max


def test_the_standard_error_is_that_of_repeated_tables(skewed):
    """Twelve seeds: the spread of their means is the printed error within a factor of 2 (chi-square, 11 degrees)."""
    counts = skewed(1, 30)
    tables = [ActivationTable.build(counts, [(5, 8)], [12], top_k=3, samples=10, seed=s) for s in range(12)]
    printed = np.mean([t.stderr(5, 12) for t in tables])
    # the placement moves with the seed too; one placement for all isolates the draws
    assert 0 < printed < 0.3
    spread = np.std([t.at(5, 12).a_max for t in tables], ddof=1)
    assert printed / 2 < spread < printed * 3


def test_between_points_it_interpolates(table):
    low, high = table.at(6, 4).a_max, table.at(6, 16).a_max
    assert table.at(6, 8).a_max == pytest.approx((low + high) / 2)  # half way in log B
    a, b = table.at(4, 16).a_max, table.at(6, 16).a_max
    share = (1 / 4 - 1 / 5) / (1 / 4 - 1 / 6)
    assert table.at(5, 16).a_max == pytest.approx(a + share * (b - a))


def test_beyond_the_largest_batch_it_is_on_the_safe_side(table):
    beyond = table.at(6, 128)
    assert beyond.a_max == 6
    assert beyond.tokens == pytest.approx(2 * table.at(6, 64).tokens)


def test_it_never_falls_with_the_batch(table):
    values = [table.at(5, B).a_max for B in range(1, 100)]
    assert values == sorted(values)


def test_the_same_seed_gives_the_same_table(skewed, table):
    again = ActivationTable.build(skewed(5, 20), [(4, 6), (6, 6), (8, 6)], [1, 4, 16, 64], top_k=3, layers=3, samples=6)
    assert again.rows == table.rows


def test_extending_keeps_the_rows(table):
    seen = []
    more = table.extended([(6, 6), (10, 6)], lambda *what: seen.append(what))
    assert more.rows[6, 6] is table.rows[6, 6]
    assert (10, 6) not in table.rows
    assert [(done, total) for done, total, _ in seen] == [(1, 1)]
    assert more.at(9, 16).a_max < table.at(8, 16).a_max + 1e-9


def test_synthetic_routing_says_so():
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(8), (40, 2, 1)), axis=2)[:, :, :2]
    trace = RoutingTrace(ids, 8, source="like something else", synthetic=True)
    assert "synthetic routing" in ActivationTable.build(trace, [(2, 4)], [4]).source


def test_busiest_by_hand():
    # slots 0, 1 on instance 0 and 2, 3 on instance 1; -1 is no choice
    assert busiest(np.array([[0, 2], [0, 3], [1, -1]]), 2, 2) == (2, 3)


def test_the_bound_by_hand():
    # p = 1/2 each, B = 1: half an expert active; G = 2: a_bar = 1, 1 + sqrt(2 ln 2) > C = 2, so C + 1
    p, slots = np.full(4, 0.5), np.array([[0, 1], [2, 3]])
    assert analytic_bound(p, slots, 1) == pytest.approx(min(2, 1 + math.sqrt(2 * math.log(2))) + 1)
    # as printed a replica counts in full: more of them never lower it
    twice = np.array([[0, 1, 2, 3], [2, 3, 0, 1]])
    assert analytic_bound(p, twice, 1) >= analytic_bound(p, slots, 1)
    assert analytic_bound(p, twice, 1, shared=True) < analytic_bound(p, twice, 1)


def test_the_printed_bound_tends_to_c_plus_one(table):
    assert table.bound(8, 10_000) == pytest.approx(7, abs=1e-6)
    assert table.bound(8, 10_000, shared=True) < 7


def test_refusals(skewed, table):
    counts = skewed(2, 20)
    for grid, sizes in (([(2, 4)], [1]), ([(4, 6)], []), ([(4, 6)], [0]), ([(0, 30)], [1])):
        with pytest.raises(JanusError) as error:
            ActivationTable.build(counts, grid, sizes, top_k=3)
        assert error.value.code == "activation.grid"
    for n_e, slots in ((3, None), (9, None), (6, 5)):
        with pytest.raises(JanusError, match="outside the table"):
            table.at(n_e, 4, slots)
    with pytest.raises(JanusError, match="not measured"):
        table.stderr(6, 5)
    with pytest.raises(JanusError, match="method"):
        ActivationTable.build(counts, [(4, 6)], [1], top_k=3, method="magic")


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 8), st.floats(1, 64), st.floats(1, 64))
def test_between_its_points_the_table_stays_between_their_values(table, n_e, B, C):
    """In both directions at once: never outside the four points around, and never falling with the batch."""
    at = table.at(n_e, B)
    below, above = max(b for b in table.batch_sizes if b <= B), min(b for b in table.batch_sizes if b >= B)
    sizes = [g for g in (4, 6, 8) if abs(g - n_e) < 2]
    corners = [table.at(g, b) for g in sizes for b in (below, above)]
    for i in (0, 1):
        assert min(c[i] for c in corners) - 1e-9 <= at[i] <= max(c[i] for c in corners) + 1e-9
    least, most = (table.at(n_e, x) for x in sorted((B, C)))
    assert least.a_max <= most.a_max + 1e-9
    assert least.tokens <= most.tokens + 1e-9
    if B in table.batch_sizes and n_e in (4, 6, 8):
        assert at.a_max == table.rows[n_e, 6].mean[table.batch_sizes.index(B)]


def test_a_table_of_several_slot_counts_asks_which(skewed):
    table = ActivationTable.build(skewed(1, 12), [(2, 6), (4, 6), (2, 12)], [1, 8], top_k=2, samples=2)
    with pytest.raises(JanusError, match=r"\[6, 12\]; say which with slots="):
        table.at(2, 8)
    assert table.at(2, 9, slots=12).a_max == 12  # beyond the largest batch: C of the slots asked for
    assert table.at(3, 8, slots=6).a_max < 6
    with pytest.raises(JanusError, match="outside the table"):
        table.at(3, 8, slots=12)


def files_of(folder):
    return {f.name: f.stat().st_mtime_ns for f in folder.glob("*.npz")}


def test_what_was_measured_once_is_looked_up(skewed, tmp_path, monkeypatch):
    given = skewed(5, 20), [(4, 6), (6, 6)], [1, 4, 16]
    first = ActivationTable.build(*given, top_k=3, layers=3, samples=4, cache=tmp_path)
    assert len(files_of(tmp_path)) == 4  # of both pairs a placement and what was counted
    for name in ("measure", "_place"):
        monkeypatch.setattr(MonteCarlo, name, lambda *_, n=name: pytest.fail(f"{n} again"))
    again = ActivationTable.build(*given, top_k=3, layers=3, samples=4, cache=tmp_path)
    assert again.rows == first.rows
    assert again.bound(4, 4) == first.bound(4, 4)
    fewer = ActivationTable.build(given[0], [(6, 6)], [4], top_k=3, layers=3, samples=4, cache=tmp_path)
    assert fewer.at(6, 4) == ActivationTable.build(given[0], [(6, 6)], [4], top_k=3, layers=3, samples=4, cache=tmp_path).at(6, 4)  # fmt: skip


def test_other_batch_sizes_measure_only_what_is_new(skewed, tmp_path, monkeypatch):
    counts = skewed(5, 20)
    how = {"top_k": 3, "layers": 3, "samples": 4}
    ActivationTable.build(counts, [(4, 6)], [1, 4, 16], **how, cache=tmp_path)
    asked = []
    plain = MonteCarlo.measure
    monkeypatch.setattr(MonteCarlo, "measure", lambda self, *a: asked.append(a) or plain(self, *a))
    more = ActivationTable.build(counts, [(4, 6)], [4, 8, 16, 32], **how, cache=tmp_path)
    assert asked == [(4, 6, (8, 32))]
    assert more.rows == ActivationTable.build(counts, [(4, 6)], [4, 8, 16, 32], **how, cache=False).rows


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"layers": 2},
        {"samples": 5},
        {"method": "greedy"},
        {"placing": "eplb"},
        {"top_k": 2},
        {"counts": 1},
    ],
)
def test_a_table_of_anything_else_is_measured_anew(skewed, tmp_path, other):
    how = {"top_k": 3, "layers": 3, "samples": 4}
    ActivationTable.build(skewed(5, 20), [(4, 6)], [8], **how, cache=tmp_path)
    before = files_of(tmp_path)
    counts = skewed(5, 20, seed=1) if "counts" in other else skewed(5, 20)
    how |= {name: value for name, value in other.items() if name != "counts"}
    found = ActivationTable.build(counts, [(4, 6)], [8], **how, cache=tmp_path)
    assert len(files_of(tmp_path)) > len(before)
    assert found.rows == ActivationTable.build(counts, [(4, 6)], [8], **how, cache=False).rows


def test_damaged_or_foreign_files_are_measured_again(skewed, tmp_path):
    given = skewed(2, 20), [(4, 6)], [1, 8]
    first = ActivationTable.build(*given, top_k=3, cache=tmp_path)
    for damage in (b"", b"PK", None):
        for file in tmp_path.glob("*.npz"):
            if damage is None:  # a sound file that holds something else
                np.savez(file, B8=np.zeros(3), slots=np.zeros((1, 1)), B1=np.zeros((2, 2, 16), dtype=np.float32))
            else:
                file.write_bytes(damage)
        assert ActivationTable.build(*given, top_k=3, cache=tmp_path).rows == first.rows


def test_the_users_folder_is_used_unless_told_otherwise(skewed, tmp_path, monkeypatch):
    monkeypatch.setenv("JANUS_CACHE", str(tmp_path / "home"))
    ActivationTable.build(skewed(1, 12), [(3, 5)], [4], top_k=2, cache=False)
    assert not (tmp_path / "home").exists()
    ActivationTable.build(skewed(1, 12), [(3, 5)], [4], top_k=2)
    assert files_of(tmp_path / "home")


def test_the_spread_of_a_step_by_hand(table):
    row = table.rows[6, 6]
    assert row.correlation == 0  # drawn from counts: layers know nothing of each other
    assert table.step_spread(6, 16) == pytest.approx(row.deviation[2] / 5**0.5)  # 5 layers of the source
    assert table.step_spread(6, 16, layers=20) == pytest.approx(row.deviation[2] / 20**0.5)
    half = (row.deviation[1] + row.deviation[2]) / 2
    assert table.step_spread(6, 8, layers=1) == pytest.approx(half)
    assert table.step_spread(6, 1000, layers=1) == row.deviation[3]
    low, high = (table.rows[g, 6].deviation[2] for g in (4, 6))
    share = (1 / 4 - 1 / 5) / (1 / 4 - 1 / 6)
    assert table.step_spread(5, 16, layers=1) == pytest.approx(low + share * (high - low))
    for n_e, B, layers in ((9, 4, 1), (6, 0, 1), (6, 4, 0)):
        with pytest.raises(JanusError) as error:
            table.step_spread(n_e, B, layers=layers)
        assert error.value.code == "activation.range"


def test_the_spread_of_a_step_is_that_of_many_whole_steps():
    """The recorded trace: 4 of 24 layers and 16 batches against 120 steps through all 24 layers, within a factor of 2."""
    trace = RoutingTrace.load(files("janus") / "data" / "gptoss20b_routing.npz")
    sizes, pair = [4, 8, 16, 32], (4, 10)
    whole = MonteCarlo(
        Routing.of(trace), tuple(sizes), method="exact", placing="janus", layers=24, samples=120, seed=7
    ).measure(*pair, tuple(sizes))
    direct = whole.a_max.mean(axis=1).std(axis=1, ddof=1)
    table = ActivationTable.build(trace, [pair], sizes)
    ratios = [table.step_spread(4, B) / want for B, want in zip(sizes, direct, strict=True)]
    assert all(1 / 2 < r < 2 for r in ratios), ratios
    # as if layers were independent it would be too small: they see the same tokens
    alone = whole.a_max.var(axis=2, ddof=1).mean(axis=1) ** 0.5 / 24**0.5
    assert (direct > 1.2 * alone).all()


def test_uniform_routing_is_only_used_when_asked_and_says_so():
    routing = Routing.uniform(8, 2)
    table = ActivationTable.build(routing, [(2, 4)], [4])
    assert "uniform routing (asked for)" in table.source
    assert "synthetic routing" in table.source
    assert inclusion(routing.counts[0], 2).tolist() == [0.25] * 8
    for bad in ((0, 1), (8, 9), (8, 2, 0)):
        with pytest.raises(JanusError, match="routing"):
            Routing.uniform(*bad)
