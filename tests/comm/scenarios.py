"""What one rank does in each layer-2 test; every rank computes its own expectation with the plain reference."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import torch
from alltoall_ranks import alltoall_equal, alltoall_lost, alltoall_refused  # noqa: F401 - run by name
from comm_batches import DTYPES, Batch, C, H, K, one_layer

import janus
from janus.comm import Exchange, Timeouts, rendezvous, session
from janus.comm.layout import REGIMES
from janus.types import Topology

torch.set_num_threads(1)


def exact(topology, plans):
    """Both gates x regimes x dtypes, several batches each, with and without `begin`: all results bit for bit."""
    topology = Topology(**topology)
    loads = [tuple(counts) for counts in plans]
    chosen, sent = [], {}
    for gate in ("experts", "attention"):
        for regime, dtype in [(r, d) for r in REGIMES for d in DTYPES] + [("auto", DTYPES[0])]:
            with Exchange(
                topology, hidden_size=H, dtype=dtype, max_tokens=40, gate=gate, top_k=K, slots_per_instance=C,
                regime=regime, timeout_s=20,
            ) as ex:  # fmt: skip
                for counts in loads:  # before any begin: each dispatch opens with its counts
                    one_layer(ex, Batch(topology, counts, 3, dtype, gate, mixed=False), 3)
                for counts in loads:
                    step = ex.begin(counts[topology.instance(ex.rank)] if ex.role == "attention" else None)
                    assert (step.counts, step.total, step.closed) == (counts, sum(counts), False)
                    ex.reset_traffic()
                    for layer in range(2 if step.total else 0):
                        one_layer(ex, Batch(topology, counts, layer, dtype, gate, mixed=layer == 1), layer)
                    key = f"{gate} {step.regime} {step.depth} {dtype} {counts}"
                    sent[key] = {link: [t.messages, t.bytes] for link, t in ex.traffic().items()}
                    chosen.append(ex.regime)
                if ex.role == "expert":
                    assert ex.begin().closed
    return {"chosen": chosen, "sent": sent}


def failure(topology, victim, where, sig, regime, step_s=2.0, port=None):
    """`victim` dies (or stops) at one point of the second step; the others say whom they lost, and when."""
    if port:  # as under torchrun: rank 0 hosts the store
        os.environ |= {"JANUS_RENDEZVOUS": "", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    topology, rank = Topology(**topology), int(os.environ["RANK"])

    def here(point):
        if rank == victim and point == where:
            if sig == "busy":  # its threads go on, its caller does not
                time.sleep(step_s + 1.5)
                return
            if sig == "SIGSTOP":
                (Path(os.environ["SCENARIO_FOLDER"]) / f"stopped{rank}").touch()
            os.kill(os.getpid(), getattr(signal, sig))
            time.sleep(1000)

    timeouts = Timeouts(rendezvous_s=20, step_s=step_s, idle_s=600, close_s=2)
    rendezvous(topology)
    before = _sockets()
    ex = Exchange(topology, hidden_size=H, dtype="float32", max_tokens=4, regime=regime, timeouts=timeouts)
    ex.share("up", 1)
    started = time.monotonic()
    try:
        for step in range(3):
            dying = step == 1
            if dying:
                here("idle")
                if where == "idle" and ex.role == "attention":
                    time.sleep(0.8)  # nobody begins: the expert ranks must notice by themselves
            ex.begin(2 if ex.role == "attention" else None)
            for layer in range(2):
                point = here if dying and layer == 1 else (lambda _: None)
                point("before")
                if ex.role == "attention":
                    handle = ex.dispatch(torch.ones(2, H), layer=layer)
                    point("between")
                    ex.combine(handle)
                else:
                    x, handle = ex.receive()
                    point("between")
                    ex.reply(x, handle)
    except janus.PeerLost as error:
        seconds = time.monotonic() - started
        said = {"peer": error.peer, "rank": error.rank, "phase": error.phase, "layer": error.layer, "seconds": seconds}
    else:
        raise AssertionError("nobody was lost")
    said["again"] = _code(lambda: ex.begin(2 if ex.role == "attention" else None))
    closing = time.monotonic()
    ex.close()
    said["closing"] = time.monotonic() - closing
    said["threads"] = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    return said | {"sockets": _left_open(before)}  # the exchange itself is still there


def goodbye(topology, victim, sig):
    """All close after one step; `victim`, an attention rank, says no good-bye, or (midway) not to the last rank."""
    topology, rank = Topology(**topology), int(os.environ["RANK"])
    timeouts = Timeouts(rendezvous_s=20, step_s=20, idle_s=600, close_s=1.5)
    ex = Exchange(topology, hidden_size=H, dtype="float32", max_tokens=4, timeouts=timeouts)
    ex.begin(0 if ex.role == "attention" else None)
    ex.share("begun", 1)  # so that no message of the victim is under way

    def die():
        if sig != "SIGKILL":
            (Path(os.environ["SCENARIO_FOLDER"]) / f"stopped{rank}").touch()
        os.kill(os.getpid(), signal.SIGKILL if sig == "SIGKILL" else signal.SIGSTOP)

    if rank == victim:
        if sig == "midway":
            wire = ex._session.wire
            send, settle = wire.send, wire.settle

            def send_or_die(peer, rows, tag, at):
                if peer == max(topology.expert_ranks):
                    settle(at)
                    die()
                send(peer, rows, tag, at)

            wire.send = send_or_die
            ex.close()
        die()
    started = time.monotonic()
    said = "left" if ex.role == "attention" else _code(lambda: ex.begin().closed or 1 / 0)
    ex.close()
    return [said, time.monotonic() - started]


def sharing(how):
    """Rank 2 is late (later than rendezvous_s), dies, or closes while the others wait for it to share."""
    rank = int(os.environ["RANK"])
    timeouts = Timeouts(rendezvous_s=1.5, step_s=5, idle_s=600, close_s=2)
    ex = Exchange(Topology.parse("1A2E"), hidden_size=H, dtype="float32", max_tokens=4, timeouts=timeouts)
    if rank == 2:
        time.sleep(0.5 if how != "late" else 2.5)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "closes":
            ex.close()
            return None
    started = time.monotonic()
    said = _code(lambda: ex.share("ready", rank, timeout_s=60))
    ex.close()
    return [said, time.monotonic() - started]


def _code(call):
    """The stable code of the error that `call` raises, or "PeerLost <peer>"."""
    try:
        call()
    except janus.JanusError as error:
        return error.code
    except janus.PeerLost as error:
        return f"PeerLost {error.peer}"
    return "no error"


def contract(per_rank):
    """Each rank is told something else."""
    rank = int(os.environ["RANK"])
    args = {
        "topology": {"attention": [[0]], "experts": [[1], [2]]}, "hidden_size": H, "dtype": "float32", "max_tokens": 4,
        "gate": "attention", "top_k": K, "slots_per_instance": C, "regime": "direct",
        "timeouts": Timeouts(rendezvous_s=4),
    }  # fmt: skip
    args |= per_rank[rank]
    session.__version__ = args.pop("version", session.__version__)
    topology = Topology(**args.pop("topology"))
    try:
        Exchange(topology, **args).close()
    except janus.JanusError as error:
        return [error.code, error.message]
    return ["no error", ""]


def refusals(gate):
    """Every bad call is refused with its code before a byte is sent: the good step after each of them works."""
    topology = Topology(attention=((0,),), experts=((1,),))
    ex = Exchange(
        topology, hidden_size=H, dtype="float32", max_tokens=4, gate=gate, top_k=K, slots_per_instance=C, timeout_s=10
    )
    codes = {}
    x, ids, weights = torch.ones(2, H), torch.zeros(2, K, dtype=torch.int64), torch.ones(2, K)
    good = {"physical_ids": ids, "weights": weights} if gate == "attention" else {}

    def refused(name, call):
        before = ex.traffic()
        codes[name] = _code(call)
        assert ex.traffic() == before, f"{name} sent bytes"

    if ex.role == "attention":
        refused("begin negative", lambda: ex.begin(-1))
        refused("begin too many", lambda: ex.begin(5))
        refused("begin nothing", ex.begin)
        refused("receive", ex.receive)
        refused("gather early", lambda: ex.gather_topk(ids))
        refused("too many rows", lambda: ex.dispatch(torch.ones(5, H), layer=0, **good))
        ex.begin(2)
        refused("wrong count", lambda: ex.dispatch(x[:1], layer=0, **{k: v[:1] for k, v in good.items()}))
        refused("wrong layer", lambda: ex.dispatch(x, layer=1, **good))
        refused("negative layer", lambda: ex.dispatch(x, layer=-1, **good))
        refused("wrong width", lambda: ex.dispatch(torch.ones(2, H + 1), layer=0, **good))
        refused("wrong dtype", lambda: ex.dispatch(x.double(), layer=0, **good))
        refused("wrong device", lambda: ex.dispatch(x.to("meta"), layer=0, **good))
        refused("not a tensor", lambda: ex.dispatch([1.0], layer=0, **good))
        if gate == "attention":
            refused("no ids", lambda: ex.dispatch(x, layer=0))
            refused("id too large", lambda: ex.dispatch(x, layer=0, physical_ids=ids + C, weights=weights))
            refused("id below -1", lambda: ex.dispatch(x, layer=0, physical_ids=ids - 2, weights=weights))
            refused("float ids", lambda: ex.dispatch(x, layer=0, physical_ids=weights, weights=weights))
            refused("weights dtype", lambda: ex.dispatch(x, layer=0, physical_ids=ids, weights=weights.double()))
            refused("weights shape", lambda: ex.dispatch(x, layer=0, physical_ids=ids, weights=weights[:1]))
        else:
            refused("ids given", lambda: ex.dispatch(x, layer=0, physical_ids=ids, weights=weights))
        handle = ex.dispatch(x, layer=0, **good)
        refused("dispatch twice", lambda: ex.dispatch(x, layer=1, **good))
        refused("begin in a layer", lambda: ex.begin(2))
        refused("foreign handle", lambda: ex.combine(object()))
        assert torch.equal(ex.combine(handle), x)
        refused("combine twice", lambda: ex.combine(handle))
        ex.begin(0)
        refused("dispatch in an empty step", lambda: ex.dispatch(x[:0], layer=0))
    else:
        refused("begin with a count", lambda: ex.begin(2))
        refused("dispatch", lambda: ex.dispatch(x, layer=0))
        refused("gather_topk", lambda: ex.gather_topk(ids))
        ex.begin()
        x_all, handle = ex.receive()
        refused("receive twice", ex.receive)
        refused("wrong rows", lambda: ex.reply(x_all[:1], handle))
        refused("wrong type", lambda: ex.reply(x_all.double(), handle))
        ex.reply(x_all, handle)
        refused("reply twice", lambda: ex.reply(x_all, handle))
        assert ex.begin().total == 0
        refused("receive in an empty step", ex.receive)
        assert ex.begin().closed
        refused("receive when closed", ex.receive)
    codes["share no json"] = _code(lambda: ex.share("s", object()))
    codes["share outside"] = _code(lambda: ex.share("s", 1, ranks=(ex.rank, 9)))
    ex.close()
    codes["begin after close"] = _code(lambda: ex.begin(0 if ex.role == "attention" else None))
    codes["share after close"] = _code(lambda: ex.share("s", 1))
    return codes


def small_services():
    """share, gather_topk, an idle rank, several exchanges one after another; nothing is left open."""
    topology = Topology(attention=((0, 1), (2,)), experts=((3,),))
    found = {}
    counts = (2, 0, 3)
    rendezvous(topology)
    before = _sockets()
    for turn in range(3):
        ex = Exchange(topology, hidden_size=H, dtype="float32", max_tokens=4, top_k=K, timeout_s=20)
        if ex.role == "idle":
            found["idle"] = [_code(ex.begin), _code(lambda: ex.share("a", 1)), ex.traffic()]  # noqa: B023
            ex.close()
            continue
        shared = ex.share("a", {"rank": ex.rank, "turn": turn})
        assert shared == {r: {"rank": r, "turn": turn} for r in range(4)}
        assert ex.share("a", ex.rank) == {r: r for r in range(4)}
        if ex.rank in (1, 3):
            assert ex.share("pair", "x" * ex.rank, ranks=(1, 3)) == {1: "x", 3: "xxx"}
        if ex.role == "attention":
            mine = topology.instance(ex.rank)
            ids = [torch.arange(b * K).view(b, K) + 100 * a for a, b in enumerate(counts)]
            ex.begin(counts[mine])
            ex.reset_traffic()
            everything, first = ex.gather_topk(ids[mine])
            assert torch.equal(everything, torch.cat(ids))
            assert first == sum(counts[:mine])
            found["traffic"] = {link: [t.messages, t.bytes] for link, t in ex.traffic().items()}
            ex.begin(0)
        else:
            assert ex.begin().counts == counts
            assert ex.begin().total == 0
            assert ex.begin().closed
        ex.close()
        ex.close()
        found[f"left {turn}"] = [_left_open(before), threading.active_count() - 1]
    return found


def _left_open(before):
    """Sockets beyond those of `before`; gloo's own loop closes them, a moment later."""
    deadline = time.monotonic() + 5
    while _sockets() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return max(_sockets() - before, 0)


def _sockets():
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:  # the folder listing itself
            continue
    return count


def leaving(how):
    """One attention rank leaves, the other goes on."""
    topology = Topology(attention=((0,), (1,)), experts=((2,),))
    timeouts = Timeouts(step_s=5, close_s=1)
    ex = Exchange(topology, hidden_size=H, dtype="float32", max_tokens=4, timeouts=timeouts)
    if how == "unbegun":
        started = time.monotonic()
        said = "closed" if ex.role == "attention" else _code(ex.receive)
        ex.close()
        return [said, time.monotonic() - started]
    if how == "mixed":  # rank 0 begins, rank 1 dispatches without having begun
        calls = [lambda: ex.begin(1), lambda: ex.dispatch(torch.ones(1, H), layer=0), ex.begin]
        return [_code(calls[ex.rank]), 0.0]
    started = time.monotonic()
    if ex.rank == 0:
        said = "left"
    elif ex.rank == 1:
        said = _code(lambda: ex.begin(1))
    else:
        said = "closed" if ex.begin().closed else "not closed"
    ex.close()
    return [said, time.monotonic() - started]


def vanishing():
    """An attention rank ends without close(): an exception in the user's program is not a good-bye."""
    topology = Topology(attention=((0,),), experts=((1,),))
    ex = Exchange(topology, hidden_size=H, dtype="float32", max_tokens=4)
    if ex.role == "attention":
        os._exit(0)
    return _code(ex.begin)


def late():
    """A rank that never comes up is named, in time."""
    if os.environ["RANK"] == "1":
        return None
    started = time.monotonic()
    topology = Topology(attention=((0,),), experts=((1,),))
    said = _code(
        lambda: Exchange(topology, hidden_size=H, dtype="float32", max_tokens=4, timeouts=Timeouts(rendezvous_s=1))
    )
    return [said, time.monotonic() - started]


def world():
    """A topology larger than the world."""
    return _code(lambda: Exchange(Topology.parse("1A2E"), hidden_size=H, dtype="float32", max_tokens=4))
