"""ServeGen: recorded counts kept exactly, summaries met, idle cells and corrupt lines handled."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_strategies import refuses

from janus.types import RequestTrace
from janus.types.servegen import LEVELS, _mean_of, arrivals, length_knots

RATE = "client_id,t_seconds,rate_rps,cv,pattern,param1,param2\n"
LENGTHS = (
    "client_id,t_seconds,input_mean,input_p50,input_p95,output_mean,output_p50,output_p95\n"
    "0,0,200,150,600,300,250,800\n0,21600,,,,,,\n1,0,,,,,,\n"
)


@pytest.fixture
def drawn(tmp_path):
    def draw(rates: str, lengths: str = LENGTHS, **options) -> RequestTrace:
        (tmp_path / "rate.csv").write_text(RATE + rates)
        (tmp_path / "lengths.csv").write_text(lengths)
        return RequestTrace.from_servegen(tmp_path / "rate.csv", tmp_path / "lengths.csv", **options)

    return draw


def test_counts_are_kept_and_idle_windows_stay_idle(drawn):
    trace = drawn("0,0,0.5,1,Gamma,1,2\n0,600,0,0,,0,0\n1,600,,0,,,\n0,1200,0.25,1,Weibull,0.5,2\n", hours=1)
    assert np.bincount((trace.times_s // 600).astype(int)).tolist() == [300, 0, 150]
    assert trace.duration_s == 3600
    assert trace.recorded is False
    assert "drawn from ServeGen summaries" in trace.source


def test_hours_choose_whole_windows(drawn):
    rates = "".join(f"0,{start},0.1,1,Gamma,1,10\n" for start in range(0, 7200, 600))
    assert drawn(rates).num_requests == 720
    assert drawn(rates, hours=1).num_requests == 360
    assert drawn(rates, hours=0.25).num_requests == 60  # the second window ends after 900 s
    late = drawn(rates, hours=(1.5, 2))
    assert (late.num_requests, late.duration_s) == (180, 1800)
    assert late.times_s.max() < 1800
    for hours in (0, -1, (1, 1), (-1, 2), (1, 2, 3), "day", float("nan")):
        refuses("requests.range", "hours must be", drawn, rates, hours=hours)


def test_the_seed_decides(drawn):
    rates = "0,0,0.5,1,Gamma,1,2\n"
    assert drawn(rates, seed=3) == drawn(rates, seed=3)
    assert drawn(rates, seed=3) != drawn(rates, seed=4)


def test_an_idle_span_borrows_the_lengths_before_it(drawn):
    assert drawn("0,22200,0.1,1,Gamma,1,10\n").num_requests == 60
    later = LENGTHS.replace("0,0,200", "0,43200,200")
    assert drawn("0,600,0.1,1,Gamma,1,10\n", later).num_requests == 60
    refuses("requests.file", "client 1 has arrivals at 600 s but no lengths", drawn, "1,600,0.1,1,Gamma,1,10\n")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0,0,0.1,1,Pareto,1,1", "'Gamma', 'Weibull'; got 'Pareto'"),
        ("0,0,0.1,1,,1,1", "got ''"),
        ("0,0,x,1,Gamma,1,1", "rate_rps must be a finite number >= 0, got 'x'"),
        ("0,0,inf,1,Gamma,1,1", "got 'inf'"),
        ("0,0,0.1,1,Gamma,0,1", "must be > 0"),
        ("0,0,1e308,1,Gamma,1,1", "got '1e308'; at most 1e+06"),  # 600 s of it are no number
        ("0,0,0.1,1,Gamma,1e308,1", "at most 1e+09"),  # gaps would overflow
        ("0,0,0.1,1,Weibull,1,1e308", "at most 1e+09"),
        ("0,0,0.1,1,Gamma,1", "a row has 7 cells, got 6"),
    ],
)
def test_a_corrupt_rate_is_named(drawn, row, words):
    refuses("requests.file", "rate.csv: line 3: ", drawn, f"0,0,0,0,,0,0\n{row}\n")
    refuses("requests.file", words, drawn, f"0,0,0,0,,0,0\n{row}\n")


@pytest.mark.parametrize(
    "cells", ["1,2,3,4,5", "0,1,2,1,1,1", "1,3,2,1,1,1", "x,1,1,1,1,1", "1,,1,1,1,1", "1,0,1,1,1,1"]
)
def test_a_corrupt_length_is_named(drawn, cells):
    lengths = LENGTHS.split("\n")[0] + f"\n0,0,{cells}\n"
    refuses("requests.file", "lengths.csv: line 2: ", drawn, "0,0,0.1,1,Gamma,1,10\n", lengths)


def test_missing_columns_and_absurd_amounts_are_refused(drawn):
    refuses("requests.file", "must name the column 'input_mean'", drawn, "", "client_id,t_seconds\n")
    refuses("requests.file", "more than 10000000", drawn, "0,0,1e6,1,Gamma,1,1\n")


@pytest.mark.parametrize(("pattern", "shape", "scale"), [("Gamma", 0.02, 73), ("Gamma", 14, 2.2), ("Weibull", 0.3, 1)])
def test_arrivals_ascend_inside_their_window(pattern, shape, scale):
    for seed in range(20):
        times = arrivals(200, pattern, shape, scale, np.random.default_rng(seed))
        assert len(times) == 200
        assert times[0] >= 0
        assert times[-1] < 600
        assert (np.diff(times) >= 0).all()


def test_gaps_have_the_fitted_spread():
    gaps = np.concatenate(
        [np.diff(arrivals(300, "Gamma", 4.0, 0.4, np.random.default_rng(seed))) for seed in range(50)]
    )
    assert gaps.mean() == pytest.approx(1.6, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(0.5, rel=0.05)  # cv = 1 / sqrt(shape)


@given(st.floats(1, 1e4), st.floats(1, 100), st.floats(0.5, 2))
@settings(max_examples=100, deadline=None)
def test_lengths_meet_the_mean_always_and_the_quantiles_when_possible(p50, tail, skew):
    p95, mean = p50 * tail, p50 * skew * tail**0.3
    knots = length_knots(mean, p50, p95)
    assert (np.diff(knots) >= -1e-9 * knots[:-1]).all()
    assert _mean_of(knots) == pytest.approx(mean, rel=1e-6)
    fine = np.exp(np.interp(np.linspace(0, 1, 20_001), LEVELS, np.log(knots)))
    assert np.trapezoid(fine, dx=1 / 20_000) == pytest.approx(mean, rel=1e-3)
    lowest, highest = (_mean_of(np.array([max(1, p50**2 / p95), p50, p95, top])) for top in (p95, 10 * p95))
    if lowest <= mean <= highest:
        assert knots[1:3].tolist() == pytest.approx([p50, p95], rel=1e-6)


def test_the_recorded_day(shared_data):
    files = [shared_data / f"traces/servegen_deepseek_r1_{name}.csv" for name in ("rate", "lengths")]
    trace = RequestTrace.from_servegen(*files, hours=24)
    per_window = np.bincount((trace.times_s // 600).astype(int), minlength=144) / 600
    assert per_window.min() == pytest.approx(4.31, abs=0.01)
    assert per_window.max() == pytest.approx(42.52, abs=0.01)
    assert trace.rate_rps == pytest.approx(16.01, abs=0.01)
    with files[0].open() as rates, files[1].open() as lengths:
        weight = {}
        for row in csv.DictReader(rates):
            key = row["client_id"], int(row["t_seconds"]) // 21600 * 21600
            weight[key] = weight.get(key, 0) + round(float(row["rate_rps"]) * 600)
        rows = [(weight[r["client_id"], int(r["t_seconds"])], r) for r in csv.DictReader(lengths) if r["input_mean"]]
    for name, got in (("input_mean", trace.mean_input), ("output_mean", trace.mean_output)):
        recorded = sum(n * float(r[name]) for n, r in rows) / sum(n for n, _ in rows)
        assert got == pytest.approx(recorded, rel=0.01)
