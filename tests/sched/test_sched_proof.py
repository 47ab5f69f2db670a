"""The proof scripts of this part run, and their small samples hold. Layer 1 (integers) and 2 (the interpreter)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = {  # figures of counted cases, which hold on any machine, busy or not
    "path_sched": 4,
    "sched_cost": 1,
    "sched_exact": 7,
    "sched_input": 28,
    "sched_placement": 1,
    "sched_speed": 0,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_proof_script_prints_one_object_of_figures(name):
    command = [sys.executable, ROOT / "benchmarks" / "prove" / f"{name}.py", "--sample"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    counted = [f for f in figures if f["unit"] in ("cases", "calls")]
    assert len(counted) >= SCRIPTS[name]
    assert figures
    assert [f["name"] for f in counted if not f["ok"]] == []  # times are not judged here


def test_every_proof_script_of_the_part_is_run_here():
    found = {path.stem for path in (ROOT / "benchmarks" / "prove").glob("sched_*.py")}
    assert {"sched_cost", "sched_exact", "sched_input", "sched_placement", "sched_speed"} <= found & set(SCRIPTS)
