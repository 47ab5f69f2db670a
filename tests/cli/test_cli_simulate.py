"""`janus simulate`: what its options name reaches the simulation, and what comes back is told."""

import json

import numpy as np
import pytest

from janus import RequestTrace, RoutingTrace
from janus.cli import main
from janus.types.samples import sample

SHIPPED = ["--requests", "azure-conversation", "--routing", "gptoss20b-routing", "--synthetic"]
SMALL = ["simulate", "olmoe-1b-7b", "--slo-ms", "50", "--max-attention", "2", "--max-experts", "2"]
RATES = "client_id,t_seconds,rate_rps,cv,pattern,param1,param2\n0,0,0.1,1,Gamma,1,10\n0,600,0.1,1,Gamma,1,10\n"
LENGTHS = (
    "client_id,t_seconds,input_mean,input_p50,input_p95,output_mean,output_p50,output_p95\n0,0,100,90,200,10,9,20\n"
)


@pytest.fixture
def simulated(monkeypatch):
    """The arguments the simulation would get; it raises instead of running."""
    calls = []

    class Simulated(Exception):
        pass

    def simulate(requests, policies, **options):
        calls.append({"requests": requests, "policies": policies, **options})
        raise Simulated

    monkeypatch.setattr("janus.cli.simulate.simulate", simulate)

    def ask(*arguments):
        with pytest.raises(Simulated):
            main([*SMALL, *arguments])
        return calls[-1]

    return ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A short trace, so that a real run takes a second."""
    folder = tmp_path_factory.mktemp("day")
    RequestTrace(10.0 * np.arange(30), [100] * 30, [20] * 30, duration_s=300, source="thirty").save(folder / "r.npz")
    (folder / "rates.csv").write_text(RATES)
    (folder / "lengths.csv").write_text(LENGTHS)
    return folder


def run(folder, *arguments):
    requests = ["--requests", str(folder / "r.npz"), "--routing", "gptoss20b-routing", "--synthetic"]
    return main([*SMALL, *requests, "--window-s", "100", *arguments])


def refuse(capsys, *arguments):
    assert main([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    return error["code"], error["message"]


# ---- what reaches the simulation


def test_defaults(simulated):
    got = simulated(*SHIPPED)
    assert got["policies"] == ["janus"]
    assert got["requests"] == RequestTrace.load(sample("azure-conversation"))
    assert (got["model"].name, got["trace"].num_experts, got["trace"].synthetic) == ("olmoe-1b-7b", 64, True)
    assert (got["slo"].tpot_ms, got["slo"].percentile) == (50.0, 99.0)
    assert (got["headroom"], got["window_s"], got["start_s"], got["seed"]) == (1.2, 900.0, 120.0, 0)
    assert (got["max_attention"], got["max_experts"], got["per_gpu_efficiency"]) == (2, 2, {})
    assert (got["cluster"].gpu.name, got["cluster"].gpu.usd_per_hour) == ("h100-sxm", None)


def test_options_reach_the_simulation(simulated):
    got = simulated(*SHIPPED, "--policy", "static", "--policy", "janus", "--percentile", "95", "--headroom", "1.5",
                    "--window-s", "300", "--start-s", "60", "--hardware", "h200-sxm", "--price", "h200-sxm=3.5",
                    "--gpus-per-node", "4", "--inter-node-gbps", "200", "--seed", "3",
                    "--efficiency", "monolithic=0.8", "--efficiency", "static=1")  # fmt: skip
    assert got["policies"] == ["static", "janus"]
    assert (got["slo"].percentile, got["headroom"], got["window_s"], got["start_s"]) == (95.0, 1.5, 300.0, 60.0)
    cluster = got["cluster"]
    assert (cluster.gpu.name, cluster.gpu.usd_per_hour, cluster.node_size, cluster.inter_node_gbps) == (
        "h200-sxm", 3.5, 4, 200.0,
    )  # fmt: skip
    assert (got["seed"], got["per_gpu_efficiency"]) == (3, {"monolithic": 0.8, "static": 1.0})


def test_hours_cut_a_trace_and_draw_from_a_pair(simulated, folder):
    got = simulated("--requests", str(folder / "r.npz"), *SHIPPED[2:], "--hours", "0.05")["requests"]
    assert (got.duration_s, got.num_requests) == (180.0, 18)
    pair = ["--requests", str(folder / "rates.csv"), "--requests", str(folder / "lengths.csv"), *SHIPPED[2:]]
    first = simulated(*pair, "--hours", "0.17", "--seed", "5")["requests"]
    assert (first.duration_s, first.num_requests, first.recorded) == (612.0, 60, False)
    assert simulated(*pair, "--hours", "0.17", "--seed", "5")["requests"] == first
    assert simulated(*pair, "--hours", "0.17", "--seed", "6")["requests"] != first


def test_recorded_routing_goes_in_as_it_is(simulated, tmp_path):
    trace = RoutingTrace(np.arange(64 * 8).reshape(-1, 1, 8) % 64, num_experts=64)
    trace.save(tmp_path / "t.npz")
    assert simulated(*SHIPPED[:2], "--routing", str(tmp_path / "t.npz"))["trace"] == trace


# ---- what comes back


def test_one_json_object(capsys, folder, tmp_path):
    files = ["--save", str(tmp_path / "days.json")]
    assert run(folder, "--policy", "janus", "--policy", "static", *files, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert set(found["policies"]) == {"janus", "static"}
    assert found["best"] in found["policies"]
    assert found["policies"]["janus"]["requests"] == 30
    assert found == json.loads((tmp_path / "days.json").read_text())


def test_a_table_and_what_it_rests_on(capsys, folder):
    assert (
        run(folder, "--policy", "janus", "--policy", "static", "--price", "h100-sxm=2", "--efficiency", "static=0.5")
        == 0
    )
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["policy", "GPU-hours", "dollars"]
    assert head.endswith("assumed efficiency")
    assert [line.split()[0] for line in lines[:2]] == ["janus", "static"]
    assert len({len(line) for line in (head, *lines[:2])}) == 1  # columns stand below each other
    rest = "\n".join(lines[2:])
    assert "synthetic routing" in rest
    assert "thirty" in rest


def test_a_report_and_a_picture(capsys, folder, tmp_path):
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "out.html", tmp_path / "day.svg"
    assert run(folder, "--report", str(page), "--plot", str(picture)) == 0
    text = page.read_text()
    assert "The policy janus" in text
    assert "Synthetic routing." in text
    assert f"--report {page}" in text  # how to get it again
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], "cli.usage", "--requests"),
        ([*SHIPPED, "--policy", "best"], "simulate.policy", "monolithic"),
        (["--requests", "gptoss20b-routing", *SHIPPED[2:]], "trace.kind", "holds routing"),
        (["--requests", "nope.csv", *SHIPPED[2:]], "trace.file", "nope.csv"),
        ([*SHIPPED, "--requests", "a", "--requests", "b"], "trace.file", "got 3 files"),
        ([*SHIPPED[:2], "--routing", "gptoss20b-routing"], "simulate.routing", "--synthetic"),
        ([*SHIPPED, "--price", "h100-sxm"], "cli.price", "h100-sxm=2.50"),
        ([*SHIPPED, "--price", "h200-sxm=2"], "cli.price", "h100-sxm"),
        ([*SHIPPED, "--price", "h100-sxm=-2"], "hardware.range", "-2"),
        ([*SHIPPED, "--price", "h100-sxm=nan"], "hardware.range", "nan"),
        ([*SHIPPED, "--efficiency", "static"], "cli.efficiency", "monolithic=0.8"),
        ([*SHIPPED, "--efficiency", "stetic=1"], "simulate.policy", "static"),
        ([*SHIPPED, "--efficiency", "static=0"], "simulate.range", "static"),
        ([*SHIPPED, "--hours", "0"], "cli.hours", "0"),
        ([*SHIPPED, "--hours", "nan"], "cli.hours", "nan"),
        ([*SHIPPED, "--window-s", "-1"], "simulate.range", "-1"),
        ([*SHIPPED, "--headroom", "0.5"], "simulate.range", "0.5"),
        ([*SHIPPED, "--hardware", "h1000"], "hardware.name", "h1000"),
        ([*SHIPPED, "--report", "/no/such/folder/r.html"], "plan.output", "make it first"),
        ([*SHIPPED, "--save", "/no/such/folder/r.json"], "plan.output", "/no/such/folder"),
    ],
)
def test_nonsense(capsys, arguments, code, words):
    got, message = refuse(capsys, *SMALL, *arguments)
    assert (got, words in message) == (code, True), message
