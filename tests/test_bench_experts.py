"""What the benchmark of the experts says is so: its cases, cold weights, turns, the arithmetic of the bound, its files."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import bench_experts
import experts_cases
import experts_timing
import numpy as np
import plot_experts
import pytest
import torch
from experts_cases import COMPUTE, FAMILIES, Case, Rotation, Way, inputs, layers_of, layers_wanted, ours, rivals, split
from experts_timing import FEW, Readers, Seen, bound_ms, measure, ridge, row, still, warm
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import MODELS, Model

from janus.experts.layout import ExpertLayout

ROOT = Path(__file__).resolve().parents[1]
TINY = Model("qwen3-30b-a3b", 8, 2, 32, 16, 1, ())
RESULTS = ROOT / "benchmarks" / "results" / "experts_cpu.json"


def tiny(storage="float32", experts=8):
    return Case(TINY, storage, experts)


@pytest.mark.parametrize("storage", COMPUTE)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_is_whole_where_it_fits_and_else_as_much_as_fits(name, storage):
    case = Case.of(name, storage)
    held = case.experts * case.held_bytes
    assert held <= experts_cases.LAYER_BYTES
    assert case.whole or held + case.held_bytes > experts_cases.LAYER_BYTES
    assert (case.label == "whole layer") == (case.experts == MODELS[name].experts)


def test_the_bytes_of_an_expert_by_hand():
    assert Case.of("qwen3-30b-a3b", "bfloat16").expert_bytes == 3 * 2048 * 768 * 2
    assert Case.of("qwen3-30b-a3b", "int8").expert_bytes == 3 * 2048 * 768
    assert Case.of("qwen3-30b-a3b", "int8").held_bytes == 3 * 2048 * 768 * 2
    assert Case.of("qwen3-30b-a3b", "bfloat16").slot_bytes == 3 * 2048 * 768 * 2
    assert Case.of("qwen3-30b-a3b", "int8").slot_bytes == 3 * 2048 * 768 + 4 * 3 * 2048 * 768 // 128
    assert Case.of("qwen3-30b-a3b", "fp8").slot_bytes == 3 * 2048 * 768 + 4 * 3 * 16 * 6  # a scale per block
    assert (Case.of("mixtral-8x7b", "float32").experts, Case.of("deepseek-v3", "bfloat16").experts) == (4, 37)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_module_is_the_family_s_own_with_the_sizes_of_the_model(name):
    model = MODELS[name]
    module = experts_cases.skeleton(model, 3)
    layout = ExpertLayout.of(module)
    assert layout.hidden_size == model.hidden
    matrices = sum(p.numel() for p in module.parameters() if p.dim() == 3)
    assert matrices == 3 * Case(model, "float32", 3).params
    assert all(p.is_meta for p in module.parameters())


@pytest.mark.parametrize("uniform", [False, True])
def test_batches_of_a_whole_layer_have_distinct_experts_per_token(uniform):
    label, batches = tiny().batches(6, 5, uniform=uniform)
    assert label == "uniform" if uniform else label.startswith("synthetic")
    assert [ids.shape for ids in batches] == [(6, 2)] * 5
    assert all(len(set(token)) == 2 for ids in batches for token in ids.tolist())
    assert not np.array_equal(batches[0], batches[1])


def test_batches_of_a_part_are_the_entries_that_come_to_it():
    _, batches = tiny(experts=2).batches(64, 40, uniform=True)
    assert all(ids.shape[1] == 1 and set(ids.ravel().tolist()) <= {0, 1} for ids in batches)
    assert np.mean([len(ids) for ids in batches]) == pytest.approx(
        64 * 2 * 2 / 8, rel=0.1
    )  # density of the whole layer
    assert all(len(ids) for ids in tiny(experts=1).batches(1, 30)[1]), "a batch of which nothing comes is left out"


@settings(max_examples=50, deadline=None)
@given(layers=st.integers(1, 3), experts=st.integers(1, 9), calls=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_an_expert_is_read_again_only_after_all_others_of_its_layer(layers, experts, calls):
    rotation, read = Rotation(layers, experts), [[] for _ in range(layers)]
    for number, active in enumerate(calls):
        ids = np.arange(min(active, experts))[:, None] * [1, 1]
        layer, dealt = rotation.deal(ids)
        assert layer == number % layers
        assert (dealt[:, 0] == dealt[:, 1]).all(), "one expert keeps one name within a call"
        read[layer] += dealt[:, 0].tolist()
    for order in read:
        for first in range(0, len(order) - experts + 1):
            assert len(set(order[first : first + experts])) == experts


def test_as_many_layers_as_the_cache_asks_for_and_memory_gives():
    assert layers_wanted(10, cache=0, available=10**9, working_set=95) == 10
    assert layers_wanted(10, cache=100, available=10**9, working_set=95) == 40
    assert layers_wanted(10, cache=100, available=200, working_set=95) == 9
    assert layers_wanted(10**6, cache=1, available=1) == 1


def test_the_last_level_cache_is_the_largest_there_is(tmp_path, monkeypatch):
    assert [experts_cases._size(text) for text in ("48K\n", "4M", "1G", "512")] == [48 << 10, 4 << 20, 1 << 30, 512]
    assert experts_cases.cache_bytes() >= 0
    assert 0 < experts_cases.available_bytes() < 2**50


def test_layers_share_one_block_of_distinct_weights():
    layers = layers_of(tiny(), 3)
    starts = [m.down_proj.data_ptr() for m in layers]
    assert np.diff(starts).tolist() == [layers[0].down_proj.numel() * 4] * 2
    blocks = {name: p.detach() for name, p in layers[0].named_parameters()}
    quarters = split(TINY, blocks, 2)
    assert [m.num_experts for m in quarters] == [2] * 4
    assert quarters[0].down_proj.data_ptr() == starts[0]


def test_every_way_that_runs_here_is_found_and_the_others_say_why_not():
    layers = layers_of(tiny("bfloat16"), 1)
    theirs, refused = rivals(layers)
    assert [w.name.removeprefix("transformers ") for w in theirs] == ["eager", "batched_mm", "grouped_mm"]
    assert set(refused) == {"transformers deepgemm", "transformers sonicmoe"}
    assert all(reason.startswith("does not run here: ") for reason in refused.values())
    mine, missing = ours(layers, "bfloat16")
    assert mine[0].name == f"janus {mine[0].calls[0].compute}", "the one that auto takes comes first"
    assert {w.name for w in mine} | set(missing) == {f"janus {name}" for name in experts_cases.COMPUTES}


def test_a_storage_that_is_not_there_is_a_reason_and_not_an_error(monkeypatch):
    monkeypatch.setattr(experts_cases, "JanusMoELayer", lambda module, compute="auto": None)
    assert ours([], "int8") == ([], {"janus int8": "this version stores no quantized experts"})


def test_ways_that_disagree_are_not_timed():
    case, (module,) = tiny(), layers_of(tiny(), 1)
    _, (ids, *_) = case.batches(4, 1)
    right, wrong = Way("janus a", [module]), Way("janus b", [lambda *call: module(*call) * 1.01])
    warm(case, [right, right], ids, Rotation(1, 8))
    with pytest.raises(RuntimeError, match="janus b differs from janus a by"):
        warm(case, [right, wrong], ids, Rotation(1, 8))


def test_the_bound_and_the_ridge_by_hand():
    assert bound_ms(8, 10_000_000, 20) == 4.0  # 80 MB at 20 GB/s
    assert ridge(200e9, 20, 4) == 20  # 10 FLOP a byte; a weight of 4 bytes has 2 FLOP a token
    assert ridge(200e9, 20, 2) == 10


def test_readers_report_the_faster_of_both_by_its_median():
    readers = Readers(1 << 20)
    readers.read()
    assert {name: len(seen) for name, seen in readers.gb_s.items()} == {"numba": 1, "torch": 1}
    assert all(seen[0] > 0 for seen in readers.gb_s.values())
    readers.gb_s = {"numba": [1, 9, 2], "torch": [3, 3, 3]}
    assert readers.best() == ("torch", 3.0)
    readers.restart()
    assert readers.gb_s == {"numba": [], "torch": []}
    assert experts_timing._sum(readers.chunks[0]) == readers.chunks[0].size


def test_ratios_are_of_the_same_rounds():
    seen = Seen(
        ms={"a": [8.0, 6.0, 100.0], "b": [2.0, 50.0]}, rounds={"a": [0, 1, 3], "b": [0, 3]}, active=[4, 2, 9, 8]
    )
    assert seen.ratio("a", "b") == 3.0  # median of 8 / 2 and 100 / 50
    assert seen.median("a") == 8.0
    assert seen.share("b", expert_bytes=1e6, gb_s=2) == pytest.approx(np.median([2 / 2, 4 / 50]))


def test_a_way_that_is_clearly_slower_keeps_to_a_few_samples():
    seen = Seen(ms={"fast": [1.0] * FEW, "slow": [5.0] * FEW, "near": [3.0] * FEW})
    assert [still(name, seen, FEW, 1) for name in ("fast", "slow", "near", "new")] == [True, False, True, True]
    assert still("slow", seen, FEW - 1, 1)
    assert not still("slow", seen, 1, 0.01), "one that fills the time of its cell stops at once"


def test_copies_that_do_not_fit_are_left_out_with_the_reason(monkeypatch):
    case, (module,) = tiny(), layers_of(tiny(), 1)
    monkeypatch.setattr(experts_timing, "available_bytes", lambda: 10**5)
    ways = [Way("transformers eager", [module]), Way("transformers batched_mm", [module], copies=1)]
    batches = case.batches(64, 3)[1]
    seen = measure(case, ways, batches, Rotation(1, 8), Readers(1 << 20), seconds=1)
    assert set(seen.ms) == {"transformers eager"}
    assert seen.left_out["transformers batched_mm"].startswith("copies 0.0 GB of weights, 0.0 GB")
    assert ways[1].needs(128, 1000) == 128_000


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small run of the bench from its options to its file."""
    path = tmp_path_factory.mktemp("bench") / "experts.json"
    words = ["--sample", "--shapes", "qwen3-30b-a3b", "--dtypes", "float32", "bfloat16", "--batches", "1", "4"]
    options = bench_experts.arguments([*words, "--json", str(path)])
    options.threads = 1
    rows = bench_experts.measured([tiny("float32"), tiny("bfloat16", 5)], options)
    bench_experts.write(path, rows, options)
    return json.loads(path.read_text())


FIELDS = {
    "model", "storage", "B", "held", "routing", "layers", "entries", "active", "tokens_per_expert", "ridge",
    "memory_bound", "expert_bytes", "read_gb_s", "read_by", "peak_gflop_s", "bound_ms", "compute_ms", "janus", "ms",
    "samples", "bound_over_time", "left_out", "best_rival", "times_faster",
}  # fmt: skip


def test_the_file_says_where_it_was_measured_and_every_row_has_its_fields(results):
    assert {"command", "mode", "when", "commit", "machine", "versions", "threads", "cache_mib", "rows"} <= set(results)
    assert [(r["storage"], r["B"]) for r in results["rows"]] == [
        (s, B) for s in ("float32", "bfloat16") for B in (1, 4)
    ]
    for found in results["rows"]:
        assert set(found) == FIELDS
        assert found["janus"] in found["ms"]
        assert found["best_rival"] in found["ms"]
        assert found["times_faster"] > 0
        assert set(found["ms"]) == set(found["samples"]) == set(found["bound_over_time"])
        assert all(0 < low <= middle <= high for low, middle, high in found["ms"].values())
        assert found["tokens_per_expert"] == pytest.approx(found["entries"] / found["active"], abs=0.02)
        assert found["memory_bound"] == (found["tokens_per_expert"] < found["ridge"])
        gb_s = found["read_gb_s"][found["read_by"]][1]
        assert found["bound_ms"] == pytest.approx(
            bound_ms(found["active"], found["expert_bytes"], gb_s), rel=0.02, abs=1e-4
        )


def test_a_table_for_people_with_rich_and_without(results, capsys, monkeypatch):
    found = results["rows"][0]
    cells = bench_experts.lines(found)
    assert [line[0] for line in cells] == ["1"] + [""] * (len(found["ms"]) - 1)
    assert [float(line[6]) for line in cells] == sorted(float(line[6]) for line in cells), "the fastest first"
    assert sum(line[4].endswith(" *") for line in cells) == 1
    bench_experts.show("a title", cells)
    assert "a title" in capsys.readouterr().out
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    bench_experts.show("a title", cells)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "a title"
    assert len(out) == 2 + len(cells)
    assert len({len(line) for line in out[1:]}) == 1


def test_the_title_names_what_was_left_out_for_memory():
    rows = [{"model": "m", "storage": "int8", "held": "whole layer", "layers": 2, "routing": "uniform", "ridge": 7.0}]
    rows[0]["left_out"] = {"b": "copies 9 GB of weights, 1 GB of memory are free", "c": "does not run here: no GPU"}
    assert bench_experts.title(rows).splitlines()[3:] == ["b: copies 9 GB of weights, 1 GB of memory are free"]


def test_a_part_of_the_grid_does_not_write_over_the_committed_results():
    assert bench_experts.arguments([]).json == RESULTS
    assert bench_experts.arguments(["--dtypes", "int8"]).json == ROOT / "out" / "experts_cpu.json"
    sample = bench_experts.arguments(["--sample"])
    assert (sample.json, sample.rounds) == (ROOT / "out" / "experts_cpu.json", 4)
    assert {case.experts for case in bench_experts.chosen(sample)} == {4, 8}  # of Mixtral in float32, 4 fit
    with pytest.raises(SystemExit):
        bench_experts.arguments(["--shapes", "gpt-5"])


def test_a_picture_and_a_section_are_made_from_a_run(results, tmp_path):
    pytest.importorskip("matplotlib")
    plot_experts.write(plot_experts.picture(results["rows"]), tmp_path / "p.png")
    assert 5_000 < (tmp_path / "p.png").stat().st_size < 60 * 1024
    text = plot_experts.section(results)
    assert "| model | storage | held | B = 1 | B = 4 |" in text
    assert "| qwen3-30b-a3b | float32 | all |" in text
    assert "| qwen3-30b-a3b | bfloat16 | 5 of 8 |" in text


def test_the_sentences_of_the_page_are_those_of_the_rows(results):
    rows = [dict(r, times_faster=x, memory_bound=m) for r, x, m in zip(results["rows"], (2, 0.5, 1, 3), (1, 1, 0, 0), strict=True)]  # fmt: skip
    for found, share in zip(rows, (0.9, 0.7, 0.1, 0.1), strict=True):
        found["bound_over_time"] = {found["janus"]: share}
    said = "Not slower than the fastest way of transformers in 3 of 4 cells; 70 % to 90 % of the bound where memory decides"
    assert plot_experts.headline(rows) == said
    assert "Cells that are lost: qwen3-30b-a3b float32 B = 4 (0.50x)." in plot_experts.section(results | {"rows": rows})
    assert [plot_experts.cell(r) for r in (*rows, None)] == [
        "2.00x, 90 %",
        "0.50x, 70 %",
        "1.00x, compute",
        "3.00x, compute",
        "-",
    ]


def test_a_section_is_renewed_between_its_marks():
    page = f"a\n\n{plot_experts.BEGIN}\n\nold\n\n{plot_experts.END}\nb\n"
    assert plot_experts.renewed(page, "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="lacks the marks"):
        plot_experts.renewed("a page", "new")


def test_the_page_shows_the_committed_results():
    page = (ROOT / "docs" / "experts.md").read_text()
    assert plot_experts.BEGIN in page
    if RESULTS.exists():  # renew both with: python benchmarks/plot_experts.py
        results = json.loads(RESULTS.read_text())
        assert plot_experts.renewed(page, plot_experts.section(results)) == page
        assert (results["mode"], {r["model"] for r in results["rows"]}) == ("full", set(FAMILIES))


def proof(name):
    path = ROOT / "benchmarks" / "prove" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_accuracy_is_the_sum_by_hand():
    accuracy = proof("experts_accuracy")
    module = accuracy.made(TINY, torch.float32, seed=0)
    ((x, ids, weights),) = accuracy.batches(TINY, torch.float32, (3,))
    want = torch.zeros(3, 32, dtype=torch.float64)
    for t in range(3):
        for e, w in zip(ids[t].tolist(), weights[t].tolist(), strict=True):
            gate, up = (module.gate_up_proj[e].double() @ x[t].double()).chunk(2)
            want[t] += w * (module.down_proj[e].double() @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(accuracy.reference(module, x, ids, weights), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("experts", [1, 2, 5, 7, 8, 32])
def test_the_other_placement_holds_every_expert_in_another_order(experts):
    placement = proof("experts_accuracy").elsewhere(experts)
    assert placement.num_instances == 3
    assert set(placement.phy2log[0].tolist()) - {-1} == set(range(experts))
    if experts > 1:
        assert [e for e in placement.phy2log[0].tolist() if e >= 0] != list(range(experts))


def test_a_wrong_way_is_seen_by_the_accuracy(monkeypatch, capsys):
    accuracy = proof("experts_accuracy")
    module = accuracy.made(TINY, torch.float32, seed=0)
    good, bad, given = accuracy.Found(), accuracy.Found(), accuracy.cases(module, TINY, (1, 4))
    accuracy.look(good, module, "eager", TINY, given)
    run = accuracy.JanusMoELayer.forward

    def drifting(layer, x, ids, weights):
        layer.calls = getattr(layer, "calls", 0) + 1
        return run(layer, x, ids, weights) * (1 + 1e-4 * layer.calls)

    monkeypatch.setattr(accuracy.JanusMoELayer, "forward", drifting)
    monkeypatch.setattr(accuracy, "promises", lambda layer, name: True)
    accuracy.look(bad, module, "eager", TINY, given)
    assert all(figure["ok"] for figure in accuracy.judged("eager", good))
    assert not any(figure["ok"] for figure in accuracy.judged("eager", bad))
    assert (bad.calls, bad.again, bad.placed > 0, bad.alone > 0) == (2, 2, True, True)


def test_the_bars_of_the_speed(results, capsys):
    speed = proof("experts_speed")
    rows = [
        dict(results["rows"][0], B=B, times_faster=x, memory_bound=True) for B, x in ((1, 1.6), (4, 1.4), (64, 0.9))
    ]
    for found in rows:
        found["bound_over_time"] = {found["janus"]: 0.81}
    oks = [figure["ok"] for figure in speed.judged("float32", rows, slack=1)]
    assert oks == [False, False, True]
    assert [figure["value"] for figure in speed.judged("float32", rows, slack=5)] == [0.9, 1.4, 0.81]
    assert all(figure["ok"] for figure in speed.judged("float32", rows, slack=5))
    rows[1]["memory_bound"] = False
    assert len(speed.judged("float32", [rows[1]], slack=1)) == 2, "no bar on memory where compute decides"


def test_layers_of_every_size_read_the_same_weights_in_a_circle():
    speed = proof("experts_speed")
    for E in (4, 8, 16):
        read = [speed.read(4, number, E) for number in range(4)]
        assert [layer * E + e for layer, ids in read for e in ids.ravel().tolist()] == list(range(16))
    assert speed.read(32, 3, 128)[1].shape == (4, 8)


def test_inputs_have_the_dtype_of_the_storage_and_weights_that_sum_to_one():
    ids = np.zeros((3, 2), np.int64)
    for storage, dtype in COMPUTE.items():
        x, weights = inputs(tiny(storage), ids)
        assert (x.shape, x.dtype, weights.dtype) == ((3, 32), dtype, dtype)
        torch.testing.assert_close(weights.sum(1).float(), torch.ones(3), rtol=1e-2, atol=1e-2)


def test_the_way_that_auto_takes_is_compared_whichever_ran_first():
    ms = {"janus eager": [9.0, 9.0], "transformers eager": [4.0, 6.0], "janus mixed": [2.0, 2.0]}
    seen = Seen(ms=ms, rounds={name: [0, 1] for name in ms}, active=[2, 2], entries=[4, 4])
    readers = argparse.Namespace(gb_s={"torch": [2.0]}, best=lambda: ("torch", 2.0))
    found = row(tiny("float32"), 4, "uniform", 1, seen, readers, 1e12, {}, "janus mixed")
    assert (found["janus"], found["best_rival"], found["times_faster"]) == ("janus mixed", "transformers eager", 2.5)


def test_without_a_way_of_ours_a_row_compares_nothing():
    seen = Seen(ms={"transformers eager": [1.0]}, rounds={"transformers eager": [0]}, active=[2], entries=[4])
    readers = argparse.Namespace(gb_s={"torch": [2.0]}, best=lambda: ("torch", 2.0))
    found = row(tiny("int8"), 4, "uniform", 1, seen, readers, 1e12, {"janus int8": "absent"}, None)
    assert (found["janus"], found["best_rival"], found["times_faster"]) == (None, None, None)
    assert found["left_out"] == {"janus int8": "absent"}
    assert plot_experts.cell(found) == "-"
