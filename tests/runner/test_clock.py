"""Seconds and calls per phase, also when a phase ends by an exception."""

import time

import pytest

from janus.runner.clock import Clock


def test_phases_add_up():
    clock = Clock()
    for _ in range(2):
        with clock.phase("wait"):
            time.sleep(0.01)
    assert clock.calls == {"wait": 2}
    assert clock.to_dict()["wait"] >= 0.02


def test_a_phase_that_raises_is_counted():
    clock = Clock()
    with pytest.raises(KeyError), clock.phase("lookup"):
        raise KeyError
    assert clock.calls["lookup"] == 1
