"""Where the shared recordings are, when they are there at all."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("JANUS_SHARED") or Path(__file__).parents[2] / "../shared")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"the shared recordings are not at {data}; set JANUS_SHARED")
    return data
