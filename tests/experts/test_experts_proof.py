"""The proof script of wrong calls runs, and its small sample holds."""

import json
import subprocess
import sys


def test_every_wrong_call_is_refused_by_its_code_and_no_damaged_one_gives_anything_else(root):
    command = [sys.executable, root / "benchmarks" / "prove" / "experts_input.py", "--sample"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert [f["name"] for f in figures if not f["ok"]] == []
    assert len(figures) >= 40
