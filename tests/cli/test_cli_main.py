"""The command line as a whole: help, exit codes, errors as text and as JSON, and that it starts cheaply."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import janus
from janus.cli import main
from janus.cli.report import RunFailed, fail, from_dict, to_dict

SRC = Path(__file__).parents[2] / "src"
COMMANDS = ("run", "plan", "simulate", "calibrate", "trace")


def python(code, *arguments, **env):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(SRC), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"janus {janus.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_the_commands_that_exist(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_costs_no_heavy_import(command):
    code = (
        "import sys; from janus.cli import main; rc = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numba', 'pulp', 'matplotlib', 'numpy'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else rc)"
    )
    words = ["trace", "inspect"] if command == "trace" else [command]
    done = python(code, *words, "--help", COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout


def test_python_m():
    done = subprocess.run(
        [sys.executable, "-m", "janus.cli", "--version"],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"janus {janus.__version__}\n")


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['typer'] = None;"  # import then raises ModuleNotFoundError for that name
        "from janus.cli import main; sys.exit(main(['--version', '--json']))"
    )
    done = python(code)
    assert done.returncode == 2
    assert "pip install 'janus-moe[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "cli.extra"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "'nonsense'"),
        (["imitate"], "'imitate'"),
        (["run"], "MODEL"),
        (["run", "x"], "--topology"),
        (["run", "x", "--topology", "1A1E", "--no-such-option"], "--no-such-option"),
        (["run", "x", "--topology", "1A1E", "--deadline", "soon"], "--deadline"),
        (["run", "x", "--topology", "1A1E", "--seed", "1.5"], "--seed"),
        (["trace"], "FILE"),
    ],
)
def test_usage(capsys, arguments, words):
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["code"] == "cli.usage"
    assert words in error["message"]
    assert "--help" in error["message"]
    assert err == f"janus: [cli.usage] {error['message']}\n"


def test_without_json_stdout_stays_empty(capsys):
    assert main(["run", "x", "--topology", "2A"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("janus: [topology.parse] ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (janus.JanusError("a.b", "rule"), 2),
        (janus.PeerLost("combine", 3, rank=0, peer=4, detail="closed"), 3),
        (RunFailed("run.killed", "gone"), 3),
        (RunFailed("run.deadline", "late"), 3),
        (RunFailed("run.crash", "bug"), 1),
    ],
)
def test_exit_codes_and_json_of_errors(capsys, error, code):
    assert fail(error, as_json=True) == code
    out, err = capsys.readouterr()
    data = json.loads(out)["error"]
    assert data["message"] in err
    if not isinstance(error, RunFailed):
        again = from_dict(data)
        assert type(again) is type(error)
        assert (str(again), to_dict(again)) == (str(error), data)
    assert ("peer" in data) == isinstance(error, janus.PeerLost)


def test_other_exceptions_are_not_dressed_up(monkeypatch):
    monkeypatch.setattr("janus.cli.trace.load_trace", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["trace", "x"])
