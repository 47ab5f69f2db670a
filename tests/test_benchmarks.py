"""What the benchmarks share says what is so: model sizes, times and their spread, where it was measured."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import bench_sched
import figures
import numpy as np
import plot_sched
import pytest
from shapes import MODELS, SHAPES

from janus.scale import ModelSpec

ROOT = Path(__file__).resolve().parents[1]


def sizes(spec: ModelSpec):
    return (spec.experts, spec.top_k, spec.hidden, spec.expert_width, spec.moe_layers)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_sizes_are_those_of_the_models_configs(model):
    assert dataclasses.astuple(model)[1:6] == sizes(ModelSpec.from_config(model.name))


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_sizes_are_those_of_the_published_configs(shared, model):
    named = re.compile(rf"--{model.name}(-instruct|-v0.1)?_config.json")
    found = [p for p in (shared / "data" / "model_configs").iterdir() if named.search(p.name.lower())]
    assert len(found) == 1
    assert dataclasses.astuple(model)[1:6] == sizes(ModelSpec.from_config(found[0]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_every_pool_has_room_for_replicas(shape):
    assert shape.model.experts < shape.slots <= shape.instances * shape.model.experts
    assert SHAPES[shape.name] is shape


def test_the_named_shapes_cover_these_models():
    assert {(m.experts, m.top_k) for m in MODELS.values()} >= {(8, 2), (32, 4), (128, 8), (160, 6), (256, 8), (384, 8)}


def test_a_spread_is_the_10th_50th_and_90th_percentile():
    assert figures.spread(np.arange(101) / 10) == [1.0, 5.0, 9.0]


def test_progress_without_a_terminal_is_plain_lines_on_stderr(capsys):
    with figures.progress("cases", 3) as step:
        for words in "abc":
            step(words)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "cases: 3 of 3, c\n")


def test_a_figure_says_whether_it_met_its_bar(capsys):
    made = figures.figure("speed", 3, "< 2", False, "us")
    assert made == {"name": "speed", "value": 3, "bar": "< 2", "ok": False, "unit": "us", "note": ""}
    assert capsys.readouterr().err == "MISS speed: 3 us (bar: < 2)\n"
    figures.report([made])
    assert json.loads(capsys.readouterr().out)["figures"] == [made]


def test_the_page_shows_the_committed_results():
    rows = json.loads((ROOT / "benchmarks" / "results" / "sched_cpu.json").read_text())["rows"]
    page = (ROOT / "docs" / "sched.md").read_text()
    # renew both with: python benchmarks/plot_sched.py
    assert [line for line in plot_sched.table(rows) if line not in page] == []


def test_a_table_is_renewed_in_its_place():
    lines = ["| a |", "|---|", "| 1 |"]
    assert plot_sched.renewed("x\n\n| a |\n|---|\n| 0 |\n| 9 |\n\ny\n", lines) == "x\n\n| a |\n|---|\n| 1 |\n\ny\n"
    assert plot_sched.renewed("| b |\n", lines) == "| b |\n"


def test_the_committed_results_cover_every_shape_and_say_where_they_come_from():
    results = json.loads((ROOT / "benchmarks" / "results" / "sched_cpu.json").read_text())
    assert {row["shape"] for row in results["rows"]} == set(SHAPES)
    assert all(row["routing"].startswith(("recorded", "synthetic")) for row in results["rows"])
    assert {"machine", "versions", "commit", "when"} <= set(results)
    exact = [row for row in results["rows"] if row["method"] == "exact"]
    assert all(row["lower_bound"] <= row["a_max"] for row in exact)


def test_pictures_are_drawn_small_from_the_committed_results(tmp_path):
    pytest.importorskip("matplotlib")
    rows = json.loads((ROOT / "benchmarks" / "results" / "sched_cpu.json").read_text())["rows"]
    for name, draw in plot_sched.PICTURES.items():
        plot_sched.write(draw(rows), tmp_path / name)
        assert (tmp_path / name).stat().st_size < 60 * 1024
        assert (ROOT / "docs" / "assets" / name).stat().st_size < 60 * 1024


def test_a_row_of_the_bench_has_what_the_head_of_the_table_says():
    (row, *_) = bench_sched.rows(SHAPES["mixtral-8x7b 4x3"], quick=True)
    assert (row["shape"], row["B"], row["method"]) == ("mixtral-8x7b 4x3", 1, "exact")
    assert row["lower_bound"] <= row["a_max"] <= 2
    assert row["tokens_max_over_mean"] >= 1
    low, middle, high = row["call_us"]["numba"]
    assert 0 < low <= middle <= high
    assert 0 < row["solve_us"]["numba"][1] < middle
    assert bench_sched.line(row).startswith("mixtral-8x7b 4x3")


def gpu(*words, **environment):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, "benchmarks/gpu", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=env, cwd=ROOT)


def test_without_a_gpu_the_suite_says_so_and_exits_4(tmp_path):
    done = gpu("--out", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 4
    assert "sees no CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_is_refused_with_the_known_ones():
    done = gpu("--only", "speed")
    assert done.returncode == 3
    assert "sched_ids, sched_speed" in done.stderr


def test_the_suite_runs_a_part_in_the_interpreter_and_writes_where(tmp_path):
    done = gpu(
        "--interpret", "--only", "sched_sanitizer", "--out", tmp_path, "--commit", "abc", CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert (written["mode"], written["commit"], written["parts"][0]["part"]) == (
        "interpreter",
        "abc",
        "sched_sanitizer",
    )
    assert written["machine"]["cores"] == os.cpu_count()
    assert f"2 of 2 bars met; 0 of 1 parts failed; {tmp_path / 'gpu.json'}" in done.stdout


def test_a_cut_of_the_kernel_can_be_timed():
    code = """
        import sys
        sys.path.insert(0, "benchmarks/gpu")
        import torch, sched_cut
        from janus.types import Placement
        print(*sched_cut.times(sched_cut.Launch(), Placement([[0, 1]], 2), {1: [torch.tensor([[0]])]}))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env, cwd=ROOT)
    assert done.stdout == "1\n", done.stderr


def test_the_time_of_another_kernel_is_found_beside_the_results():
    code = (
        "import sys; sys.path.insert(0, 'benchmarks/gpu'); from experts_on_gpu import *; print(h200_row(CASES[0], 1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert done.stdout == "SGLang 0.5.14 on an H200: 36.4 us (power_law_1.01)\n", done.stderr


@pytest.fixture
def suite(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_suite", ROOT / "benchmarks" / "gpu" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_has_a_script_and_a_deadline(suite):
    parts = suite.find_parts("")
    shared = ("__main__", "on_gpu", "experts_on_gpu")
    scripts = {path.stem for path in (ROOT / "benchmarks" / "gpu").glob("*.py")}
    assert {part.script.stem for part in parts} == scripts.difference(shared)
    assert suite.TOTAL_S <= 480


def test_a_part_that_fails_stops_no_other(suite, tmp_path, monkeypatch):
    report = "import json; print(json.dumps({'figures': [{'name': 'n', 'value': 1, 'bar': '1', 'ok': True}]}))"
    scripts = {"dies": "raise SystemExit(5)", "hangs": "import time; time.sleep(60)", "good": report}
    parts = []
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
        parts.append(suite.Part("gpu", name, tmp_path / f"{name}.py"))
    monkeypatch.setattr(suite, "DEADLINES_S", {"dies": 20, "hangs": 2, "good": 20})
    results = list(suite.run_all(parts, sample=True))
    assert [bool(result.failure) for result in results] == [True, True, False]
    assert suite.summary(results) == ("1 of 1 bars met; 2 of 3 parts failed; failed: dies, hangs", 2)
    assert suite.summary(results[2:])[1] == 0
    monkeypatch.setattr(suite, "TOTAL_S", 0)
    assert "not started" in next(suite.run_all(parts, sample=True)).failure
