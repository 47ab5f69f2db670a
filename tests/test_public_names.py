"""The front door: the public names, pinned; an accidental export or a lost one is a failing test."""

from __future__ import annotations

import subprocess
import sys

import pytest

import janus

PUBLIC = [
    "Balancer",
    "DisaggregatedRunner",
    "Exchange",
    "JanusError",
    "JanusMoELayer",
    "PeerLost",
    "Placement",
    "RequestTrace",
    "RoutingTrace",
    "Slo",
    "Topology",
    "balance",
    "comm",
    "convert",
    "experts",
    "plan",
    "scale",
    "sched",
]
LIMIT = 20  # a reader keeps about this many names in mind


def test_the_public_names_are_these():
    assert janus.__all__ == PUBLIC
    assert len(PUBLIC) <= LIMIT


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name):
    assert getattr(janus, name) is getattr(janus, name)


@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in ("comm", "experts", "scale", "sched")])
def test_every_public_name_lives_where_the_table_says(name):
    value = getattr(janus, name)
    assert value.__name__ == name
    assert value.__module__.startswith(janus._HOME[name])


def test_dir_lists_the_public_names_and_nothing_private():
    assert dir(janus) == sorted([*PUBLIC, "__version__"])


def test_star_import_gives_exactly_the_public_names():
    code = "from janus import *; print(sorted(n for n in globals() if not n.startswith('__')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(PUBLIC)


def test_an_unknown_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="module 'janus' has no attribute 'ballance'"):
        _ = janus.ballance
