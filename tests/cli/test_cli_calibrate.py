"""`janus calibrate` writes a file that `janus plan --latency` reads, and refuses before it measures."""

import json

import pytest

from janus.cli import main
from janus.scale import LatencyModel
from janus.scale.kernels.tables import Tables

PLAN = ["plan", "olmoe-1b-7b", "--slo-ms", "500", "--max-attention", "1", "--max-experts", "1", "--demand", "100"]
PLAN += ["--context", "300", "--routing", "gptoss20b-routing", "--synthetic", "--json"]


@pytest.fixture
def csv(tmp_path):
    """A table of bf16 experts at OLMoE's shape: 50 us and 40 us per activated expert."""
    path = tmp_path / "table.csv"
    columns = "device,op_name,kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size"
    rows = [
        f"NVIDIA H100,moe,bmm,bfloat16,{n},2048,1024,8,64,1,{ep},uniform,{(50 + 40 * min(64 // ep, 8 * n // ep)) / 1e3}"
        for n in (8, 32, 128)
        for ep in (2, 4, 8)
    ]
    path.write_text("\n".join([f"{columns},moe_ep_size,distribution,latency", *rows]))
    return path


def test_tables_become_a_file_that_a_plan_rests_on(csv, tmp_path, capsys):
    file = tmp_path / "latency.json"
    assert main(["calibrate", "olmoe-1b-7b", "--tables", str(csv), "--save", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["hardware"], said["saved"]) == ("olmoe-1b-7b", "h100-sxm", str(file))
    assert said["provenance"]["moe"].startswith("interpolated: bmm (moe_decode) on h100-sxm")
    assert said["provenance"] == LatencyModel.load(file).provenance

    def planned(*more):
        assert main([*PLAN, *more]) == 0
        return json.loads(capsys.readouterr().out)["pick"]["tpot_ms"]

    assert planned("--latency", str(file)) > 1.5 * planned()  # the roofline reads an expert in 4.5 us


def test_text_says_what_each_part_rests_on(csv, tmp_path, capsys):
    file = tmp_path / "latency.json"
    assert main(["calibrate", "olmoe-1b-7b", "--tables", str(csv), "--save", str(file)]) == 0
    out = capsys.readouterr().out
    assert "olmoe-1b-7b on h100-sxm, written to" in out
    for words in ("attention  roofline:", "moe        interpolated: bmm", "memory 0.83"):
        assert words in out


def test_a_machine_is_measured(monkeypatch, tmp_path, capsys):
    """What reaches the measurement; the measuring itself has its own tests."""
    asked = {}

    def measure(model, cluster, **options):
        asked.update(options, model=model.name, gpus_per_node=cluster.node_size)
        return LatencyModel.roofline(model, cluster)

    monkeypatch.setattr(LatencyModel, "measure", measure)
    options = ["--device", "cpu", "--budget", "7", "--gpus-per-node", "4", "--save", str(tmp_path / "l.json")]
    assert main(["calibrate", "olmoe-1b-7b", *options]) == 0
    asked.pop("progress")(0.5)
    assert asked == {"model": "olmoe-1b-7b", "device": "cpu", "budget_s": 7.0, "gpus_per_node": 4}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--save", "/no/such/folder/l.json"], "calibrate.output"),
        (["--save", "l.json", "--hardware", "h1000"], "hardware.name"),
        (["--save", "l.json", "--tables", "/no/such/folder"], "latency.table"),
        (["--save", "l.json", "--budget", "0"], "latency.range"),
        (["--save", "l.json", "--device", "toaster"], "latency.measure"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(options, code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "olmoe-1b-7b", *options, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not list(tmp_path.iterdir())


def test_a_plan_refuses_the_times_of_another_model(csv, tmp_path, capsys):
    file = tmp_path / "latency.json"
    assert main(["calibrate", "mixtral-8x7b", "--tables", str(csv), "--save", str(file)]) == 0
    capsys.readouterr()
    assert main([*PLAN, "--latency", str(file)]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "scale.latency"


def test_the_tables_of_the_test_are_tables(csv):
    assert len(Tables.read(csv).moe_decode) == 9
