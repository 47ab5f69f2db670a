"""`janus plan`: what its options name reaches the planner, and what comes back is printed."""

import json

import numpy as np
import pytest

from janus import RequestTrace, RoutingTrace
from janus.cli import main
from janus.types.samples import sample

SMALL = ["plan", "olmoe-1b-7b", "--slo-ms", "50", "--max-attention", "2", "--max-experts", "2"]
SHIPPED = ["--routing", "gptoss20b-routing", "--synthetic"]
ASKED = ["--demand", "2000", "--context", "300"]


@pytest.fixture
def planned(monkeypatch):
    """The arguments the planner would get; it raises instead of searching."""
    calls = []

    class Planned(Exception):
        pass

    def plan(model, cluster, **options):
        calls.append({"model": model, "cluster": cluster, **options})
        raise Planned

    monkeypatch.setattr("janus.cli.plan.plan", plan)

    def ask(*arguments):
        with pytest.raises(Planned):
            main([*SMALL, *arguments])
        return calls[-1]

    return ask


def refuse(capsys, *arguments):
    assert main([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    return error["code"], error["message"]


def test_a_plan_as_json(capsys, tmp_path):
    files = ["--save", str(tmp_path / "plan.json"), "--explain", "1A1E", "--explain", "2a2e"]
    assert main([*SMALL, *SHIPPED, *ASKED, *files, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["feasible"]
    assert (found["model"], found["hardware"], found["demand"], found["context"]) == (
        "olmoe-1b-7b",
        "h100-sxm",
        2000,
        300,
    )
    assert set(found["explain"]) == {"1A1E", "2a2e"}
    assert found["routing"].startswith("synthetic routing like")
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved == {name: value for name, value in found.items() if name != "explain"}


def test_a_plan_as_text_and_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert main([*SMALL, *SHIPPED, *ASKED, "--explain", "2A2E", "--plot", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    assert "colocated" in out
    assert out.splitlines()[-1].startswith("2A2E: ")
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"


def test_infeasible_is_a_result(capsys):
    asked = [*SHIPPED, "--demand", "1e7", "--context", "300", "--json"]
    assert main([*SMALL, *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["feasible"]
    assert found["binding"]


def test_defaults(planned):
    got = planned(*SHIPPED, *ASKED)
    assert (got["demand"], got["context"], got["headroom"], got["prefill"]) == (2000.0, 300.0, (1.0, 1.0), "elsewhere")
    assert (got["slo"].tpot_ms, got["slo"].percentile) == (50.0, 99.0)
    assert (got["max_attention"], got["max_experts"]) == (2, 2)
    (cluster,) = got["cluster"]
    assert (cluster.gpu.name, cluster.node_size, cluster.inter_node_gbps) == ("h100-sxm", 8, 400.0)
    assert (got["objective"], got["method"], got["solver"], got["time_limit_s"]) == ("gpus", "exhaustive", "auto", None)
    assert not {"input_tokens", "context_cv", "expert_cluster", "latency"} & set(got)


def test_options_reach_the_planner(planned):
    got = planned(*SHIPPED, *ASKED, "--hardware", "h200-sxm", "--gpus-per-node", "4", "--inter-node-gbps", "200",
                  "--headroom", "1.5", "--length-headroom", "1.2", "--percentile", "95", "--context-cv", "0.3",
                  "--solver", "CBC", "--time-limit", "5")  # fmt: skip
    (cluster,) = got["cluster"]
    assert (cluster.gpu.name, cluster.node_size, cluster.inter_node_gbps) == ("h200-sxm", 4, 200.0)
    assert (got["headroom"], got["slo"].percentile, got["context_cv"]) == ((1.5, 1.2), 95.0, 0.3)
    assert (got["solver"], got["time_limit_s"]) == ("CBC", 5.0)


def test_method_types_of_gpu_and_prices_reach_the_planner(planned):
    got = planned(*SHIPPED, *ASKED, "--method", "milp", "--expert-hardware", "h200-sxm", "--price", "h100-sxm=2",
                  "--price", "h200-sxm=3.5", "--gpus-per-node", "4", "--objective", "usd")  # fmt: skip
    (attention,), (experts,) = got["cluster"], got["expert_cluster"]
    assert (got["method"], got["objective"]) == ("milp", "usd")
    assert (attention.gpu.name, attention.gpu.usd_per_hour, attention.node_size) == ("h100-sxm", 2.0, 4)
    assert (experts.gpu.name, experts.gpu.usd_per_hour, experts.node_size) == ("h200-sxm", 3.5, 4)
    both = planned(*SHIPPED, *ASKED, "--hardware", "h100-sxm", "--hardware", "b200-sxm")
    assert [c.gpu.name for c in both["cluster"]] == ["h100-sxm", "b200-sxm"]
    assert both["cluster"][0].gpu.usd_per_hour is None


def test_a_report_says_how_to_get_it_again_and_what_it_costs(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "out.html"
    asked = [*SMALL, *SHIPPED, *ASKED, "--price", "h100-sxm=2.5", "--report", str(page)]
    assert main([*asked, "--json"]) == 0
    found, text = json.loads(capsys.readouterr().out), page.read_text()
    assert f"janus {' '.join(asked)} --json" in text
    assert "Synthetic routing." in text
    cheapest = min(found["pick"]["usd_per_hour"], found["colocated"]["usd_per_hour"])
    assert f"${cheapest:,.2f}" in text


def test_demand_and_context_from_requests(planned):
    trace = RequestTrace.load(sample("azure-conversation"))
    got = planned(*SHIPPED, "--requests", "azure-conversation", "--prefill", "attention")
    assert (got["demand"], got["context"]) == (trace.output_tokens_per_s, trace.mean_context)
    assert got["context_cv"] == trace.context_cv
    assert planned(*SHIPPED, "--requests", "azure-conversation", "--context-cv", "0")["context_cv"] == 0.0
    assert (got["prefill"], got["input_tokens"], got["output_tokens"]) == (
        "attention", trace.mean_input, trace.mean_output,
    )  # fmt: skip
    assert planned(*SHIPPED, "--requests", "azure-conversation", "--demand", "7")["demand"] == 7.0


def test_recorded_routing_goes_in_as_it_is(planned, tmp_path):
    trace = RoutingTrace(np.arange(64 * 8).reshape(-1, 1, 8) % 64, num_experts=64)
    trace.save(tmp_path / "t.npz")
    assert planned("--routing", str(tmp_path / "t.npz"), *ASKED)["trace"] == trace
    got = planned("--routing", "olmoe-mixtral-counts", "--recording", "olmoe/c4", *ASKED)["trace"]
    assert got.shape == (3, 64)
    (tmp_path / "c.json").write_text(json.dumps({"one": [[1] * 64]}))
    assert planned("--routing", str(tmp_path / "c.json"), *ASKED)["trace"].tolist() == [[1] * 64]


def test_synthetic_routing_has_the_sizes_of_the_model(planned):
    for source in (["gptoss20b-routing"], ["olmoe-mixtral-counts", "--recording", "mixtral8x7b/book"]):
        got = planned("--routing", *source, "--synthetic", *ASKED)["trace"]
        assert (got.num_experts, got.top_k, got.num_layers, got.synthetic) == (64, 8, 16, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (ASKED, "cli.usage", "--routing"),
        (["--routing", "gptoss20b-routing", *ASKED], "plan.routing", "32 experts, olmoe-1b-7b has 64; record"),
        (["--routing", "no-such-file", *ASKED], "trace.file", "no-such-file"),
        (["--routing", "azure-conversation", *ASKED], "plan.routing", "holds requests"),
        (["--routing", "olmoe-mixtral-counts", *ASKED], "plan.routing", "olmoe/c4"),
        ([*SHIPPED, "--recording", "x", *ASKED], "plan.routing", "holds one routing trace"),
        (SHIPPED, "plan.requests", "give --demand"),
        ([*SHIPPED, "--demand", "5"], "plan.requests", "give --context"),
        ([*SHIPPED, "--requests", "gptoss20b-routing"], "plan.requests", "holds routing"),
        ([*SHIPPED, *ASKED, "--prefill", "attention"], "plan.requests", "--requests"),
        ([*SHIPPED, *ASKED, "--prefill", "both"], "scale.prefill", "'both'"),
        ([*SHIPPED, *ASKED, "--hardware", "h1000"], "hardware.name", "'h1000'"),
        ([*SHIPPED, *ASKED, "--gpus-per-node", "0"], "cluster.range", "gpus_per_node"),
        ([*SHIPPED, *ASKED, "--inter-node-gbps", "-4"], "cluster.range", "-4"),
        ([*SHIPPED, *ASKED, "--headroom", "0.5"], "scale.range", "0.5"),
        ([*SHIPPED, *ASKED, "--percentile", "101"], "slo.range", "101"),
        ([*SHIPPED, "--demand", "-1", "--context", "300"], "scale.range", "-1"),
        ([*SHIPPED, "--demand", "nan", "--context", "300"], "scale.range", "nan"),
        ([*SHIPPED, *ASKED, "--max-experts", "0"], "scale.range", "max_experts"),
        ([*SHIPPED, *ASKED, "--save", "/no/such/folder/p.json"], "plan.output", "/no/such/folder"),
        ([*SHIPPED, *ASKED, "--plot", "/no/such/folder/p.png"], "plan.output", "make it first"),
        ([*SHIPPED, *ASKED, "--report", "/no/such/folder/r.html"], "plan.output", "make it first"),
        ([*SHIPPED, *ASKED, "--method", "guess"], "scale.method", "exhaustive"),
        ([*SHIPPED, *ASKED, "--expert-hardware", "h1000"], "hardware.name", "h1000"),
        ([*SHIPPED, *ASKED, "--price", "cheap"], "cli.price", "h100-sxm=2.50"),
        ([*SHIPPED, *ASKED, "--price", "h200-sxm=2"], "cli.price", "h100-sxm"),
        ([*SHIPPED, *ASKED, "--price", "h100-sxm=0"], "hardware.range", "usd_per_hour"),
        ([*SHIPPED, *ASKED, "--explain", "1x5"], "topology.parse", "'1x5'"),
        ([*SHIPPED, *ASKED, "--explain", "1A99E"], "scale.explain", "1A99E"),
    ],
)
def test_nonsense(capsys, arguments, code, words):
    got, message = refuse(capsys, *SMALL, *arguments)
    assert (got, words in message) == (code, True), message


@pytest.mark.parametrize("slo", ["0", "-5", "nan"])
def test_nonsense_slo(capsys, slo):
    code, _ = refuse(capsys, "plan", "olmoe-1b-7b", "--slo-ms", slo, *SHIPPED, *ASKED)
    assert code == "slo.range"


def test_an_unknown_model_lists_the_known_ones(capsys):
    code, message = refuse(capsys, "plan", "gpt-5", "--slo-ms", "50", *SHIPPED, *ASKED)
    assert code == "model.name"
    assert "deepseek-v2" in message
