"""What one rank does in the tests of the ways to call an exchange: asynchronous, fixed capacity, own buffers, batches."""

from __future__ import annotations

import os
import signal
import threading
import time

import torch
from comm_batches import DTYPES, Batch, C, H, K, one_layer, same_bits

import janus
from janus.comm import Exchange, Timeouts
from janus.comm import carrier as carriers
from janus.comm.layout import REGIMES
from janus.types import Topology


def _exchange(topology, gate="experts", dtype="float32", **more):
    more = {"max_tokens": 40, "timeout_s": 20, **more}
    return Exchange(topology, hidden_size=H, dtype=dtype, gate=gate, top_k=K, slots_per_instance=C, **more)


def _begin(ex, counts):
    return ex.begin(counts[ex.topology.instance(ex.rank)] if ex.role == "attention" else None)


def asynchronous(topology, counts, gate):
    """The halves one by one, waited for out of turn; what is under way refuses other calls."""
    topology, counts = Topology(**topology), tuple(counts)
    said = {}
    with _exchange(topology, gate, "bfloat16", regime="relay") as ex:
        at = topology.instance(ex.rank)
        _begin(ex, counts)
        for layer in range(3):
            batch = Batch(topology, counts, layer, torch.bfloat16, gate, mixed=False)
            if ex.role == "attention":
                chosen = {"physical_ids": batch.ids[at], "weights": batch.weights[at]} if batch.choices else {}
                pending = ex.dispatch_async(batch.x[at], layer=layer, **chosen)
                if layer == 0:
                    said["begin"] = _code(lambda: ex.begin(0))
                summed = ex.combine_async(pending.wait())
                assert same_bits(summed.wait(), batch.home(at))
                assert summed.done
            else:
                pending = ex.receive_async()
                if layer == 0:
                    said["receive"] = _code(ex.receive)
                x_all, handle = pending.wait()
                assert same_bits(x_all, batch.got[at][0])
                ex.reply_async(batch.y[at], handle)  # the next receive does not wait for it
        if ex.role == "expert":
            assert ex.begin().closed
    said["threads"] = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    return said


def fixed(topology, plans, capacity, begun, gate):
    """A fixed capacity or buckets: padded rows are zeros and come from nobody, results are those of the tokens."""
    topology = Topology(**topology)
    sizes = []
    for regime in (*REGIMES, "auto"):
        with _exchange(topology, gate, regime=regime, capacity=capacity) as ex:
            for layer, counts in enumerate(map(tuple, plans)):
                step = _begin(ex, counts) if begun else None
                at, batch = topology.instance(ex.rank), Batch(topology, counts, layer, torch.float32, gate, mixed=False)
                layer = 0 if begun else layer
                if ex.role == "attention":
                    chosen = {"physical_ids": batch.ids[at], "weights": batch.weights[at]} if batch.choices else {}
                    handle = ex.dispatch(batch.x[at], layer=layer, **chosen)
                    assert same_bits(ex.combine(handle), batch.home(at))
                    continue
                x_all, handle = ex.receive()
                y = batch.y[at]
                if gate == "experts":
                    each = step.capacity if step else capacity
                    mask = torch.cat([torch.arange(each) < n for n in counts])
                    assert same_bits(x_all[mask], batch.got[at][0])
                    assert not x_all[~mask].any()
                    if begun:
                        assert torch.equal(handle.valid, mask)
                        assert handle.counts == counts
                    y = torch.full_like(x_all, float("nan"))  # what a padded row becomes does not matter
                    y[mask] = batch.y[at]
                    sizes.append(len(x_all))
                ex.reply(y, handle)
            if ex.role == "expert":
                said = _code(ex.receive) if not begun else "comm.closed" if ex.begin().closed else "open"
                assert said == "comm.closed"
            closing = time.monotonic()
            ex.close()
            assert time.monotonic() - closing < 2, "nobody waits for a good-bye that is not said"
    return sizes


def own_buffers(topology, counts):
    """`out=` on both sides; memory of the exchange is used again and stays as large as was said."""
    topology, counts = Topology(**topology), tuple(counts)
    found = {}
    for gate in ("experts", "attention"):
        for regime in REGIMES:
            with _exchange(topology, gate, regime=regime) as ex:
                promised, at = ex.buffer_bytes(), topology.instance(ex.rank)
                _begin(ex, counts)
                seen = set()
                for layer in range(4):
                    batch = Batch(topology, counts, layer, torch.float32, gate, mixed=False)
                    if ex.role == "attention":
                        chosen = {"physical_ids": batch.ids[at], "weights": batch.weights[at]} if batch.choices else {}
                        out = torch.full((counts[at], H), float("nan"))
                        assert ex.combine(ex.dispatch(batch.x[at], layer=layer, **chosen), out=out) is out
                        assert same_bits(out, batch.home(at))
                        continue
                    out = torch.full((sum(counts) + 3, H), float("nan")) if gate == "experts" and layer > 1 else None
                    x_all, handle = ex.receive(out=out)
                    assert same_bits(x_all, batch.got[at][0])
                    if out is None:
                        seen.add(x_all.data_ptr())
                    else:
                        assert x_all.data_ptr() == out.data_ptr()
                    ex.reply(batch.y[at], handle)
                arenas = ex._transport._arenas
                assert sum(arena.size for arena in arenas) == promised
                assert all(arena.used <= arena.size for arena in arenas)
                assert gate == "attention" or len(seen) <= 1, "the same memory for every layer"
                if ex.role == "expert":
                    assert ex.begin().closed
                    found[f"{gate} {regime}"] = [_code(lambda: ex.receive(out=torch.ones(1, H)))]
    return found


def refused_buffers():
    """Buffers that do not fit are refused before anything is received."""
    topology = Topology.parse("1A1E")
    codes = {}
    with _exchange(topology) as ex, Exchange(topology, hidden_size=H, dtype="float32", max_tokens=4) as bare:
        _begin(ex, (3,))
        _begin(bare, (3,))
        if ex.role == "attention":
            handle = ex.dispatch(torch.ones(3, H), layer=0)
            codes["rows"] = _code(lambda: ex.combine(handle, out=torch.ones(2, H)))
            codes["grad"] = _code(lambda: ex.combine(handle, out=torch.ones(3, H, requires_grad=True)))
            codes["no K"] = _code(lambda: bare.gather_topk(torch.zeros(3, K, dtype=torch.int64)))
            codes["list"] = _code(lambda: ex.combine(handle, out=[1]))
            ex.combine(handle)
        else:
            codes["rows"] = _code(lambda: ex.receive(out=torch.ones(2, H)))
            codes["dtype"] = _code(lambda: ex.receive(out=torch.ones(3, H).double()))
            codes["strided"] = _code(lambda: ex.receive(out=torch.ones(8, H)[::2]))
            x, handle = ex.receive()
            ex.reply(x, handle)
            assert bare.begin().closed
            assert ex.begin().closed
    return codes


def batches_in_stream_order(topology, counts, gate):
    """The seam for devices, batches and lengths told first, over gloo: the same results, no watch fires."""
    carriers.Carrier.wire = _over_gloo
    carriers.Carrier.lane = lambda self, _: carriers.StreamLane(self.device)
    topology, counts = Topology(**topology), tuple(counts)
    for regime in REGIMES:
        for dtype in DTYPES[:2]:
            with _exchange(topology, gate, dtype, regime=regime) as ex:
                assert type(ex._session.payload).__name__ == "StreamWire"
                step = _begin(ex, counts)
                for layer in range(3 if step.total else 0):
                    one_layer(ex, Batch(topology, counts, layer, dtype, gate, mixed=False), layer)
                ex.fence()
                time.sleep(0.05)  # the watchdog has a look
                if ex.role == "expert":
                    assert ex.begin().closed
    return [t.name for t in threading.enumerate() if t is not threading.main_thread()]


def _over_gloo(self, control, watch, links, opening):
    group = carriers.dist.ProcessGroupGloo(
        carriers.dist.PrefixStore(f"{opening.prefix}/batches", opening.store), opening.number, opening.size,
        carriers.timedelta(seconds=20),
    )  # fmt: skip
    return carriers.stream_wire(group, links, watch, self)


def calibrated(topology, most):
    """All ranks measure together, get the same model, and go on with it."""
    topology = Topology(**topology)
    with _exchange(topology, max_tokens=most) as ex:
        started = time.monotonic()
        model = ex.calibrate(seconds=1.0)
        seconds = time.monotonic() - started
        assert ex.cost is model
        _begin(ex, (2,) * topology.n_attention)
        one_layer(ex, Batch(topology, (2,) * topology.n_attention, 0, torch.float32, "experts", mixed=False), 0)
        table = str(ex.explain())
        refused = _code(lambda: ex.calibrate(seconds=0))
        if ex.role == "expert":
            assert ex.begin().closed
    return {"model": model.to_dict(), "seconds": seconds, "table": table, "refused": refused, "early": ""}


def lost_meanwhile():
    """The expert dies while the attention rank has two calls under way: both are told, and closing is bounded."""
    topology = Topology.parse("1A1E")
    ex = _exchange(topology, timeouts=Timeouts(rendezvous_s=20, step_s=3, close_s=1), timeout_s=None)
    _begin(ex, (3,))
    if ex.role == "expert":
        x, handle = ex.receive()
        ex.reply(x, handle)
        os.kill(os.getpid(), signal.SIGKILL)
    ex.combine(ex.dispatch_async(torch.ones(3, H), layer=0).wait())
    started, told = time.monotonic(), []
    try:
        summed = ex.combine_async(ex.dispatch_async(torch.ones(3, H), layer=1).wait())
        summed.wait()
    except janus.PeerLost as error:
        told = [error.peer, error.phase]
    seconds, closing = time.monotonic() - started, time.monotonic()
    ex.close()
    return {
        "told": told, "seconds": seconds, "closing": time.monotonic() - closing,
        "threads": [t.name for t in threading.enumerate() if t is not threading.main_thread()],
    }  # fmt: skip


def _code(call):
    try:
        call()
    except janus.JanusError as error:
        return error.code
    return "no error"


__all__ = [
    "asynchronous", "batches_in_stream_order", "calibrated", "fixed", "lost_meanwhile", "own_buffers", "refused_buffers",
]  # fmt: skip
