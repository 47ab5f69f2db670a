"""`janus trace`: every kind of file is told by its content, and the numbers can be checked by hand."""

import json

import numpy as np
import pytest

from janus import RequestTrace, RoutingTrace
from janus.cli import main
from janus.cli.trace import describe
from janus.types.samples import SAMPLES, sample


def run(capsys, path):
    assert main(["trace", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def routing():
    """Two layers; layer 0 always chooses experts 0 and 1, layer 1 experts 2 and one of 0, 1, 3 in turn."""
    first = np.tile([0, 1], (300, 1))
    second = np.stack([np.full(300, 2), np.tile([0, 1, 3], 100)], axis=1)
    return RoutingTrace(np.stack([first, second], axis=1), num_experts=5, source="by hand")


def test_routing(capsys, tmp_path):
    routing().save(tmp_path / "any.name")
    summary = run(capsys, tmp_path / "any.name")
    assert (summary["kind"], summary["source"], summary["synthetic"]) == ("routing", "by hand", False)
    assert [summary[k] for k in ("tokens", "layers", "num_experts", "top_k")] == [300, 2, 5, 2]
    assert summary["experts_never_chosen"] == 3 + 1
    # layer 0: 300 of 600 choices over 5 experts = 2.5; layer 1: the same
    assert summary["max_over_mean"] == {"median_layer": 2.5, "worst_layer": 2.5}
    # 256 tokens of 3 kinds: layer 0 activates 2 experts, layer 1 all 4 that it knows
    assert summary["distinct_experts"]["256"] == 3.0


def test_choices_not_made_do_not_count(tmp_path):
    trace = RoutingTrace(np.array([[[0, -1]], [[0, -1]]]), num_experts=2)
    assert describe(trace)["distinct_experts"] == {"16": 1.0, "64": 1.0, "256": 1.0}


def test_requests(capsys, tmp_path):
    azure = tmp_path / "a.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,100,10\n2023-11-16 18:00:02.0,300,30\n"
    )
    mooncake = tmp_path / "m.jsonl"
    mooncake.write_text('{"timestamp": 0, "input_length": 100, "output_length": 10, "hash_ids": []}\n'
                        '{"timestamp": 2000, "input_length": 300, "output_length": 30, "hash_ids": []}\n')  # fmt: skip
    RequestTrace([0.0, 2.0], [100, 300], [10, 30]).save(tmp_path / "saved.npz")
    for path in (azure, mooncake, tmp_path / "saved.npz"):
        summary = run(capsys, path)
        assert summary["kind"] == "requests"
        assert (summary["num_requests"], summary["mean_input"], summary["mean_output"]) == (2, 200.0, 20.0)


@pytest.mark.parametrize("indent", [None, 2])
def test_counts(capsys, tmp_path, indent):
    (tmp_path / "counts.json").write_text(json.dumps({"a": [[1, 3], [2, 2]], "b": [[0, 4]]}, indent=indent))
    np.savez(tmp_path / "counts.npz", a=np.array([[1, 3], [2, 2]]), b=np.array([[0, 4]]))
    for name in ("counts.json", "counts.npz"):
        summary = run(capsys, tmp_path / name)
        assert summary["kind"] == "counts"
        assert summary["recordings"]["a"] == {
            "layers": 2,
            "experts_never_chosen": 0,
            "max_over_mean": {"median_layer": 1.25, "worst_layer": 1.5},
        }
        assert summary["recordings"]["b"]["experts_never_chosen"] == 1


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_shipped(capsys, name):
    kind = run(capsys, sample(name))["kind"]
    assert kind == {"azure": "requests", "gptos": "routing", "olmoe": "counts"}[name[:5]]


def test_table(capsys, tmp_path):
    RequestTrace([0.0, 2.0], [100, 300], [10, 30]).save(tmp_path / "t.npz")
    assert main(["trace", str(tmp_path / "t.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kind", "requests"]
    assert ["mean_input", "200"] in [line.split() for line in lines]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "trace.file"),
        (b"", "routing.file"),
        (b"PK\x03\x04 not a zip", "trace.file"),
        (b"{\n", "routing.file"),
        (b'{"a": 3}', "routing.file"),
        (b"[1, 2]", "requests.file"),
        (b"a,b,c\n1,2,3\n", "requests.file"),
        (bytes(range(256)), "requests.file"),
        (b"[" * 60_000, "requests.file"),
    ],
)
def test_nonsense(capsys, tmp_path, content, code):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert main(["trace", str(path), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert "file" in error["message"]


def test_a_folder_is_no_trace(capsys, tmp_path):
    assert main(["trace", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "trace.file"
