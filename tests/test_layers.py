"""Imports point one way: types, errors <- sched, comm <- scale <- layer <- runner <- cli.

Every import statement of the package counts, at whatever depth it stands, type-checking ones included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import janus

# A part may import parts of a lower level, and itself. `experts` (weights of the experts, read and sliced) serves
# layer and runner alone.
LEVEL = {
    "errors": 0,
    "lazy": 0,
    "types": 1,
    "sched": 2,
    "comm": 2,
    "scale": 3,
    "experts": 3,
    "layer": 4,
    "conversion": 5,
    "runner": 6,
    "cli": 7,
}
NARROWER = {
    ("scale", "comm"): "janus.comm.cost",  # the torch-free half
}


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a module imports."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def home(name: str) -> str:
    """`janus.Topology` is a door to `janus.types.Topology`: the import is of the latter."""
    first = name.removeprefix("janus.").split(".")[0]
    module = janus._HOME.get(first, ".")
    return name if module == "." else f"{module}.{first}"


def faults(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = ("janus", *path.relative_to(package).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        if module == "janus":
            continue  # the front door names every part and imports none of them before it is asked
        part = module.split(".")[1]
        if part not in LEVEL:
            found.append(f"{module}: part {part!r} has no level in this test")
            continue
        for line, name in imported(ast.parse(path.read_text()), module, is_package):
            if reason := fault(part, home(name)):
                found.append(f"{module}:{line}: {reason}")
    return found


def fault(part: str, name: str) -> str:
    if name == "janus":
        return "" if part == "cli" else "imports the front door; name the part"
    other = name.split(".")[1] if name.startswith("janus.") else part
    if other in (part, "__version__"):
        return ""
    if LEVEL.get(other, 99) >= LEVEL[part]:
        return f"{part} imports {other}"
    only = NARROWER.get((part, other))
    return f"{part} imports {name}, may import {only} only" if only and not f"{name}.".startswith(f"{only}.") else ""


def test_imports_point_one_way(root):
    assert faults(root / "src" / "janus") == []


def test_every_part_of_the_package_is_walked(root):
    walked = {
        path.relative_to(root / "src" / "janus").parts[0].removesuffix(".py")
        for path in (root / "src" / "janus").rglob("*.py")
    }
    assert walked - {"__init__"} == set(LEVEL)


def plant(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "janus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "janus"


def test_a_tree_in_order_has_no_faults(tmp_path):
    files = {
        "__init__.py": "from janus import cli\n",
        "types/topology.py": "import os\nfrom janus.errors import JanusError\nfrom . import slo\n",
        "scale/api.py": "import janus.sched\nfrom janus.comm.cost import CostModel\nfrom janus.comm import cost\n",
        "scale/search/solve.py": "from .api import plan\nfrom janus import Topology, __version__, sched\n",
        "cli/app.py": "import janus\nfrom janus.runner.launch import launch\n",
    }
    assert faults(plant(tmp_path, files)) == []


def test_each_kind_of_fault_is_found(tmp_path):
    files = {
        "types/__init__.py": "from ..sched import balance\n",
        "sched/api.py": "def late():\n    from janus.comm import Exchange\n",
        "sched/kernel.py": "from ..scale.solve import plan\n",
        "comm/api.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from janus import balance\n",
        "scale/api.py": "from janus.comm.exchange import Exchange\nfrom janus.comm import Exchange, cost\n",
        "scale/timing/latency.py": "from janus.comm.cost_of_living import x\n",
        "layer.py": "import janus.runner.api\n",
        "runner/api.py": "import janus\n",
        "helpers.py": "import janus.types\n",
    }
    assert faults(plant(tmp_path, files)) == [
        "janus.comm.api:3: comm imports sched",
        "janus.helpers: part 'helpers' has no level in this test",
        "janus.layer:1: layer imports runner",
        "janus.runner.api:1: imports the front door; name the part",
        "janus.scale.api:1: scale imports janus.comm.exchange.Exchange, may import janus.comm.cost only",
        "janus.scale.api:2: scale imports janus.comm.Exchange, may import janus.comm.cost only",
        "janus.scale.timing.latency:1: scale imports janus.comm.cost_of_living.x, may import janus.comm.cost only",
        "janus.sched.api:2: sched imports comm",
        "janus.sched.kernel:1: sched imports scale",
        "janus.types:1: types imports sched",
    ]
