"""Measured serving points: what is read, what is refused, which copies go; and the errors on the real ones."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from silicon_cases import METHODS, Cases, cross, errors, regression, score, table

from janus.errors import JanusError
from janus.scale import EngineModel
from janus.scale.engine.silicon import COLUMNS, distinct, read_silicon

ROW = {
    "id": "a", "backend": "vllm", "backend_version": "0.18.0", "model_path": "openai/gpt-oss-120b", "system": "h200_sxm",
    "mode": "agg", "isl": "1024", "osl": "1024", "gemm_quant_mode": "nvfp4", "moe_quant_mode": "nvfp4", "batch_size": "8.0",
    "tp_size": "2.0", "pp_size": "1.0", "attention_dp_size": "1.0", "moe_tp_size": "2.0", "moe_ep_size": "1.0",
    "silicon_ttft_ms": "60.5", "silicon_tpot_ms": "6.25",
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def write(*changes, columns=COLUMNS, **options):
        path = tmp_path / "points.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(ROW | change for change in changes)
        return read_silicon(path, **options)

    return write


@pytest.fixture(scope="module")
def real(shared):
    return read_silicon(shared / "data" / "e2e_silicon" / "silicon_h100_h200_moe.csv")


def test_a_row_becomes_a_point(read):
    (point,) = read({})
    c = point.config
    assert (c.model.name, c.model.expert_dtype, c.model.dense_dtype) == ("gpt-oss-120b", "mxfp4", "bf16")
    assert (c.cluster.gpu.name, c.batch, c.isl, c.osl, c.tp, c.dp, c.ep, c.pp) == (
        "h200-sxm",
        8,
        1024,
        1024,
        2,
        1,
        1,
        1,
    )
    assert (point.engine, point.version, point.tpot_ms, point.ttft_ms, point.row) == ("vllm", "0.18.0", 6.25, 60.5, "a")
    assert point.group == ("gpt-oss-120b", "vllm", "0.18.0", 2, 1, 1, 1)


def test_the_two_names_of_deepseek_are_one_model_and_minimax_is_its_size(read):
    both = read({"model_path": "deepseek-ai/DeepSeek-R1"}, {"model_path": "deepseek-ai/DeepSeek-V3"})
    assert both[0].config.model == both[1].config.model
    (minimax,) = read({"model_path": "MiniMaxAI/MiniMax-M2.5", "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8_block"})
    model = minimax.config.model
    assert model.total_params == pytest.approx(229.9e9, rel=0.01)
    assert model.active_params == pytest.approx(9.8e9, rel=0.15)  # embeddings counted
    assert (model.expert_dtype, model.dense_dtype) == ("fp8", "fp8")


@pytest.mark.parametrize(
    ("sizes", "want"),
    [
        (("8", "1", "8", "1", "4"), (8, 1, 1, 4)),  # tp, dp, moe_tp, moe_ep, batch -> tp, dp, ep, batch
        (("8", "1", "1", "8", "4"), (8, 1, 8, 4)),
        (("1", "8", "1", "8", "4"), (1, 8, 8, 32)),  # requests are counted per attention rank
        (("64", "1", "8", "8", "4"), (8, 1, 8, 4)),  # eight GPUs named twice
        (("1", "64", "8", "8", "2"), (1, 8, 8, 128)),
        (("4", "1", "2", "2", "4"), (4, 1, 2, 4)),  # four GPUs, experts cut and spread
        (("2", "", "4", "1", "9"), (2, 2, 1, 9)),  # no count of ranks: requests of the whole engine
        (("4", "", "4", "1", "9"), (4, 1, 1, 9)),
    ],
)
def test_parallelism_is_brought_to_what_ran(read, sizes, want):
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "batch_size")
    (point,) = read(dict(zip(names, sizes, strict=True)))
    c = point.config
    assert (c.tp, c.dp, c.ep, c.batch) == want


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_path": "openai/gpt-oss-121b"}, "model_path in points.csv line 3.*gpt-oss-120b"),
        ({"system": "tpu"}, "system in points.csv line 3"),
        ({"moe_quant_mode": "int3"}, "moe_quant_mode in points.csv line 3"),
        ({"silicon_tpot_ms": "-1"}, r"silicon_tpot_ms in points.csv line 3 must be a finite number > 0, got -1"),
        ({"silicon_tpot_ms": "nan"}, "silicon_tpot_ms in points.csv line 3"),
        ({"silicon_ttft_ms": ""}, "silicon_ttft_ms in points.csv line 3 must be a finite number > 0, got ''"),
        ({"batch_size": "2.5"}, "batch_size in points.csv line 3 must be a whole number >= 1, got '2.5'"),
        ({"tp_size": "3"}, "tp x attention_dp must equal moe_tp x moe_ep; got 3 x 1 and 2 x 1"),
    ],
)
def test_a_row_without_sense_is_named_by_line_and_column(read, change, says):
    with pytest.raises(JanusError, match=says) as caught:
        read({}, change)
    assert caught.value.code == "silicon.row"


def test_files_that_hold_no_points_are_refused(read, tmp_path):
    with pytest.raises(JanusError, match="lacks the columns"):
        read({}, columns=COLUMNS[:-1])
    with pytest.raises(JanusError, match="no row of mode 'disagg'"):
        read({}, mode="disagg")
    with pytest.raises(JanusError, match="cannot be read"):
        read_silicon(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JanusError, match=r"silicon.file"):
        read_silicon(tmp_path / "bytes.csv")


def test_near_duplicates_leave_their_median_and_other_measurements_stay(read):
    points = read(*({"silicon_tpot_ms": str(t), "id": str(t)} for t in (10.0, 10.1, 10.2, 14.0)), {"batch_size": "16"})
    kept = distinct(points)
    assert sorted(p.row for p in kept) == ["10.1", "14.0", "a"]
    assert distinct([]) == []


def test_one_measurement_under_two_versions_is_one_family(read):
    def row(version, batch, tpot, tp="2"):
        return {
            "backend_version": version, "batch_size": batch, "silicon_tpot_ms": tpot, "tp_size": tp, "moe_tp_size": tp
        }  # fmt: skip

    first = [row("1", "8", "6.0"), row("1", "16", "8.0"), row("1", "32", "11.0")]
    copies = distinct(read(*first, row("", "8", "6.01"), row("", "16", "8.01"), row("", "64", "15")))
    assert len({p.family for p in copies}) == 1
    assert len(copies) == 4
    chance = distinct(read(*first, row("", "8", "6.01"), row("", "16", "9"), row("", "64", "15")))
    assert len({p.family for p in chance}) == 2
    other_gpu = [replace_system(r) for r in (row("", "8", "6.0"), row("", "16", "8.0"))]
    assert len({p.family for p in distinct(read(*first, *other_gpu))}) == 2


def replace_system(row):
    return row | {"system": "h100_sxm"}


def test_gpu_types_share_a_group(read):
    points = distinct(read({}, {"system": "h100_sxm", "silicon_tpot_ms": "7"}))
    assert len(points) == 2
    assert len({p.family for p in points}) == 1


def test_the_real_rows_and_their_families(real):
    points = distinct(real)
    assert (len(real), len(points), len({p.family for p in points})) == (386, 305, 23)
    assert all(p.config.gpus <= 8 for p in points)


def test_held_out_families_are_predicted_within_the_bars(real):
    cases = Cases(distinct(real))
    for method in ("roofline, unfitted", "fitted"):
        median, mean = score(errors(cross(cases, cases.labels("family"), METHODS[method]), cases.times))
        assert median <= 15, method
        assert mean <= 25, method


def test_no_method_sees_the_times_it_predicts(read):
    """Held-out times ten times as long change no prediction of theirs."""
    rows = [
        {"backend_version": version, "batch_size": str(batch), "silicon_tpot_ms": str(5 + batch / 4 + shift)}
        for shift, version in enumerate("xyz")
        for batch in (4, 8, 16, 32)
    ]
    cases = Cases(distinct(read(*rows)))
    labels = cases.labels("family")
    held = np.array(labels) == labels[0]
    for method in [*METHODS.values(), regression(0.1)]:
        before = cross(cases, labels, method)[held]
        cases.times = np.where(held, 10 * cases.times, cases.times)
        assert cross(cases, labels, method)[held] == pytest.approx(before)
        cases.times = np.where(held, cases.times / 10, cases.times)


def test_the_regression_finds_a_power_law(read):
    rows = [
        {"batch_size": str(b), "isl": str(i), "silicon_tpot_ms": str(b**0.5 * i**0.2)}
        for b in (2, 8, 32)
        for i in (10, 99)
    ]
    cases = Cases(distinct(read(*rows)))
    everything = np.full(len(cases.points), True)
    assert regression(1e-9)(cases, everything, everything) == pytest.approx(cases.times, rel=1e-6)


def test_the_hybrid_is_the_fit_where_the_fit_is_exact(read):
    (point,) = read({})
    configs = [replace(point.config, batch=batch) for batch in (4, 8, 16, 32)]
    points = [replace(point, config=c, tpot_ms=EngineModel().predict(c), family=str(c.batch)) for c in configs]
    cases = Cases(points)
    for method in METHODS.values():
        assert cross(cases, cases.labels("family"), method) == pytest.approx(cases.times, rel=1e-6)


def test_a_table_has_a_row_per_model_and_engine(read):
    cases = Cases(distinct(read({}, {"batch_size": "16"}, {"backend": "trtllm"})))
    got = table(cases, np.array([1.0, 2.0, 6.0]))
    assert {key: row["points"] for key, row in got.items()} == {"gpt-oss-120b trtllm": 1, "gpt-oss-120b vllm": 2}
    assert sum(row["mape"] * row["points"] for row in got.values()) == pytest.approx(9)


def prove(root, folder):
    script = root / "benchmarks" / "prove" / "scale_silicon.py"
    environment = os.environ | {"JANUS_SHARED": str(folder)}
    done = subprocess.run(
        [sys.executable, script, "--sample"], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])["figures"]


def test_the_proof_without_points_says_so(root, tmp_path):
    (only,) = prove(root, tmp_path)
    assert only["ok"]
    assert "absent" in only["note"]


def test_the_proof_meets_its_bars(root, shared):
    figures = prove(root, shared)
    assert len(figures) >= 8
    assert all(f["ok"] for f in figures)
