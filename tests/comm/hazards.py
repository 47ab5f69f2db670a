"""What one rank does in the tests of hazards: memory that is still being sent, refusals that must leave no trace."""

from __future__ import annotations

import time

import torch
from comm_batches import Batch, C, H, K, one_layer, same_bits
from modes import _begin, _code

from janus.comm import Exchange
from janus.comm.layout import REGIMES
from janus.types import Topology


def _exchange(topology, gate="experts", **more):
    more = {"max_tokens": 40, "timeout_s": 8, "dtype": "float32", **more}
    return Exchange(topology, hidden_size=H, gate=gate, top_k=K, slots_per_instance=C, **more)


def rows_changed_in_place(topology, counts, late):
    """Experts that compute in place, while the rank `late` comes late to `receive`: it gets the rows as they were."""
    topology, counts = Topology(**topology), tuple(counts)
    for regime in REGIMES:
        for own in (False, True):
            with _exchange(topology, regime=regime) as ex:
                _begin(ex, counts)
                batch = Batch(topology, counts, 0, torch.float32, "experts", mixed=False)
                at = topology.instance(ex.rank)
                if ex.role == "attention":
                    assert same_bits(ex.combine(ex.dispatch(batch.x[at], layer=0)), batch.home(at)), regime
                    continue
                time.sleep(0.3 * (ex.rank == late))
                out = torch.empty(sum(counts), H) if own else None
                x_all, handle = ex.receive(out=out)
                assert same_bits(x_all, batch.got[at][0]), regime
                x_all.mul_(0.37 + at)
                ex.reply(x_all, handle)
                assert ex.begin().closed


def nobody_chose_a_late_expert():
    """An expert without rows comes late; the next dispatch, sent meanwhile, must not overwrite its empty message."""
    topology = Topology(((0,),), ((1,), (2,)))
    with _exchange(topology, "attention", regime="direct") as ex:
        _begin(ex, (4,))
        for layer in range(2):
            if ex.role == "attention":
                ids = torch.full((4, K), -1)
                ids[:, 0] = (1 - layer) * C  # instance 1, then instance 0
                chosen = {"physical_ids": ids, "weights": torch.ones(4, K)}
                handle = ex.dispatch_async(torch.full((4, H), layer + 1.0), layer=layer, **chosen).wait()
                summed = ex.combine_async(handle)
                time.sleep(0.2)  # it has its sums by now
                if layer:
                    summed.wait()
                continue
            time.sleep(0.8 * (ex.rank == 1 and not layer))
            x_all, handle = ex.receive()
            mine = ex.rank == 2 - layer
            assert handle.counts == ((4,) if mine else (0,)), (layer, handle.counts)
            assert (x_all == layer + 1.0).all()
            ex.reply(x_all, handle)
        if ex.role == "expert":
            assert ex.begin().closed


def ids_changed_after_gathering():
    """A rank without tokens comes late to `gather_topk`; the ids it gets are those that were given."""
    topology = Topology(((0, 1),), ((2,),))
    with _exchange(topology) as ex:
        _begin(ex, (4, 0))
        if ex.role == "attention":
            ids = torch.arange(4 * K, dtype=torch.int32).view(4, K)
            mine = ids.clone() if ex.rank == 0 else ids[:0]
            time.sleep(0.4 * ex.rank)
            everything, _ = ex.gather_topk(mine)
            assert torch.equal(everything, ids)
            everything.fill_(-7)
            mine.fill_(-7)
            ex.begin(0)
        else:
            ex.begin()
            assert ex.begin().closed


def refused_receive(begun):
    """A refused `receive` has taken nothing: the next one gets the same layer."""
    topology, layers = Topology.parse("1A1E"), []
    with _exchange(topology) as ex:
        if begun:
            _begin(ex, (3,))
        for layer in range(2):
            if ex.role == "attention":
                ex.combine(ex.dispatch(torch.ones(3, H), layer=layer))
                continue
            assert _code(lambda: ex.receive(out=torch.ones(2, H))) == "comm.out"
            x_all, handle = ex.receive()
            layers.append(handle.layer)
            ex.reply(x_all, handle)
    return layers


def calibrated_anyhow(topology, most, capacity, gate, seconds):
    """A calibration with any sizes; what was before it goes on after it, with or without `begin`."""
    topology = Topology(**topology)
    with _exchange(topology, gate, max_tokens=most, capacity=capacity) as ex:
        counts = (capacity if isinstance(capacity, int) else 1,) * topology.n_attention
        batch = Batch(topology, counts, 0, torch.float32, gate, mixed=False)
        one_layer(ex, batch, 0)
        model = ex.calibrate(seconds=seconds[ex.rank])
        one_layer(ex, batch, 1 if isinstance(capacity, int) else 0)
    return model.to_dict()


def calibrated_regime(topology, regime):
    """A calibration of an exchange that always takes one regime, with as many rows as fit."""
    topology = Topology(**topology)
    with _exchange(topology, regime=regime, max_tokens=512) as ex:
        model = ex.calibrate(seconds=1)
        _begin(ex, (512,) * topology.n_attention)
        if ex.role == "expert":
            x_all, handle = ex.receive()
            ex.reply(x_all, handle)
            assert ex.begin().closed
        else:
            ex.combine(ex.dispatch(torch.ones(512, H), layer=0))
    return model.to_dict()


def left_at_once(halves):
    """An expert rank that closes right after its reply; the attention rank comes late for the sums, and gets them."""
    with _exchange(Topology.parse("1A1E")) as ex:
        if ex.role == "attention":
            handle = ex.dispatch(torch.ones(3, H), layer=0)
            time.sleep(0.7)
            assert ex.combine(handle).sum() == 3 * H
            return
        x_all, handle = ex.receive()
        ex.reply_async(x_all, handle) if halves else ex.reply(x_all, handle)


def idle_calls():
    """What an idle rank may call, and what each call says."""
    with _exchange(Topology.parse("1A1E")) as ex:
        if ex.role == "idle":
            calls = {
                "begin": ex.begin, "calibrate": ex.calibrate, "fence": ex.fence, "traffic": ex.traffic, "receive": ex.receive,
                "reset": ex.reset_traffic, "bytes": ex.buffer_bytes, "topk": lambda: ex.gather_topk(torch.ones(1, K).int()),
                "dispatch": lambda: ex.dispatch(torch.ones(1, H), layer=0), "share": lambda: ex.share("a", 1),
                "explained": lambda: str(ex.explain((3,))), "regime": lambda: ex.regime,
                "backend": lambda: ex.backend,
            }  # fmt: skip
            return {name: _code(call) for name, call in calls.items()}
    return {}


def refused_values():
    """Arguments of the wrong kind, one by one, and the code of the refusal."""
    wrong = {
        "cost": 5, "timeouts": 5, "contract": [1], "top_k": "x", "slots_per_instance": -1, "max_ctas": 0, "regime": ["direct"],
        "gate": None, "dtype": None, "capacity": 1.5,
    }  # fmt: skip
    given = {"hidden_size": 4, "dtype": "float32", "max_tokens": 4}
    return {k: _code(lambda k=k, v=v: Exchange(Topology.parse("1A1E"), **{**given, k: v})) for k, v in wrong.items()}
