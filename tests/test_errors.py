"""The two kinds of error: codes, messages, and the way through a process boundary."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

from janus import JanusError, PeerLost
from janus.errors import known


def test_a_janus_error_is_a_value_error_with_a_code():
    error = JanusError("slo.range", "tpot_ms must be > 0, got -1")
    assert isinstance(error, ValueError)
    assert (error.code, error.message) == ("slo.range", "tpot_ms must be > 0, got -1")
    assert str(error) == "[slo.range] tpot_ms must be > 0, got -1"


def test_a_lost_peer_is_a_runtime_error_that_says_who_and_where():
    error = PeerLost("combine", 3, rank=0, peer=4, detail="connection closed")
    assert isinstance(error, RuntimeError)
    assert not isinstance(error, ValueError)
    assert (error.phase, error.layer, error.rank, error.peer) == ("combine", 3, 0, 4)
    assert str(error) == "rank 0 lost rank 4 in phase combine, layer 3: connection closed"
    assert str(PeerLost("rendezvous", -1, 1, 2)) == "rank 1 lost rank 2 in phase rendezvous"


@pytest.mark.parametrize(
    "error", [JanusError("a.b", "c"), PeerLost("begin", 1, 2, 3, "d"), PeerLost("close", -1, 0, 1)]
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickle_and_copy(error, protocol):
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_errors_cross_a_process_boundary():
    code = (
        "import pickle, sys; from janus import JanusError, PeerLost;"
        "sys.stdout.buffer.write(pickle.dumps([JanusError('a.b', 'c'), PeerLost('begin', 1, 2, 3, 'd')]))"
    )
    env_path = [path for path in sys.path if path]
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {env_path!r}; {code}"], check=False, capture_output=True
    )
    assert out.returncode == 0, out.stderr.decode()
    janus_error, peer_lost = pickle.loads(out.stdout)
    assert janus_error.code == "a.b"
    assert (peer_lost.layer, peer_lost.peer, peer_lost.detail) == (1, 3, "d")


@pytest.mark.parametrize("value", ["exat", "", None, 3, ["exact"], np.array(["exact"]), "x" * 10_000])
def test_unknown_names_are_refused_with_the_known_ones_listed(value):
    with pytest.raises(JanusError, match=r"method must be one of 'exact', 'greedy'; got") as caught:
        known(value, ("exact", "greedy"), "method", "sched.method")
    assert caught.value.code == "sched.method"
    assert len(str(caught.value)) < 200


def test_a_known_name_passes_through():
    assert known("greedy", iter(("exact", "greedy")), "method", "sched.method") == "greedy"
