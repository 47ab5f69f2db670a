"""One nursery of processes for all layer-2 tests of the exchange."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ranks import Nursery


@pytest.fixture(scope="session")
def nursery():
    if not sys.platform.startswith("linux"):
        pytest.skip("the exchange's processes are forked and tied to their parent with Linux calls")
    found = Nursery()
    yield found
    found.close()
