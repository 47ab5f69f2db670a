"""What `janus run` refuses before it starts anything."""

import json

import pytest

from janus import JanusError, Placement
from janus.cli import main
from janus.cli.prompts import encode, gather_prompts
from janus.cli.settings import checked_sampling


@pytest.fixture
def started(monkeypatch):
    """Calls of the launcher; every test here expects none, or looks at what it would have started."""
    calls = []

    def run_all(settings, command):
        calls.append((settings, command))
        return {"completions": [], "stats": []}

    monkeypatch.setattr("janus.cli.run.run_all", run_all)
    monkeypatch.delenv("RANK", raising=False)
    return calls


def refuse(capsys, started, arguments):
    """Exit code 2, nothing started; returns the error's code and message."""
    assert main([*map(str, arguments), "--json"]) == 2
    assert started == []
    error = json.loads(capsys.readouterr().out)["error"]
    return error["code"], error["message"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--topology", "2A"], "topology.parse", "'2A'"),
        (["--topology", "0A1E"], "topology.parse", "'0A1E'"),
        (["--topology", "-1A2E"], "topology.parse", "'-1A2E'"),
        (["--topology", "1A1E", "--gpus-per-node", "0"], "topology.parse", "gpus_per_node"),
        (["--gate", "router"], "run.gate", "'experts', 'attention'; got 'router'"),
        (["--balance", "best"], "sched.method", "'exact'"),
        (["--balance", "cost"], "sched.cost", "cost=RooflineCost(...)), or choose 'exact'"),
        (["--regime", "fast"], "comm.regime", "'relay', 'auto'; got 'fast'"),
        (["--compute", "fast"], "experts.compute", "--compute must be one of 'auto', 'eager'"),
        (["--quantize", "int4"], "experts.quantize", "--quantize must be one of 'int8', 'fp8'; got 'int4'"),
        (["--max-new-tokens", "0"], "run.tokens", ">= 1, got 0"),
        (["--max-new-tokens", "-3"], "run.tokens", "got -3"),
        (["--deadline", "0"], "run.timeout", "--deadline"),
        (["--deadline", "nan"], "run.timeout", "got nan"),
        (["--step-timeout", "-1"], "run.timeout", "--step-timeout"),
        (["--step-timeout", "inf"], "run.timeout", "finite"),
        (["--temperature", "0.5"], "run.sample", "--temperature has no effect without sampling; add --sample"),
        (["--top-k", "5", "--seed", "1"], "run.sample", "--top-k, --seed"),
        (["--sample", "--temperature", "0"], "run.sample", "> 0, got 0"),
        (["--sample", "--top-k", "0"], "run.sample", "--top-k must be >= 1"),
        (["--sample", "--top-p", "1.5"], "run.sample", "(0, 1], got 1.5"),
        (["--sample", "--top-p", "nan"], "run.sample", "got nan"),
        (["--sample", "--seed", "-1"], "run.sample", "--seed"),
        (["--placement", "no-such-file"], "placement.file", "no-such-file"),
        ([], "run.prompts", "got neither"),
        (["--prompts", "no-such-file"], "run.prompts", "regular file"),
        (["--prompts", "/dev/null"], "run.prompts", "regular file"),
        (["--prompt", "a", "--prompts", "x"], "run.prompts", "got both"),
        (["--prompt", "a"], "run.tokenizer", "give token ids"),
        (["--prompt", ""], "run.prompts", "prompt 0 is empty"),
    ],
)
def test_nonsense(capsys, started, folder, options, code, words):
    got, message = refuse(capsys, started, ["run", folder, "--topology", "1A2E", *options])
    assert (got, words in message) == (code, True), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "as JSON"),
        ("[[1, 2", "as JSON"),
        ("{}", "non-empty JSON list"),
        ("[]", "non-empty JSON list"),
        ("[1, 2]", "non-empty JSON list"),
        ('["a", [1]]', "mixes"),
        ("[[]]", "prompt 0 is empty"),
        ("[[1], [2, 3.0]]", "prompt 1 holds 3.0"),
        ("[[1, true]]", "holds True"),
        ('[[1, "2"]]', "holds '2'"),
        ("[[1, null]]", "holds None"),
        ("[[-1]]", "holds -1"),
        ("[[99, 100]]", "below the model's 100; prompt 0 holds 100"),
        ("\ud800", "as JSON"),
    ],
)
def test_nonsense_in_the_prompts_file(capsys, started, folder, tmp_path, text, words):
    file = tmp_path / "prompts.json"
    file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    code, message = refuse(capsys, started, ["run", folder, "--topology", "1A2E", "--prompts", file])
    assert (code, words in message) == ("run.prompts", True), message


def test_a_placement_for_another_topology(capsys, started, folder, tmp_path):
    Placement.contiguous(8, 4).save(tmp_path / "placement.json")
    code, message = refuse(
        capsys, started, ["run", folder, "--topology", "1A2E", "--placement", tmp_path / "placement.json"]
    )
    assert code == "run.placement"
    assert "for 4 expert instances, the topology has 2" in message


def test_what_would_be_started(capsys, started, folder, tmp_path):
    """The ranks get the same arguments, and the settings hold what was given."""
    (tmp_path / "p.json").write_text("[[1, 2], [3]]")
    Placement.contiguous(8, 2).save(tmp_path / "placement.json")
    arguments = [
        "run",
        str(folder),
        "--topology",
        "2A2E",
        "--gpus-per-node",
        "1",
        "--prompts",
        str(tmp_path / "p.json"),
    ]
    arguments += ["--placement", str(tmp_path / "placement.json"), "--sample", "--top-p", "0.5", "--deadline", "9"]
    arguments += ["--compute", "numba", "--quantize", "fp8"]
    assert main(arguments) == 0
    [(settings, command)] = started
    assert command[1:] == ["-m", "janus.cli", *arguments]
    assert settings.prompts == [[1, 2], [3]]
    assert (settings.topology.attention, settings.topology.experts) == (((0,), (1,)), ((2,), (3,)))
    assert settings.placement == Placement.contiguous(8, 2)
    assert (settings.compute, settings.quantize) == ("numba", "fp8")
    assert settings.sampling == {"do_sample": True, "top_p": 0.5}
    assert (settings.deadline_s, settings.step_s, settings.max_new_tokens) == (9.0, 30.0, 32)


def test_defaults_are_greedy():
    assert checked_sampling(False, None, None, None, None) == {"do_sample": False}


def test_texts_with_a_tokenizer(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    assert gather_prompts(None, ["a", "b"], folder, {}) == ["a", "b"]
    (tmp_path / "p.json").write_text('["é", "x"]')
    assert gather_prompts(tmp_path / "p.json", [], folder, {}) == ["é", "x"]


def test_vocabulary_of_a_nested_config(folder, tmp_path):
    (tmp_path / "p.json").write_text("[[7]]")
    with pytest.raises(JanusError, match="model's 7; prompt 0 holds 7"):
        gather_prompts(tmp_path / "p.json", [], folder, {"text_config": {"vocab_size": 7}})
    assert gather_prompts(tmp_path / "p.json", [], folder, {}) == [[7]]


def test_encode():
    def tokenizer(text):
        return {"input_ids": [ord(c) for c in text.strip()]}

    assert encode(["ab"], tokenizer) == [[97, 98]]
    assert encode([[5]], None) == [[5]]
    with pytest.raises(JanusError, match="prompt 1 '  ' has no tokens"):
        encode(["a", "  "], tokenizer)


def test_prompts_too_long_for_the_model_start_nothing(capsys, started, folder, tmp_path):
    (folder / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 100, "max_position_embeddings": 10}}))
    file = tmp_path / "prompts.json"
    file.write_text("[[1], [1, 2, 3]]")
    options = ["--topology", "1A2E", "--prompts", file, "--max-new-tokens"]
    code, message = refuse(capsys, started, ["run", folder, *options, "8"])
    assert (code, "prompt 1 has 3 tokens" in message) == ("generate.length", True), message
    main(["run", str(folder), *map(str, options), "7"])
    assert len(started) == 1
