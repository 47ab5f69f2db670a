"""Damaged files of every kind, a few hundred; benchmarks/prove/scale_input.py does ten thousand."""

import sys
from pathlib import Path

import numpy as np
import pytest

from janus import JanusError


@pytest.fixture(scope="module")
def fuzz():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    import fuzz

    yield fuzz
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def kinds(fuzz, tmp_path_factory):
    return fuzz.seeds(tmp_path_factory.mktemp("seeds"))


def test_what_is_not_damaged_is_read(fuzz, kinds, tmp_path):
    for kind in kinds:
        (tmp_path / "whole").write_bytes(kind.valid)
        assert fuzz.outcome(kind, tmp_path / "whole") == "value", kind.name


def test_damaged_files_give_a_value_or_a_refusal(fuzz, kinds, tmp_path):
    rng, outcomes = np.random.default_rng(7), []
    for i in range(30 * len(kinds)):
        kind = kinds[i % len(kinds)]
        (tmp_path / "damaged").write_bytes(fuzz.damaged(kind, kinds, rng, tmp_path / fuzz.CANARY))
        outcomes.append((kind.name, fuzz.outcome(kind, tmp_path / "damaged")))
    assert [pair for pair in outcomes if pair[1].startswith("!")] == []
    assert len(set(outcomes)) > len(kinds)  # refused for more than one reason
    assert not (tmp_path / fuzz.CANARY).exists()


def test_the_fuzz_notices_what_it_is_for(fuzz, tmp_path, monkeypatch):
    """Another exception, a warning and an endless load are told apart from a refusal."""

    def refuse(_):
        raise JanusError("x.y", "no")

    def endless(_):
        while True:
            pass

    def warn(_):
        np.float64(1e308) * np.float64(10)

    monkeypatch.setattr(fuzz, "DEADLINE_S", 0.2)
    seen = [fuzz.outcome(fuzz.Kind("k", b"", load), tmp_path) for load in (refuse, endless, warn, lambda _: 1 / 0)]
    assert seen[:2] == ["x.y", "!no end within 0.2 s"]
    assert seen[2].startswith("!RuntimeWarning")
    assert seen[3].startswith("!ZeroDivisionError")


def test_a_pickle_would_be_noticed(fuzz, tmp_path):
    data = fuzz.npz({"ids": np.array([fuzz.Bomb(tmp_path / fuzz.CANARY)], dtype=object)}, pickled=True)
    (tmp_path / "p.npz").write_bytes(data)
    np.load(tmp_path / "p.npz", allow_pickle=True)["ids"]
    assert (tmp_path / fuzz.CANARY).exists()
