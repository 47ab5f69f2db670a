"""Layer 2: a rank is killed or stopped in every phase; every other rank names it, in time, and closes cleanly."""

from __future__ import annotations

import signal
import socket

import pytest

TOPOLOGY = {"attention": [[0, 1]], "experts": [[2, 3]]}
# killed: the connection closes and nobody waits for a deadline, so "at once" lies well below the deadline and well
# above the 0.3 s of grace plus the 0.8 s that the idle case sleeps on purpose, on a busy machine too
KILL_STEP_S, AT_ONCE_S = 5.0, 3.5
STOP_STEP_S = 2.0
# the bar is the deadline + 1 s; seconds are counted from the start of the scenario, a few steps before the signal
STOPPED_BY_S = STOP_STEP_S + 1.0
PAUSE_S = 0.8  # of the attention side in the idle case

KILLS = [
    (victim, where, regime)
    for where in ("idle", "before", "between")
    for victim, regime in ((0, "direct"), (1, "gather"), (2, "gather"), (3, "direct"))
]
STOPS = [
    (1, "between", "gather"),
    (2, "between", "direct"),
    (2, "between", "gather"),
    (3, "before", "gather"),
    (0, "idle", "direct"),  # an idle server is no loss: the clock starts when the other attention rank begins
]


def _survivors(nursery, victim, where, sig, regime, step_s, threads=(), **more):
    args = {"topology": TOPOLOGY, "victim": victim, "where": where, "sig": sig, "regime": regime, "step_s": step_s}
    outcomes = nursery.run("failure", 4, deadline_s=25, **args, **more)
    assert outcomes[victim].signal == signal.SIGKILL, "the victim died as planned, or was still stopped at the end"
    others = [outcome for outcome in outcomes if outcome.rank != victim]
    for outcome in others:
        assert outcome.exit_code == 0, outcome.error
        assert outcome.value["rank"] == outcome.rank
        assert outcome.value["again"] == f"PeerLost {outcome.value['peer']}", "the loss stays"
        assert outcome.value["closing"] < 1.0
        assert outcome.value["sockets"] == 0
        assert set(outcome.value["threads"]) <= set(threads)
    return [outcome.value for outcome in others]


@pytest.mark.parametrize(("victim", "where", "regime"), KILLS)
def test_every_survivor_names_a_killed_rank_at_once(nursery, victim, where, regime):
    values = _survivors(nursery, victim, where, "SIGKILL", regime, KILL_STEP_S)
    assert {value["peer"] for value in values} == {victim}
    assert max(value["seconds"] for value in values) < AT_ONCE_S
    # an expert that dies right after its reply may take the reply along: then a combine of that step ends
    phases = {"idle": {"begin", "combine"}}.get(where, {"begin", "dispatch", "receive", "reply", "combine"})
    assert {value["phase"] for value in values} <= phases
    assert {value["layer"] for value in values} <= {0, 1, -1}


@pytest.mark.parametrize(("victim", "where", "regime"), STOPS)
def test_every_survivor_names_a_stopped_rank_after_the_deadline(nursery, victim, where, regime):
    values = _survivors(nursery, victim, where, "SIGSTOP", regime, STOP_STEP_S)
    assert {value["peer"] for value in values} == {victim}
    assert max(value["seconds"] for value in values) < STOPPED_BY_S + (PAUSE_S if where == "idle" else 0)
    assert min(value["seconds"] for value in values) > STOP_STEP_S / 2


@pytest.mark.parametrize(("victim", "where"), [(0, "before"), (3, "between")])
def test_a_rank_that_is_too_busy_is_named_though_its_threads_speak(nursery, victim, where):
    args = {"topology": TOPOLOGY, "victim": victim, "where": where, "sig": "busy", "regime": "gather", "step_s": 1.5}
    outcomes = nursery.run("failure", 4, deadline_s=25, **args)
    values = [outcome.value for outcome in outcomes if outcome.rank != victim]
    assert {value["peer"] for value in values} == {victim}
    assert max(value["seconds"] for value in values) < 1.5 + 1.0


@pytest.mark.parametrize("sig", ["SIGKILL", "SIGSTOP"])
def test_a_rank_lost_while_all_close_is_named_by_the_experts_and_delays_nobody(nursery, sig):
    topology = {"attention": [[0, 1], [2]], "experts": [[3], [4]]}
    outcomes = nursery.run("goodbye", 5, deadline_s=25, topology=topology, victim=1, sig=sig)
    said = {outcome.rank: outcome.value for outcome in outcomes if outcome.rank != 1}
    assert {rank: words for rank, (words, _) in said.items()} == {
        0: "left", 2: "left", 3: "PeerLost 1", 4: "PeerLost 1",
    }  # fmt: skip
    assert max(seconds for _, seconds in said.values()) < 1.5 + 1.0


def test_a_good_bye_that_one_expert_never_hears_ends_it_all_the_same(nursery):
    """All others have left in good order, so the exchange is over, though idle_s is 600 s."""
    topology = {"attention": [[0, 1], [2]], "experts": [[3], [4]]}
    outcomes = nursery.run("goodbye", 5, deadline_s=25, topology=topology, victim=1, sig="midway")
    said = {outcome.rank: outcome.value for outcome in outcomes if outcome.rank != 1}
    assert {rank: words for rank, (words, _) in said.items()} == {0: "left", 2: "left", 3: "no error", 4: "no error"}
    assert max(seconds for _, seconds in said.values()) < 1.5 + 1.0


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_with_a_tcp_store_the_killed_rank_is_named_too(nursery):
    values = _survivors(nursery, 3, "between", "SIGKILL", "gather", KILL_STEP_S, port=_free_port())
    assert {value["peer"] for value in values} == {3}


@pytest.mark.parametrize("sig", ["SIGKILL", "SIGSTOP"])
def test_the_host_of_the_store_takes_the_store_along(nursery, sig):
    """Then nobody can look up suspicions: a survivor names the rank that it lost itself, still in time."""
    step_s = STOP_STEP_S if sig == "SIGSTOP" else KILL_STEP_S
    # calls to a store whose host is stopped cannot be cut short: their daemon threads stay, the callers do not
    stuck = ("janus-store",) if sig == "SIGSTOP" else ()
    values = _survivors(nursery, 0, "between", sig, "direct", step_s, stuck, port=_free_port())
    # 0.3 s is the bound of the one store call that finds the store gone
    assert max(value["seconds"] for value in values) < STOPPED_BY_S


def test_sharing_may_take_longer_than_the_rendezvous_when_asked(nursery):
    assert [outcome.value[0] for outcome in nursery.run("sharing", 3, deadline_s=25, how="late")] == ["no error"] * 3


@pytest.mark.parametrize("how", ["dies", "closes"])
def test_who_is_gone_is_not_waited_for(nursery, how):
    outcomes = nursery.run("sharing", 3, deadline_s=25, how=how)
    for outcome in outcomes[:2]:
        said, seconds = outcome.value
        assert said == "PeerLost 2"
        assert seconds < 20  # of the 60 s asked for
