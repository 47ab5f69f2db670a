"""`janus trace convert` and `janus trace sample`: what comes out is what went in, and says what was done to it."""

import json

import numpy as np
import pytest

from janus import RequestTrace, RoutingTrace
from janus.cli import main
from janus.types.routing_files import read_expert_counts
from janus.types.samples import sample

RATES = "client_id,t_seconds,rate_rps,cv,pattern,param1,param2\n0,0,0.1,1,Gamma,1,10\n0,600,0.1,1,Gamma,1,10\n"
LENGTHS = (
    "client_id,t_seconds,input_mean,input_p50,input_p95,output_mean,output_p50,output_p95\n0,0,100,90,200,10,9,20\n"
)


def run(capsys, *words):
    assert main(["trace", *map(str, words), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def refuse(capsys, *words):
    assert main(["trace", *map(str, words), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    return error["code"], error["message"]


@pytest.fixture
def counts(tmp_path):
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"a": [[1, 3, 5, 7], [2, 2, 2, 2]], "b": [[4, 4, 4, 4], [1, 1, 1, 9]]}))
    return path


@pytest.fixture
def pair(tmp_path):
    paths = tmp_path / "rates.csv", tmp_path / "lengths.csv"
    for path, text in zip(paths, (RATES, LENGTHS), strict=True):
        path.write_text(text)
    return paths


# ---- inspect


def test_inspect_is_the_default_and_takes_shipped_names(capsys):
    assert run(capsys, "gptoss20b-routing") == run(capsys, "inspect", sample("gptoss20b-routing"))
    assert main(["trace", "--json", "azure-conversation"]) == 0
    assert json.loads(capsys.readouterr().out)["num_requests"] == 600


def test_inspect_of_servegen_s_pair(capsys, pair):
    found = run(capsys, *pair, "--hours", "0.34")
    assert (found["kind"], found["num_requests"], found["recorded"]) == ("requests", 120, False)


def test_a_command_without_a_file_says_what_is_missing(capsys):
    assert main(["trace", "convert"]) == 2
    assert "janus trace convert --help" in capsys.readouterr().err
    assert main(["trace"]) == 2


# ---- convert


def test_requests_of_any_format_become_ours(capsys, tmp_path):
    summary = run(capsys, "convert", "azure-conversation", tmp_path / "r.npz")
    assert RequestTrace.load(tmp_path / "r.npz") == RequestTrace.load(sample("azure-conversation"))
    assert summary == {"kind": "requests", **RequestTrace.load(tmp_path / "r.npz").summary()}


def test_a_servegen_pair_is_drawn_and_says_so(capsys, tmp_path, pair):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(capsys, "convert", *pair, tmp_path / f"{name}.npz", "--seed", seed, "--hours", "0.34")
    a, b, c = (RequestTrace.load(tmp_path / f"{name}.npz") for name in "abc")
    assert a == b != c
    assert not a.recorded
    assert a.source.startswith("drawn from ServeGen summaries")


def test_a_recording_of_steps_keeps_them(capsys, tmp_path):
    np.savez(tmp_path / "topk.npz", topk=np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2) % 4)
    run(capsys, "convert", tmp_path / "topk.npz", tmp_path / "ours.npz")
    got = RoutingTrace.load(tmp_path / "ours.npz")
    assert got == RoutingTrace.load(tmp_path / "topk.npz")
    assert got.step.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_routing_becomes_counts(capsys, tmp_path, ending):
    summary = run(capsys, "convert", "gptoss20b-routing", tmp_path / f"c.{ending}", "--to", "counts")
    trace = RoutingTrace.load(sample("gptoss20b-routing"))
    ((name, got),) = read_expert_counts(tmp_path / f"c.{ending}").items()
    assert np.array_equal(got, trace.counts())
    assert name == trace.source
    assert list(summary["recordings"]) == [name]


def test_counts_stay_counts_all_or_one(capsys, tmp_path, counts):
    run(capsys, "convert", counts, tmp_path / "all.npz")
    run(capsys, "convert", counts, tmp_path / "one.json", "--recording", "b")
    before = read_expert_counts(counts)
    both, one = read_expert_counts(tmp_path / "all.npz"), read_expert_counts(tmp_path / "one.json")
    assert list(both) == ["a", "b"]
    assert list(one) == ["b"]
    assert all(np.array_equal(both[name], before[name]) for name in before)
    assert np.array_equal(one["b"], before["b"])


def test_tokens_drawn_from_counts_say_so(capsys, tmp_path, counts):
    words = ["convert", counts, tmp_path / "t.npz", "--to", "routing", "--recording", "a", "--top-k", 2, "--tokens", 50]
    summary = run(capsys, *words)
    got = RoutingTrace.load(tmp_path / "t.npz")
    assert (got.num_tokens, got.num_layers, got.top_k, got.num_experts, got.synthetic) == (50, 2, 2, 4, False)
    assert got.source == summary["source"] == "tokens drawn independently from counts: counts.json, a"


@pytest.mark.parametrize("source", [["gptoss20b-routing"], ["olmoe-mixtral-counts", "--recording", "olmoe/c4"]])
def test_popularity_borrowed_for_another_model_is_marked_synthetic(capsys, tmp_path, source):
    name, *more = source
    summary = run(
        capsys, "convert", name, tmp_path / "s.npz", "--synthetic", "olmoe-1b-7b", "--tokens", 64, "--seed", 1, *more
    )
    got = RoutingTrace.load(tmp_path / "s.npz")
    assert (got.num_experts, got.top_k, got.num_layers, got.num_tokens) == (64, 8, 16, 64)
    assert summary["synthetic"]
    assert got.synthetic
    assert got.source.startswith("synthetic routing like [")


# ---- sample


def test_a_sample_of_tokens_is_part_of_the_trace_in_its_order(capsys, tmp_path):
    whole = RoutingTrace.load(sample("gptoss20b-routing"))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(capsys, "sample", "gptoss20b-routing", tmp_path / f"{name}.npz", "--tokens", 100, "--seed", seed)
    a, b, c = (RoutingTrace.load(tmp_path / f"{name}.npz") for name in "abc")
    assert a == b != c
    assert a.num_tokens == 100
    assert a.source == f"{whole.source}, 100 of {whole.num_tokens} tokens"
    at = {(r, s): t for t, (r, s) in enumerate(zip(whole.request.tolist(), whole.step.tolist(), strict=True))}
    rows = [at[pair] for pair in zip(a.request.tolist(), a.step.tolist(), strict=True)]
    assert rows == sorted(set(rows))
    assert np.array_equal(a.ids, whole.ids[rows])


def test_a_sample_without_steps_and_a_sample_of_all(capsys, tmp_path):
    trace = RoutingTrace(np.arange(12).reshape(6, 1, 2) % 4, 4, source="six", synthetic=True)
    trace.save(tmp_path / "six.npz")
    run(capsys, "sample", tmp_path / "six.npz", tmp_path / "all.npz", "--tokens", 6)
    got = RoutingTrace.load(tmp_path / "all.npz")
    assert np.array_equal(got.ids, trace.ids)
    assert (got.synthetic, got.step, got.source) == (True, None, "six, 6 of 6 tokens")


def test_a_sample_of_requests_thins_the_rate(capsys, tmp_path):
    whole = RequestTrace.load(sample("azure-conversation"))
    run(capsys, "sample", "azure-conversation", tmp_path / "r.npz", "--requests", 150)
    got = RequestTrace.load(tmp_path / "r.npz")
    assert (got.num_requests, got.duration_s, got.recorded) == (150, whole.duration_s, True)
    assert got.rate_rps == pytest.approx(whole.rate_rps / 4)
    assert set(got.times_s) <= set(whole.times_s)
    assert got.source.endswith("150 of 600 requests")


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["convert", "azure-conversation", "o.npz", "--to", "routing"], "trace.convert", "a different thing"),
        (["convert", "azure-conversation", "o.npz", "--synthetic", "olmoe-1b-7b"], "trace.convert", "requests cannot"),
        (["convert", "gptoss20b-routing", "o.npz", "--to", "requests"], "trace.convert", "routing cannot"),
        (["convert", "gptoss20b-routing", "o.npz", "--to", "pictures"], "trace.convert", "counts"),
        (["convert", "gptoss20b-routing", "o.csv"], "trace.convert", ".npz"),
        (["convert", "azure-conversation", "o.json"], "trace.convert", ".npz"),
        (["convert", "olmoe-mixtral-counts", "o.csv"], "trace.convert", ".npz or .json"),
        (["convert", "olmoe-mixtral-counts", "o.npz", "--to", "routing"], "trace.convert", "--recording"),
        (["convert", "olmoe-mixtral-counts", "o.npz", "--recording", "x"], "trace.convert", "olmoe/c4"),
        (["convert", "olmoe-mixtral-counts", "o.npz", "--to", "routing", "--recording", "olmoe/c4"], "trace.convert", "--top-k"),
        (["convert", "gptoss20b-routing", "o.npz", "--synthetic", "gpt-5"], "model.name", "gpt-5"),
        (["convert", "gptoss20b-routing", "/no/such/folder/o.npz"], "routing.file", "/no/such/folder"),
        (["convert", "nope", "o.npz"], "trace.file", "nope"),
        (["convert", "a", "b", "c", "o.npz"], "trace.file", "got 3 files"),
        (["sample", "gptoss20b-routing", "o.npz"], "trace.sample", "--tokens"),
        (["sample", "gptoss20b-routing", "o.npz", "--tokens", "0"], "trace.sample", "got 0"),
        (["sample", "gptoss20b-routing", "o.npz", "--tokens", "99999"], "trace.sample", "2304"),
        (["sample", "azure-conversation", "o.npz", "--tokens", "5"], "trace.sample", "--requests"),
        (["sample", "azure-conversation", "o.npz", "--requests", "601"], "trace.sample", "600"),
        (["sample", "gptoss20b-routing", "o.npz", "--tokens", "5", "--seed", "-1"], "trace.sample", "--seed"),
        (["sample", "olmoe-mixtral-counts", "o.npz", "--tokens", "5"], "trace.sample", "convert --to routing"),
    ],
)  # fmt: skip
def test_nonsense(capsys, tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    got, message = refuse(capsys, *words)
    assert (got, said in message) == (code, True), message
    assert list(tmp_path.iterdir()) == []
