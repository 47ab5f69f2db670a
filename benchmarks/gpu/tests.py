"""GPU: every test that is marked for it, `pytest -m gpu`."""

from __future__ import annotations

import re
import subprocess
import sys

import on_gpu
from figures import figure, report, say
from machine import ROOT


def main() -> None:
    on_gpu.wants_sample(__doc__)
    # only files that have such tests: the others may need packages that a GPU machine does without
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    # a machine without pytest-timeout does not know its option
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-W", "ignore::pytest.PytestConfigWarning", *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines()[-60:]:
        say(line)
    last = next((line for line in reversed(done.stdout.splitlines()) if " in " in line), "")
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    passed, skipped = counts.get("passed", 0), counts.get("skipped", 0)
    good = done.returncode == 0 and (passed > 0 or on_gpu.DEVICE == "cpu")
    note = f"{skipped} skipped in {len(files)} files; {last}"
    report([figure("tests marked gpu", passed, "all pass, at least one", good, "passed", note)])


if __name__ == "__main__":
    main()
