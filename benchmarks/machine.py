"""Where and with what something was measured: every report of figures carries it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("janus-moe", "torch", "triton", "numba", "numpy", "pulp", "highspy", "transformers")


def provenance(root: Path = ROOT) -> dict[str, Any]:
    """The fields that every report begins with."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(root),
        "machine": machine(),
        "versions": versions(),
    }


def commit(root: Path) -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    changed = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "HEAD") or "unknown") + changed


def machine() -> dict[str, Any]:
    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    gpus = []
    if smi := shutil.which("nvidia-smi"):
        words = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpus = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return {
        "system": platform.platform(terse=True),
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(kib / 2**20, 1),
        "gpus": [line.replace(", ", ", driver ") for line in gpus],
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
