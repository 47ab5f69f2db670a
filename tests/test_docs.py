"""What the documentation shows is true: its Python runs, its examples compute what they print, its commands exist.

A ```python block of README.md or docs/ is run, after the ones above it on the same page. A block that cannot run on
one machine without a GPU stands below a line `<!-- not run: why -->`. A ```pycon block, and every docstring, is
compared with the output it prints.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import janus

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted((ROOT / "src" / "janus").rglob("*.py"))
SECONDS = 120
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<lang>python|pycon|py|python3)\b[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.M | re.S
)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
RULE = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    code: str
    compared: bool
    run: bool


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        code = "".join(line.removeprefix(match["indent"]) for line in match["code"].splitlines(keepends=True))
        before = text[: match.start()]
        compared = match["lang"] == "pycon" or code.lstrip().startswith(">>>")
        found.append(Block(page, before.count("\n") + 2, code, compared, NOT_RUN.search(before) is None))
    return found


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def script(page: Path) -> str:
    """The page's blocks as one program, each on the line where it stands, so that a traceback points at the page."""
    lines: list[str] = []
    for block in blocks(page):
        if block.run and not block.compared:
            lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
    return "\n".join(lines)


def run_script(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "the_page.py"  # named after no module: its folder comes first when it imports
    program.write_text(script(page))
    words = [sys.executable, str(program)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize("page", [page for page in PAGES if script(page)], ids=ids)
def test_the_python_of_a_page_runs(page, tmp_path):
    done = run_script(page, tmp_path)
    assert done.returncode == 0, f"{ids(page)}: the line numbers are those of the page\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.compared for b in blocks(page))], ids=ids)
def test_the_sessions_of_a_page_print_what_they_show(page):
    runner, names = doctest.DocTestRunner(optionflags=RULE), {}
    for block in blocks(page):
        if block.run and block.compared:
            case = doctest.DocTestParser().get_doctest(block.code, names, ids(page), str(page), block.line - 1)
            runner.run(case, clear_globs=False)
            names = case.globs
    assert runner.summarize(verbose=False).failed == 0


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("source", [s for s in SOURCES if ">>>" in s.read_text()], ids=module_name)
def test_the_examples_of_docstrings_compute_what_they_print(source):
    module = importlib.import_module(module_name(source))
    outcome = doctest.testmod(module, optionflags=RULE)
    assert outcome.attempted
    assert not outcome.failed


@pytest.mark.parametrize("name", janus.__all__)
def test_every_public_name_says_what_it_is_and_shows_it(name):
    value = getattr(janus, name)
    text = inspect.getdoc(value) or ""
    assert text
    if not inspect.ismodule(value):
        assert re.search(r"^Example", text, re.M), f"janus.{name} has no Example in its docstring"


@pytest.mark.parametrize("part", ["types", "sched", "comm", "scale", "runner"])
def test_every_name_of_a_part_has_a_docstring(part):
    module = importlib.import_module(f"janus.{part}")
    bare = [name for name in module.__all__ if not inspect.getdoc(getattr(module, name))]
    assert bare == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=ids)
def test_the_make_commands_of_a_page_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.M))
    assert named <= targets


def test_every_public_name_stands_in_the_documentation():
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in janus.__all__ if not re.search(rf"\b{name}\b", text)] == []


# ---- the checks of this file can fail


def test_a_wrong_block_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n```python\nx = 1\n```\n\n=== tab\n\n    ```python\n    assert x == 2, 'seen'\n    ```\n\n"
        "<!-- not run: two machines -->\n\n```python\nraise SystemExit(3)\n```\n\n```pycon\n>>> 1 + 1\n3\n```\n"
    )
    assert [(b.line, b.run, b.compared) for b in blocks(page)] == [
        (4, True, False),
        (10, True, False),
        (16, False, False),
        (20, True, True),
    ]
    done = run_script(page, tmp_path)
    assert done.returncode == 1
    assert "line 10" in done.stderr
    assert "seen" in done.stderr
