"""Bad input through the front doors: each must be a JanusError that says what and where, before a token is served.

The single-process cases go through `janus run` or the constructors, the others through real ranks at 1A1E.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from serve_job import run_job

Seen = tuple[str, str]  # code and message of the error, empty when there was none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="the same: it takes seconds")
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="janus-prove-") as name:
        root = Path(name)
        figures = [check(*case) for case in (*alone(root), *between_roles(root))]
    print(json.dumps({"figures": figures}))


def check(name: str, code: str, says: list[str], attempt: Callable[[], Seen]) -> dict[str, Any]:
    """Run one bad input; right when the code and every wanted word are there."""
    print(name, file=sys.stderr)
    start = time.monotonic()
    got, message = attempt()
    ok = got == code and all(word in message for word in says)
    return {
        "name": name,
        "value": got or "no error",
        "bar": code,
        "ok": ok,
        "unit": "",
        "note": f"{time.monotonic() - start:.1f} s: {message[:160]}",
    }


def alone(root: Path) -> list[tuple[str, str, list[str], Callable[[], Seen]]]:
    """Inputs that one process can refuse."""
    missing, pickled, torn = (tiny.save("mixtral", root / name) for name in ("missing", "pickled", "torn"))
    (missing / "model.safetensors").rename(missing / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (missing / "model.safetensors.index.json").write_text(json.dumps(index))
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": [0.0]}))
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:5000])
    lacking, trace = root / "lacking.json", root / "requests.csv"
    lacking.write_text(
        json.dumps({"format": "janus.placement/1", "num_experts": 16, "slots": [list(range(8)), list(range(7, 15))]})
    )
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:47,three,4\n"
    )
    whole = tiny.save("mixtral", root / "whole")
    return [
        ("missing weight file", "checkpoint.missing", ["model-00002-of-00002.safetensors"], lambda: run(missing)),
        ("pickle checkpoint", "checkpoint.pickle", ["pytorch_model.bin"], lambda: run(pickled)),
        ("truncated weight file", "checkpoint.corrupt", ["model.safetensors"], lambda: run(torn)),
        (
            "placement without an expert",
            "placement.file",
            ["lacking.json", "none for expert 15"],
            lambda: run(whole, "--placement", str(lacking)),
        ),
        ("topology larger than the world", "topology.world", ["2A2E"], lambda: too_small_a_world(whole)),
        (
            "corrupt trace line",
            "requests.file",
            ["requests.csv", "3", "three"],
            lambda: raised(lambda: load_requests(trace)),
        ),
    ]


def between_roles(root: Path) -> list[tuple[str, str, list[str], Callable[[], Seen]]]:
    """Inputs that differ between an attention and an expert rank."""
    base = {"folder": str(root / "whole"), "prompts": [[5, 6]], "max_new_tokens": 2}
    wider = str(tiny.save("mixtral", root / "wider", hidden_size=96))
    cases = [base | {"ranks": {"1": {"folder": wider}}}, base | {"ranks": {"1": {"options": {"dtype": "bfloat16"}}}}]
    results: list[dict[str, Any]] = []

    def seen(i: int) -> Seen:
        results.extend([] if results else run_job({"topology": "1A1E", "gpus_per_node": 1, "cases": cases}))
        both = results[i]["errors"]
        return (both[0] if both[0] == both[1] else f"ranks say {both}"), results[i].get("message", "")

    return [
        ("hidden size differs between roles", "comm.contract", ["hidden_size", "64", "96"], lambda: seen(0)),
        ("dtype differs between roles", "comm.contract", ["dtype", "float32", "bfloat16"], lambda: seen(1)),
    ]


def run(folder: Path, *options: str) -> Seen:
    """`janus run` on a folder; its error as JSON."""
    command = [
        sys.executable,
        "-m",
        "janus.cli",
        "run",
        str(folder),
        "--topology",
        "1A2E",
        "--prompts",
        str(_prompts(folder)),
        "--json",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    for line in reversed((done.stdout + done.stderr).splitlines()):
        if line.startswith("{"):
            error = json.loads(line).get("error", {})
            return error.get("code", ""), error.get("message", "")
    return "", done.stderr[-300:]


def too_small_a_world(folder: Path) -> Seen:
    """Two processes for a topology of four, as torchrun would start them."""
    from janus.runner.launch import launch

    code = (
        "import sys; from janus import DisaggregatedRunner, Topology\n"
        "try: DisaggregatedRunner(sys.argv[1], topology=Topology.parse('2A2E', gpus_per_node=2))\n"
        "except ValueError as e: print(e.code, e)"
    )
    ended = launch([sys.executable, "-c", code, str(folder)], 2, deadline_s=60)
    line = ended[0].tail[-1] if ended[0].tail else ""
    return line.partition(" ")[0], line


def load_requests(path: Path) -> None:
    from janus import RequestTrace

    RequestTrace.load(path)


def raised(call: Callable[[], None]) -> Seen:
    from janus import JanusError

    try:
        call()
    except JanusError as error:
        return error.code, str(error)
    return "", ""


def _prompts(folder: Path) -> Path:
    path = folder.with_suffix(".prompts.json")
    path.write_text("[[5, 6, 7]]")
    return path


if __name__ == "__main__":
    main()
