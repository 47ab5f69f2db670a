"""The driver of the figures: what it runs, keeps, refuses and reports, on parts that take milliseconds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def prove():
    spec = importlib.util.spec_from_file_location("prove", ROOT / "benchmarks" / "prove.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["prove"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules["prove"]


def figure(**other):
    return {"name": "speed", "value": 2.5, "bar": ">= 2", "ok": True, "unit": "x", "note": ""} | other


def reporting(*figures, before=""):
    # each run leaves a mark, so that a test can count them
    mark = "import sys, pathlib; open(pathlib.Path(__file__).stem + '.ran', 'a').write('x')\n"
    return f"{mark}{before}\nprint('chatter')\nprint({json.dumps(json.dumps({'figures': figures}))})\n"


@pytest.fixture
def tree(tmp_path):
    """A checkout with one area of two parts, all figures met."""
    for name, text in {
        "src/code.py": "x = 1\n",
        "benchmarks/prove.py": "",
        "benchmarks/prove/path_one.py": reporting(figure()),
        "benchmarks/prove/path_two_words.py": reporting(figure(name="count", value=3, bar="== 3")),
        "benchmarks/prove/scale_big.py": reporting(figure()),
    }.items():
        write(tmp_path / name, text)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def part(tree, name):
    return tree / "benchmarks" / "prove" / f"{name}.py"


def runs(tree, name="path_one"):
    mark = tree / f"{name}.ran"
    return len(mark.read_text()) if mark.exists() else 0


def report(tree, name="prove-path"):
    return json.loads((tree / "out" / f"{name}.json").read_text())


def test_an_area_runs_its_parts_and_reports(prove, tree, capfd):
    assert prove.main(["path"], tree) == 0
    out, err = capfd.readouterr()
    assert [line.split()[:3] for line in out.splitlines()[2:4]] == [
        ["one", "speed", "2.5"],
        ["two_words", "count", "3"],
    ]
    assert out.splitlines()[-1] == "2 of 2 figures met their bars; 0 of 2 parts failed; out/prove-path.json"
    assert "[1/2] path one ..." in err
    assert runs(tree, "scale_big") == 0


def test_the_report_says_where_and_with_what_it_was_measured(prove, tree, capfd):
    prove.main(["path"], tree)
    written = report(tree)
    assert [p["part"] for p in written["parts"]] == ["one", "two_words"]
    assert written["parts"][0]["figures"] == [figure()]
    assert written["machine"]["cores"] == os.cpu_count()
    assert written["versions"]["numpy"] != "absent"
    assert written["commit"] == "unknown"  # this tree is no repository


def test_what_did_not_change_is_kept(prove, tree, capfd):
    prove.main(["path"], tree)
    assert prove.main(["path"], tree) == 0
    assert runs(tree) == 1
    assert "path one: 1 figures ok (unchanged, kept)" in capfd.readouterr().err


@pytest.mark.parametrize(
    "changed", ["src/code.py", "src/new.py", "benchmarks/shapes.py", "examples/model.py", "constraints.txt"]
)
def test_a_change_of_what_is_measured_runs_every_part_again(prove, tree, changed):
    prove.main(["path"], tree)
    write(tree / changed, "x = 2\n")
    prove.main(["path"], tree)
    assert (runs(tree), runs(tree, "path_two_words")) == (2, 2)
    assert len(list((tree / ".prove").iterdir())) == 2


def test_a_change_of_one_part_runs_that_part_again(prove, tree):
    prove.main(["path"], tree)
    part(tree, "path_one").write_text(reporting(figure(value=3.0)))
    prove.main(["path"], tree)
    assert (runs(tree), runs(tree, "path_two_words")) == (2, 1)


def test_in_a_repository_ignored_files_do_not_count(prove, tree):
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    write(tree / ".gitignore", "*.pyc\n")
    before = prove.tree_state(tree)
    write(tree / "src/code.pyc", "compiled")
    assert prove.tree_state(tree) == before
    write(tree / "src/new.py", "untracked, yet measured")
    assert prove.tree_state(tree) != before


def test_fresh_runs_everything_again(prove, tree):
    prove.main(["path"], tree)
    prove.main(["path", "--fresh"], tree)
    assert runs(tree) == 2


def test_a_sample_is_kept_and_reported_apart(prove, tree, capfd):
    part(tree, "path_one").write_text(reporting(figure(), before="assert '--sample' in sys.argv"))
    assert prove.main(["path", "--sample"], tree) == 0
    assert report(tree, "prove-path-sample")["mode"] == "sample"
    assert prove.main(["path"], tree) == 2
    assert "AssertionError" in capfd.readouterr().err


def test_only_runs_one_part_and_leaves_the_report_of_the_area(prove, tree):
    assert prove.main(["path", "--only", "two_words"], tree) == 0
    assert (runs(tree), runs(tree, "path_two_words")) == (0, 1)
    assert [p.name for p in (tree / "out").iterdir()] == ["prove-path-two_words.json"]


def test_a_missed_bar_is_exit_1_and_measured_again(prove, tree, capfd):
    part(tree, "path_one").write_text(reporting(figure(value=1.5, ok=False)))
    assert prove.main(["path"], tree) == 1
    assert "NO" in capfd.readouterr().out
    assert prove.main(["path"], tree) == 1
    assert (runs(tree), runs(tree, "path_two_words")) == (2, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise SystemExit(7)", "exit code 7"),
        ("print('no figures here')", "the last line must be"),
        ("print('[1, 2]')", "the last line must be"),
        (reporting(), "at least one figure"),
        (reporting(figure(ok="yes")), "'ok' must be bool"),
        (reporting(figure(value=True)), "'value' must be int or float or str"),
        (reporting({"name": "speed"}), "'value' must be"),
        (reporting(figure(value=float("nan"))), "no finite value"),
        (reporting("speed"), "a figure must be an object"),
    ],
)
def test_a_part_that_fails_is_exit_2_and_the_others_still_run(prove, tree, capfd, text, reason):
    part(tree, "path_one").write_text(text)
    assert prove.main(["path"], tree) == 2
    out = capfd.readouterr().out
    assert reason in out
    assert "1 of 1 figures met their bars; 1 of 2 parts failed" in out


def test_a_part_is_ended_with_its_children_when_its_time_is_up(prove, tree, capfd):
    child = "import subprocess; c = subprocess.Popen(['sleep', '60']); open('child', 'w').write(str(c.pid))"
    part(tree, "path_one").write_text(f"{child}\nimport time; time.sleep(60)")
    started = time.monotonic()
    assert prove.main(["path", "--part-timeout-s", "1.5"], tree) == 2
    assert time.monotonic() - started < 30
    assert "no result within 2 s" in capfd.readouterr().out
    assert gone(int((tree / "child").read_text()))


def gone(pid):
    """Killed: absent, or a zombie that waits for init."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(50):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_past_the_budget_no_part_is_started_and_the_next_run_goes_on(prove, tree, capfd):
    assert prove.main(["path", "--only", "one"], tree) == 0
    assert prove.main(["path", "--budget-s", "0"], tree) == 2
    assert "not started" in capfd.readouterr().out
    assert prove.main(["path"], tree) == 0
    assert (runs(tree), runs(tree, "path_two_words")) == (1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "AREA must be one of path, scale; got ''"),
        (["paths"], "AREA must be one of path, scale; got 'paths'"),
        (["path", "--only", "big"], "ONLY must be one of one, two_words in area path; got 'big'"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(prove, tree, capfd, words, message):
    assert prove.main(words, tree) == 3
    assert message in capfd.readouterr().err


def test_every_part_of_the_project_is_found(prove):
    scripts = {path.name for path in (ROOT / "benchmarks" / "prove").glob("*.py") if path.name[0] != "_"}
    areas = {name.split("_")[0] for name in scripts}
    assert scripts == {p.script.name for area in areas for p in prove.find_parts(ROOT, area)}
    assert "path" in areas
