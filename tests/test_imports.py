"""Importing does nothing: each promise is proven in a fresh process, and each proof is shown to fail once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

HEAVY = ("torch", "triton", "numba", "pulp", "transformers", "matplotlib", "typer", "rich", "highspy", "safetensors")

# Runs a statement with some top-level modules made absent, and prints which of the heavy ones got loaded.
PROBE = """
import json, sys
statement, blocked, heavy = json.loads(sys.argv[1])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r} (made absent by the test)", name=name)

sys.meta_path.insert(0, Absent())
exec(statement, {})
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} & set(heavy))))
"""


@dataclass(frozen=True)
class Probed:
    loaded: tuple[str, ...]
    error: str


def probe(statement, *, absent=(), path=""):
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), env["PYTHONPATH"])))
    words = [sys.executable, "-c", PROBE, json.dumps([statement, list(absent), list(HEAVY)])]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    loaded = tuple(json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else ()
    return Probed(loaded, done.stderr)


@pytest.mark.parametrize(
    "statement",
    [
        "import janus",
        "import janus; dir(janus), janus.__all__, janus.__version__",
        "import janus.errors, janus.types",
        "from janus import JanusError, PeerLost, Topology, Placement, RoutingTrace, RequestTrace, Slo",
        "import janus.sched",
        "import janus.scale",
        "import janus.comm",
        "import janus.comm.cost",
    ],
)
def test_importing_loads_nothing_heavy(statement):
    assert probe(statement) == Probed((), "")


SCHED = """
import numpy as np, janus
placement = janus.Placement([[0, 1, 2], [2, 3, 0]], num_experts=4)
assert janus.balance(np.array([[0, 1], [2, 3]]), placement, backend="reference").a_max == 2
"""


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import janus.sched; janus.sched.balance, janus.sched.Balancer, janus.sched.place", ("torch", "triton")),
        (SCHED, ("torch", "triton", "numba", "pulp")),
        ("import janus.scale; janus.scale.plan, janus.scale.LatencyModel", ("torch", "triton")),
        ("import janus.comm.cost; janus.comm.cost.CostModel", ("torch", "triton", "numba", "pulp")),
        ("import janus.comm; janus.comm.Exchange", ("triton", "numba", "pulp")),
        ("import janus.runner.launch", ("torch", "triton", "numba", "pulp")),
        ("import janus.cli.settings", ("torch", "triton", "numba", "pulp")),
    ],
)
def test_each_part_works_without_what_it_does_not_need(statement, absent):
    assert probe(statement, absent=absent).error == ""


def test_the_checker_reports_a_module_that_loads_torch(tmp_path):
    (tmp_path / "eager.py").write_text("import torch\n")
    assert "torch" in probe("import eager", path=tmp_path).loaded


def test_the_checker_reports_a_module_that_needs_what_is_absent(tmp_path):
    (tmp_path / "needy.py").write_text("def work():\n    import triton.language\n")
    assert probe("import needy", absent=["triton"], path=tmp_path).error == ""
    assert (
        "No module named 'triton' (made absent"
        in probe("import needy; needy.work()", absent=["triton"], path=tmp_path).error
    )
