"""The proof script of this part runs, and its small sample holds. Layer 1 (integers)."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_proof_script_prints_one_object_of_figures():
    script = ROOT / "benchmarks" / "prove" / "path_sched.py"
    done = subprocess.run(
        [sys.executable, script, "--sample"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    exactness = [f for f in figures if f["unit"] == "cases"]
    assert len(exactness) == 4
    assert all(f["ok"] for f in exactness)  # times are not judged here: this machine may be busy
