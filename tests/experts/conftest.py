"""Processes for the tests of expert parallelism, with the launcher of the exchange's tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "comm"))

from ranks import Nursery


@pytest.fixture(scope="session")
def parallel_nursery():
    if not sys.platform.startswith("linux"):
        pytest.skip("the processes are forked and tied to their parent with Linux calls")
    found = Nursery(Path(__file__).parent, ("parallel_ranks",))
    yield found
    found.close()
