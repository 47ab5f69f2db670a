"""Try the built archives as a user would: what is inside, and whether it imports where nothing else is installed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTICES = ("LICENSE", "NOTICE")
IMPORTS_ALONE = "import sys, janus; assert 'torch' not in sys.modules; print(janus.__version__)"
IMPORTS_WITHOUT_TORCH = """
import janus.types, janus.sched, janus.scale, janus.comm.cost, sys
assert 'torch' not in sys.modules and 'triton' not in sys.modules
from janus import Topology, Placement
print(Topology.parse('2A4E'), Placement.contiguous(8, 4).num_instances)
"""


def package_files() -> set[str]:
    """Every tracked file of the package, code and data, as it must appear in the wheel."""
    listing = subprocess.run(["git", "ls-files", "src/janus"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.removeprefix("src/") for name in listing.stdout.splitlines()}


def check_contents(wheel: Path, sdist: Path) -> None:
    """Raise SystemExit where a file of the package or a licence text is missing from an archive."""
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        source = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = package_files() | {"janus/py.typed"}
    licences = {name for name in NOTICES if not any(f.endswith(f".dist-info/licenses/{name}") for f in inside)}
    missing = sorted(wanted - inside) + sorted(licences)
    missing += sorted(f"{name} (source archive)" for name in {f"src/{f}" for f in wanted} - source)
    if missing:
        sys.exit(
            f"{wheel.name}: not inside: {', '.join(missing)}; see package-data and license-files in pyproject.toml"
        )
    print(f"{wheel.name}: {len(wanted)} files and {', '.join(NOTICES)} inside, {wheel.stat().st_size / 1e6:.2f} MB")


def check_imports(wheel: Path, folder: Path) -> None:
    """Install into an empty environment, first alone, then with NumPy only, and import from there."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"

    def run(*words: str) -> str:
        # isolated (-I): neither the checkout nor PYTHONPATH may help
        done = subprocess.run([python, "-I", *words], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(words)[:200]}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    run("-m", "pip", "install", "-q", "--no-deps", str(wheel))
    print(f"alone: import janus -> {run('-c', IMPORTS_ALONE)}")
    run("-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), "numpy")
    print(f"with NumPy only: types, sched, scale, comm.cost -> {run('-c', IMPORTS_WITHOUT_TORCH)}")


def main(dist: Path) -> None:
    """Check the one wheel and the one source archive in `dist`."""
    (wheel,), (sdist,) = dist.resolve().glob("*.whl"), dist.resolve().glob("*.tar.gz")
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory(prefix="janus-wheel-") as folder:
        check_imports(wheel, Path(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
