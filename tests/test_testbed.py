"""The test network limits what it says, counts what passes, and leaves nothing behind however its owner ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import testbed
from testbed import Testbed
from testbed_check import self_check
from testbed_ranks import TestbedError

REASON = testbed.unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "the test network works here")

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = str(ROOT / "benchmarks")
RATE = 200.0
# The lower bound leaves room for a busy machine; above, a bucket that was full (0.4 ms) and rounding
SHARE = (0.75, 1.05)
SIZE = 1_000_000

ROLES = """
import os, signal, time

def whereabouts():
    names = ("RANK", "WORLD_SIZE", "JANUS_RENDEZVOUS", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "TESTBED_NODE", "OWN")
    own = {name: os.environ.get(name) for name in names}
    return own | {"pid": os.getpid(), "parent": os.getppid(), "namespace": os.readlink("/proc/self/ns/net")}

def fail(rank):
    if int(os.environ["RANK"]) == rank:
        raise ValueError("wrong on purpose")
    return "fine"

def sleep(rank, seconds=600.0):
    if int(os.environ["RANK"]) == rank:
        time.sleep(seconds)
    return "awake"

def leave(rank):
    if int(os.environ["RANK"]) == rank:
        os._exit(7)
"""

GLOO = """
import datetime, os
import torch
import torch.distributed as dist

def meet():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=os.environ["JANUS_RENDEZVOUS"], rank=rank, world_size=world,
                            timeout=datetime.timedelta(seconds=30))

def send(size):
    rank = dist.get_rank()
    data = torch.full((size,), rank, dtype=torch.uint8)
    if rank == 0:
        dist.send(data, 1)
    elif rank == 1:
        dist.recv(data, 0)
    dist.barrier()
    return int(data[-1])
"""

OWNER = """
import json, os, signal, sys
from testbed import Testbed

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it deaf to this one

ending, folder = sys.argv[1:]
with Testbed(nodes=2, rate_mbit=200) as bed, bed.ranks([0, 1, 1], "roles", path=[folder]) as ranks:
    places = ranks.call("whereabouts")
    switch = os.readlink(f"/proc/self/fd/{bed._switch}")
    print(json.dumps({"switch": switch, "ranks": places}), flush=True)
    if ending == "exception":
        raise RuntimeError("on purpose")
    if ending != "exit":
        ranks.call("sleep", rank=0, deadline_s=700)
"""


@pytest.fixture(scope="module")
def bed():
    with Testbed(nodes=3, rate_mbit=RATE) as bed:
        yield bed


@pytest.fixture(scope="module")
def roles(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("roles")
    (folder / "roles.py").write_text(ROLES)
    (folder / "roles_gloo.py").write_text(GLOO)
    return str(folder)


@pytest.fixture
def ranks(bed, roles):
    with bed.ranks([0, 0, 2], "roles", path=[roles], env={"OWN": "mine"}) as ranks:
        yield ranks


def streams(bed: Testbed, node_of_rank: list[int], pairs: list[list[int]], size: int = 0) -> list[float]:
    """Mbit/s at every receiver, in the order of ranks."""
    addresses = [bed.addresses[node] for node in node_of_rank]
    with bed.ranks(node_of_rank, "testbed_check", path=[BENCHMARKS]) as ranks:
        ranks.call("listen")
        values = ranks.call("stream", pairs=pairs, addresses=addresses, seconds=0.5, size=size)
    return [value["mbit"] for value in values if value]


# --- the limits ---


@pytest.mark.parametrize(
    ("pairs", "receivers"),
    [([[0, 1]], 1), ([[0, 1], [1, 0]], 2), ([[0, 1], [2, 1]], 1)],
    ids=["one direction", "both directions", "two to one"],
)
def test_a_port_carries_its_rate_and_no_more(bed, pairs, receivers):
    reached = streams(bed, [0, 1, 2], pairs)
    assert len(reached) == receivers
    for mbit in reached:
        assert SHARE[0] * RATE <= mbit <= SHARE[1] * RATE


def test_what_leaves_one_node_for_two_shares_its_port(bed):
    reached = streams(bed, [0, 1, 2], [[0, 1], [0, 2]])
    assert len(reached) == 2
    assert SHARE[0] * RATE <= sum(reached) <= SHARE[1] * RATE


def test_a_megabyte_takes_its_time_from_the_first_byte_on(bed):
    (mbit,) = streams(bed, [0, 1], [[0, 1]], size=SIZE)
    assert SHARE[0] * RATE <= mbit <= SHARE[1] * RATE


def test_inside_a_node_nothing_is_limited_or_counted(bed):
    before = bed.port_bytes()
    (mbit,) = streams(bed, [1, 1], [[0, 1]])
    assert mbit > 3 * RATE
    assert bed.port_bytes() == before


def test_the_rate_changes_while_ranks_live(bed, roles):
    addresses = list(bed.addresses[:2])
    with bed.ranks([0, 1], "testbed_check", path=[BENCHMARKS]) as ranks:
        ranks.call("listen")
        try:
            for rate in (50.0, 400.0, RATE):
                bed.set_rate(rate)
                reached = ranks.call("stream", pairs=[[0, 1]], addresses=addresses, seconds=0.5)[1]["mbit"]
                assert SHARE[0] * rate <= reached <= SHARE[1] * rate
        finally:
            bed.set_rate(RATE)


def test_the_counters_count_every_byte_where_it_passed(bed):
    before = bed.port_bytes()
    streams(bed, [0, 2], [[0, 1]], size=SIZE)
    out, into = ([new[way] - old[way] for new, old in zip(bed.port_bytes(), before, strict=True)] for way in (0, 1))
    # 66 bytes of headers a frame of 9014; the way back has acknowledgements, at most one for each two frames
    assert SIZE < out[0] < 1.02 * SIZE
    assert out[0] == into[2]
    assert 0 < out[2] == into[0] < 0.02 * SIZE
    assert (out[1], into[1]) == (0, 0)  # the bridge sends nothing where it does not belong


def test_an_idle_network_answers_at_once(bed):
    (trip,) = [row["ms"] for row in self_check(bed, seconds=0.05) if "ms" in row]
    assert trip < 2.0  # 0.05 ms where nothing else runs


def test_nothing_is_lost_or_sent_twice_when_many_send_to_one(bed):
    def resent() -> int:
        total = 0
        for namespace in bed._nodes:
            with testbed._inside(namespace):
                lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
            names, values = [line.split() for line in lines if line.startswith("Tcp:")]
            total += int(values[names.index("RetransSegs")])
        return total

    before = resent()
    streams(bed, [0, 1, 2], [[0, 1]] * 8 + [[2, 1]] * 8, size=SIZE // 4)
    assert resent() == before


# --- the ranks ---


def test_ranks_know_their_place(bed, ranks):
    places = ranks.call("whereabouts")
    assert [place["RANK"] for place in places] == ["0", "1", "2"]
    assert [place["TESTBED_NODE"] for place in places] == ["0", "0", "2"]
    assert [place["pid"] for place in places] == ranks.pids
    assert {place["WORLD_SIZE"] for place in places} == {"3"}
    assert {(place["GLOO_SOCKET_IFNAME"], place["OMP_NUM_THREADS"], place["OWN"]) for place in places} == {
        ("eth0", "1", "mine")
    }
    assert len({place["JANUS_RENDEZVOUS"] for place in places}) == 1
    first, second, third = (place["namespace"] for place in places)
    assert first == second != third
    assert os.readlink("/proc/self/ns/net") not in (first, third)
    assert ranks.call("whereabouts") == places  # the same processes answer every call


def test_ranks_of_another_call_share_the_import_and_not_the_store(bed, roles, ranks):
    places = ranks.call("whereabouts")
    with bed.ranks([1], "roles", path=[roles]) as others:
        (other,) = others.call("whereabouts")
    assert other["parent"] == places[0]["parent"]
    assert other["JANUS_RENDEZVOUS"] != places[0]["JANUS_RENDEZVOUS"]


def test_an_exception_comes_back_with_its_traceback(ranks):
    with pytest.raises(TestbedError, match=r"(?s)fail failed on rank 1; .*in fail.*ValueError: wrong on purpose"):
        ranks.call("fail", rank=1)
    assert ranks.call("fail", rank=-1) == ["fine"] * 3  # they live on


def test_a_deadline_kills_what_is_left_and_says_where_it_was(ranks):
    started = time.monotonic()
    with pytest.raises(TestbedError, match=r"(?s)sleep failed on rank 2; .*no answer in time.*roles\.py.* in sleep"):
        ranks.call("sleep", rank=2, deadline_s=1.0)
    assert time.monotonic() - started < 5.0
    assert state_of(ranks.pids[2]) in ("gone", "Z")
    with pytest.raises(TestbedError, match="rank 2 has ended, start new ranks"):
        ranks.call("fail", rank=-1)


@pytest.mark.parametrize(("how", "number"), [("leave", None), ("kill", signal.SIGKILL)])
def test_the_end_of_a_rank_is_told_at_once(ranks, how, number):
    started = time.monotonic()
    ranks.start("leave" if how == "leave" else "sleep", rank=1)
    if how == "kill":
        ranks.kill(1)
    outcomes = ranks.finish()
    assert time.monotonic() - started < 5.0
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, False]
    assert outcomes[1].signal == number
    assert ("exit code 7" if how == "leave" else "SIGKILL") in outcomes[1].error


def test_a_stopped_rank_is_done_when_all_others_are(ranks):
    ranks.start("sleep", rank=0, deadline_s=60.0)
    ranks.kill(0, signal.SIGSTOP)
    started = time.monotonic()
    assert "stopped by a signal" in ranks.finish()[0].error
    assert time.monotonic() - started < 5.0


def test_gloo_talks_through_the_ports(bed, roles):
    before = bed.port_bytes()
    with bed.ranks([0, 1], "roles_gloo", path=[roles]) as ranks:
        ranks.call("meet")
        assert ranks.call("send", size=SIZE) == [0, 0]
        assert ranks.call("send", size=SIZE) == [0, 0]  # over the same connection
    assert 2 * SIZE < bed.port_bytes()[0][0] - before[0][0] < 2.1 * SIZE


def test_mistakes_are_named(bed, roles):
    with pytest.raises(TestbedError, match=r"nodes must be 1\.\.200, got 0"):
        Testbed(nodes=0, rate_mbit=1)
    with pytest.raises(TestbedError, match=r"rate_mbit must be 1\.\.100000, got 0"):
        bed.set_rate(0)
    with pytest.raises(TestbedError, match=r"node_of_rank must name nodes 0\.\.2, got 3"):
        bed.ranks([0, 3], "roles", path=[roles])
    with pytest.raises(TestbedError, match="No module named 'absent_module'"):
        bed.ranks([0], "absent_module")


# --- what is left behind: nothing ---


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def held_namespaces() -> set[str]:
    """Network namespaces that a process is in, holds open, or that are mounted."""
    found = set()
    for pattern in ("[0-9]*/ns/net", "[0-9]*/fd/*"):
        for link in Path("/proc").glob(pattern):
            try:
                found.add(os.readlink(link))
            except OSError:
                continue
    mounted = [line.split()[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {name for name in found.union(mounted) if name.startswith("net:")}


def host_links() -> set[str]:
    return {line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]}


@pytest.mark.parametrize("ending", ["exit", "exception", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_behind(roles, ending):
    links = host_links()
    env = {**os.environ, "PYTHONPATH": BENCHMARKS}
    words = [sys.executable, "-c", OWNER, ending, roles]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as owner:
        assert owner.stdout
        told = json.loads(owner.stdout.readline())
        namespaces = {told["switch"], *(rank["namespace"] for rank in told["ranks"])}
        pids = {told["ranks"][0]["parent"], *(rank["pid"] for rank in told["ranks"])}
        if ending.startswith("SIG"):
            assert len(namespaces & held_namespaces()) == 3
            assert host_links() == links  # nor is anything there while it lives
            owner.send_signal(signal.Signals[ending])
        owner.wait(20)
    store = Path(told["ranks"][0]["JANUS_RENDEZVOUS"].removeprefix("file://"))

    def left() -> dict:
        alive = {pid: state for pid in pids if (state := state_of(pid)) not in ("gone", "Z")}
        return {"processes": alive, "namespaces": namespaces & held_namespaces(), "folder": store.parent.exists()}

    nothing = {"processes": {}, "namespaces": set(), "folder": False}
    give_up = time.monotonic() + 10
    while left() != nothing and time.monotonic() < give_up:
        time.sleep(0.05)
    assert left() == nothing
    assert host_links() == links


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("os.geteuid", lambda: 1000, "need root"),
        ("sys.platform", "darwin", "need Linux, this is darwin"),
        ("shutil.which", lambda tool: None if tool == "tc" else tool, r"no command tc \(package iproute2\)"),
        ("testbed.SYSCTLS", {"net/ipv4/tcp_wmem": "x"}, "not permitted here: the kernel refused net/ipv4/tcp_wmem = x"),
    ],
)
def test_the_reason_to_skip_is_told(monkeypatch, name, value, reason):
    monkeypatch.setattr(name, value)
    with pytest.raises(AssertionError, match=reason):
        assert testbed.unavailable.__wrapped__() == ""
