"""Both halves of `janus run` and what passes between them, with a stand-in for the runner."""

import json
import os
import sys
import textwrap
import types
from pathlib import Path

import pytest

from janus import JanusError, PeerLost, Topology
from janus.cli import main
from janus.cli.report import RunFailed
from janus.cli.run import available_gb, check_room, print_result, run_all, run_rank
from janus.cli.settings import RunSettings

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    for name in ("RANK", "JANUS_RENDEZVOUS"):
        monkeypatch.delenv(name, raising=False)


def settings(**changes):
    values = {
        "model": Path("m"), "topology": Topology.parse("2A1E"), "placement": None, "gate": "experts",
        "balance": "exact", "regime": "auto", "compute": "eager", "quantize": "int8", "prompts": [[1, 2]], "max_new_tokens": 4,
        "sampling": {"do_sample": False}, "deadline_s": 60.0, "step_s": 0.5, **changes,
    }  # fmt: skip
    return RunSettings(**values)


# the launcher's half: ranks are tiny scripts

RANK = """
import os, sys, time
sys.path.insert(0, {src!r})
from janus.cli.run import _hand_over
from janus.cli.report import to_dict
from janus.errors import JanusError, PeerLost
rank = int(os.environ["RANK"])
def hand_over(payload):
    _hand_over(os.environ["JANUS_RENDEZVOUS"], str(rank), payload)
def good():
    part = {{"stats": {{"rank": rank, "role": "x"}}}}
    if rank == 0:
        part["completions"] = [{{"tokens": list(range(100_000)), "text": None}}]
    hand_over(part)
def refuse(error, code):
    hand_over({{"error": to_dict(error)}})
    sys.exit(code)
{body}
"""


def ranks(body):
    return [sys.executable, "-c", RANK.format(src=str(SRC), body=textwrap.dedent(body))]


def test_result_and_log_lines(capfd):
    """100,000 tokens are far more than a line of output may hold; a half-printed line does not hide the result."""
    result = run_all(settings(), ranks("print('to stderr', file=sys.stderr); print('half', end=''); good()"))
    assert result["completions"] == [{"tokens": list(range(100_000)), "text": None}]
    assert [stats["rank"] for stats in result["stats"]] == [0, 1, 2]
    assert result["topology"] == "2A1E"
    out, err = capfd.readouterr()
    assert out == ""
    assert sorted(err.splitlines()) == ["[0 attention] to stderr", "[1 attention] to stderr", "[2 expert] to stderr"]


def test_a_refusal_goes_before_the_peers_it_cost(capfd):
    body = """
        if rank == 2:
            time.sleep(0.3)
            refuse(JanusError("comm.contract", "dtype differs"), 2)
        refuse(PeerLost("begin", -1, rank, 2, "closed"), 3)
    """
    with pytest.raises(JanusError, match="dtype differs") as caught:
        run_all(settings(), ranks(body))
    assert caught.value.code == "comm.contract"


def test_a_lost_peer(capfd):
    body = "time.sleep(rank / 2); refuse(PeerLost('combine', 3, rank, 2, 'deadline'), 3) if rank < 2 else good()"
    with pytest.raises(PeerLost, match="rank 0 lost rank 2 in phase combine, layer 3: deadline"):
        run_all(settings(), ranks(body))


def test_a_killed_rank_is_the_cause(capfd):
    body = "os.kill(os.getpid(), 9) if rank == 2 else refuse(PeerLost('combine', 3, rank, 2, 'closed'), 3)"
    with pytest.raises(RunFailed, match=r"rank 2 \(expert\) was killed by SIGKILL; .*rank 0 lost rank 2") as caught:
        run_all(settings(), ranks(body))
    assert caught.value.code == "run.killed"


def test_a_crash_says_its_last_line(capfd):
    with pytest.raises(RunFailed, match=r"rank 1 \(attention\) ended with exit code 1: ZeroDivisionError") as caught:
        run_all(settings(), ranks("1 / 0 if rank == 1 else good()"))
    assert caught.value.code == "run.crash"


def test_a_silent_crash(capfd):
    with pytest.raises(RunFailed, match="exit code 7: it printed nothing"):
        run_all(settings(), ranks("sys.exit(7)"))


def test_the_deadline_names_who_still_ran(capfd):
    with pytest.raises(RunFailed, match=r"deadline of 1\.5 s passed with rank 1 \(attention\) still") as caught:
        run_all(settings(deadline_s=1.5), ranks("time.sleep(60) if rank == 1 else good()"))
    assert caught.value.code == "run.deadline"


def test_an_end_without_a_result(capfd):
    with pytest.raises(RunFailed, match="without a result"):
        run_all(settings(), ranks("pass"))


# one rank's half


class FakeRunner:
    """Records what it was asked; `failure` is raised on the way."""

    calls: list
    failure: Exception | None = None

    def __init__(self, model, *, topology, placement, gate, balance, regime, compute, quantize, timeouts):
        self.rank = int(os.environ["RANK"])
        self.role = topology.role(self.rank)
        FakeRunner.calls = [("init", model, gate, balance, regime, compute, quantize, timeouts)]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        FakeRunner.calls.append(("close",))

    def serve(self):
        FakeRunner.calls.append(("serve",))
        if FakeRunner.failure:
            raise FakeRunner.failure

    def generate(self, prompts, *, max_new_tokens, do_sample, top_k=None):
        FakeRunner.calls.append(("generate", prompts, max_new_tokens, do_sample, top_k))
        return [[7] * max_new_tokens for _ in prompts]

    def stats(self):
        return {"rank": self.rank, "role": self.role}


@pytest.fixture
def runner(monkeypatch):
    comm = types.ModuleType("janus.comm")
    comm.Timeouts = lambda **options: options
    package = types.ModuleType("janus.runner")
    package.DisaggregatedRunner = FakeRunner
    monkeypatch.setitem(sys.modules, "janus.comm", comm)
    monkeypatch.setitem(sys.modules, "janus.runner", package)
    monkeypatch.setattr(FakeRunner, "failure", None)
    return FakeRunner


def test_the_first_attention_rank_under_torchrun(runner, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    result = run_rank(settings(sampling={"do_sample": True, "top_k": 3}))
    assert result["completions"] == [{"tokens": [7, 7, 7, 7], "text": None}]
    assert result["stats"] == [{"rank": 0, "role": "attention"}]
    init, *calls = runner.calls
    assert init == ("init", "m", "experts", "exact", "auto", "eager", "int8", {"step_s": 0.5})
    assert calls == [("generate", [[1, 2]], 4, True, 3), ("close",)]


@pytest.mark.parametrize(("rank", "verb"), [("1", "generate"), ("2", "serve"), ("5", "serve")])
def test_the_other_ranks_say_nothing(runner, monkeypatch, rank, verb):
    monkeypatch.setenv("RANK", rank)
    assert run_rank(settings()) is None
    assert [call[0] for call in runner.calls] == ["init", verb, "close"]


@pytest.mark.parametrize(
    ("error", "code"), [(JanusError("a.b", "rule"), 2), (PeerLost("serve", -1, 2, 0, "closed"), 3)]
)
def test_an_error_of_a_rank(runner, monkeypatch, tmp_path, capsys, error, code):
    """Under torchrun the rank says it; under our launcher it hands it over, to be said once."""
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(runner, "failure", error)
    with pytest.raises(type(error)):
        run_rank(settings())
    monkeypatch.setenv("JANUS_RENDEZVOUS", f"file://{tmp_path}/store")
    with pytest.raises(SystemExit) as caught:
        run_rank(settings())
    assert caught.value.code == code
    assert capsys.readouterr().out == f"@janus-handover {tmp_path}/rank-2.json\n"
    assert str(error).endswith(json.loads((tmp_path / "rank-2.json").read_text())["error"]["message"])


def test_the_command_in_a_rank_prints_the_result_once(runner, monkeypatch, folder, tmp_path, capsys):
    (tmp_path / "p.json").write_text("[[1], [2]]")
    arguments = ["run", str(folder), "--topology", "1A1E", "--prompts", str(tmp_path / "p.json"), "--json"]
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(arguments) == 0
        out = capsys.readouterr().out.splitlines()
        assert len(out) == lines
        assert all(set(json.loads(line)) == {"model", "topology", "completions", "stats"} for line in out)


# what people see


def test_text_of_a_result(capsys):
    traffic = {"in_node": {"messages": 2, "bytes": 64}}
    attention = {
        "rank": 0,
        "role": "attention",
        "seconds": {"step": 0.5},
        "tokens": 4,
        "tpot_ms": 2.5,
        "traffic": traffic,
    }
    means = [{"batches": 5, "a_max": 2.0}, {"batches": 5, "a_max": 3.0}]
    expert = {"rank": 1, "role": "expert", "layers": means}
    routed_elsewhere = {"rank": 2, "role": "expert", "layers": [{"batches": 0, "a_max": None}]}
    rows = [{"tokens": [5, 6], "text": None}, {"tokens": [7], "text": "word"}]
    print_result({"completions": rows, "stats": [attention, expert, routed_elsewhere]}, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "# completion 0: 2 tokens",
        "5 6",
        "# completion 1: 1 tokens",
        "word",
        "# rank 0 attention: 4 tokens, 2.5 ms per output token, step 0.500 s, 2 messages 64 bytes in_node",
        "# rank 1 expert: mean a_max 2.50 over 2 layers",
        "# rank 2 expert: ",
    ]


# the whole way: real processes, a tiny model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random Qwen3-MoE model with a tokenizer of 60 words, and the greedy continuation of two prompts."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny")
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0")
    raw = tokenizers.Tokenizer(words)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=60, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=8, num_experts_per_tok=2,
        max_position_embeddings=64, initializer_range=0.3, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Qwen3MoeForCausalLM(config)
    model.save_pretrained(folder)
    prompts = [[5, 6, 7], [8]]
    outputs = [model.generate(torch.tensor([p]), max_new_tokens=6, do_sample=False)[0, len(p) :] for p in prompts]
    return folder, [row.tolist() for row in outputs]


def test_the_whole_way(tiny, capfd):
    folder, expected = tiny
    arguments = ["run", str(folder), "--topology", "1A2E", "--prompt", "w5 w6 w7", "--prompt", "w8", "--json"]
    assert main([*arguments, "--max-new-tokens", "6", "--balance", "greedy", "--deadline", "240"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert [row["tokens"] for row in result["completions"]] == expected
    assert [row["text"] for row in result["completions"]] == [" ".join(f"w{i}" for i in row) for row in expected]
    assert [(s["rank"], s["role"]) for s in result["stats"]] == [(0, "attention"), (1, "expert"), (2, "expert")]


def test_what_the_ranks_refuse_is_said_once(tiny, tmp_path, capfd):
    """More tokens than the model has positions: only a rank, which has read the model, can tell."""
    folder, _ = tiny
    arguments = ["run", str(folder), "--topology", "1A1E", "--prompt", "w5", "--max-new-tokens", "100", "--json"]
    assert main([*arguments, "--deadline", "240"]) == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["error"]["code"] == "generate.length"
    assert [line.startswith("janus: [generate.length]") for line in err.splitlines()].count(True) == 1


def test_more_processes_than_the_memory_can_hold_are_not_started():
    check_room(6, free_gb=2.0)
    with pytest.raises(JanusError, match=r"\[run.world\] 201 processes need about 50 GB .* has 24.0 GB"):
        check_room(201, free_gb=24.0)


def test_available_memory_is_the_kernels_own_estimate(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:   1953125 kB\n")
    assert available_gb(tmp_path / "meminfo") == 2.0
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\n")
    assert available_gb(tmp_path / "meminfo") == available_gb(tmp_path / "none") == float("inf")
