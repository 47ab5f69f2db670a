"""What a simulation hands back: figures that can be checked by hand, a file, a picture."""

import json

import numpy as np
import pytest

from janus.errors import JanusError
from janus.scale import Cluster, Hardware, simulate
from janus.scale.days.timeline import COLUMNS, DECODE_ONLY, request_tpot_ms
from janus.scale.pictures import draw_days
from janus.types import RequestTrace, Slo

OPTIONS = {"max_attention": 3, "max_experts": 4, "max_batch": 64, "tiers": (4, 8), "window_s": 1.0, "start_s": 0.1}


@pytest.fixture(scope="module")
def days(olmoe, small_cluster, skewed):
    rng = np.random.default_rng(3)
    times = np.sort(rng.uniform(0, 3.5, 120))
    requests = RequestTrace(
        times, rng.integers(5, 400, 120), rng.integers(1, 60, 120), duration_s=4.0, source="made up"
    )
    args = {"model": olmoe, "cluster": small_cluster, "slo": Slo(12, percentile=90), "trace": skewed(16, 64)}
    return requests, simulate(requests, ["janus", "monolithic"], **args, **OPTIONS)


def test_rows_and_totals_say_the_same(days):
    requests, found = days
    for day in found.values():
        assert all(len(getattr(day, name)) == len(day.times_s) for name in COLUMNS)
        assert day.times_s.tolist() == list(range(len(day.times_s)))
        assert day.requests == 120
        assert (day.demand * day.window_s).sum() == pytest.approx(day.tokens)
        within = day.request_tpot_ms <= 12
        assert day.attainment == within.mean()
        arrived = np.bincount(requests.times_s.astype(int), minlength=len(day.times_s))
        assert np.nansum(day.attained * arrived) == pytest.approx(within.sum())
        assert day.kept == (within.mean() >= 0.9)
        assert day.percentile_ms(50) == np.median(day.request_tpot_ms)


def test_every_gpu_of_a_colocated_deployment_is_counted_once(days):
    alone = days[1]["monolithic"]
    assert alone.colocated
    assert alone.n_attention.tolist() == alone.n_experts.tolist()
    assert alone.gpus[0] == alone.n_attention[0]


def test_tpot_is_the_mean_gap_between_output_tokens_from_the_arrival_on():
    found = request_tpot_ms(np.array([1.0, 2.0]), np.array([1.3, 2.0]), np.array([4, 1]))
    assert found.round(9).tolist() == [100.0, 0.0]


def test_a_saved_timeline_is_json_without_nan(days, tmp_path):
    day = days[1]["janus"]
    day.save(tmp_path / "day.json")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    read = json.loads((tmp_path / "day.json").read_text(), parse_constant=refuse)
    assert read["format"] == "janus.timeline/1"
    assert read["policy"] == "janus"
    assert read["gpu_hours"] == day.gpu_hours
    assert read["n_attention"] == day.n_attention.tolist()
    assert read["slo"] == {"tpot_ms": 12.0, "percentile": 90.0}
    assert [d["time_s"] for d in read["decisions"]] == [d.time_s for d in day.decisions]


def test_a_path_that_cannot_be_written_is_refused(days, tmp_path):
    with pytest.raises(JanusError, match=r"scale.save"):
        days[1]["janus"].save(tmp_path / "no" / "such" / "folder.json")


def test_every_output_says_that_it_is_decode_only_and_what_it_rests_on(days):
    day = days[1]["janus"]
    for text in (str(day), json.dumps(day.to_dict())):
        assert DECODE_ONLY in text
        assert "popularity counts" in text
        assert "made up" in text
        assert "datasheet of toy" in text


def test_dollars_are_hours_times_the_price(days):
    day = days[1]["janus"]
    price = getattr(Hardware.preset("h100-sxm"), "usd_per_hour", None)
    assert day.usd == (None if day.usd_per_hour is None else day.gpu_hours * day.usd_per_hour)
    from dataclasses import replace

    priced = replace(day, usd_per_hour=2.5)
    assert priced.usd == 2.5 * day.gpu_hours
    assert f"{priced.usd:.0f} $" in str(priced)
    assert price is None or price > 0


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_one_day_or_several_are_drawn(days, tmp_path, ending):
    pytest.importorskip("matplotlib")
    days[1]["janus"].plot(tmp_path / f"one.{ending}")
    draw_days(list(days[1].values()), tmp_path / f"all.{ending}")
    assert (tmp_path / f"one.{ending}").stat().st_size > 5000
    if ending == "svg":
        text = (tmp_path / "all.svg").read_text()
        assert text.count("<path") > 20


def test_a_picture_is_refused_before_matplotlib_is_asked(days, tmp_path):
    with pytest.raises(JanusError, match=r"ends in one of"):
        days[1]["janus"].plot(tmp_path / "day.gif")
    with pytest.raises(JanusError, match="at least one timeline"):
        draw_days([], tmp_path / "day.png")


def test_requests_that_were_drawn_are_called_so(olmoe, small_cluster, skewed):
    one = RequestTrace([0.0], [5], [3], duration_s=1.0, source="a generator", recorded=False)
    day = simulate(one, "static", model=olmoe, cluster=small_cluster, slo=12, trace=skewed(16, 64), **OPTIONS)
    assert day.basis["requests"] == "a generator (drawn, not recorded)"


def test_the_hardware_of_a_preset_is_named(olmoe, skewed):
    one = RequestTrace([0.0], [5], [3], duration_s=1.0)
    day = simulate(one, model=olmoe, cluster=Cluster("h100-sxm"), slo=12, trace=skewed(16, 64), **OPTIONS)
    assert day.basis["model"] == "olmoe-1b-7b on h100-sxm"
