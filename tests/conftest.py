"""What every test may rely on; set before torch, triton or transformers is imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ALONE = ("comm", "runner", "test_testbed.py", "test_bench_comm.py")  # start processes that watch the time they take


def has_gpu() -> bool:
    """Ask torch only where a driver is present: importing it costs seconds."""
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return False
    import torch

    return torch.cuda.is_available()


if not has_gpu():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when triton is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests build their models; nothing is fetched
os.environ.setdefault("JANUS_CACHE", "off")  # nothing is kept in the home of whoever runs the tests
os.environ.setdefault("MPLBACKEND", "Agg")  # figures go to files
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests are small: threads that wait for work take the cores of processes
# processes that tests start import the same source as the tests
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))

# no deadline: the first example of a test may compile a kernel
settings.register_profile("janus", deadline=None, max_examples=50)
settings.load_profile("janus")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of `ALONE` are marked so; those marked `gpu` say why they did not run."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.path.relative_to(HERE).parts[0] in ALONE:
            item.add_marker(pytest.mark.alone)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Recorded data that is not part of the project: a folder `shared` beside the checkout, or JANUS_SHARED."""
    folder = Path(os.environ.get("JANUS_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"recorded data absent: no folder {folder.name}/data beside the checkout and JANUS_SHARED unset")
    return folder
