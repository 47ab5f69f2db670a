"""Slots replaced while the layer serves: every forward has the bits of the old placement or of the new one."""

import copy
import gc
import threading
import time

import numpy as np
import pytest
import tiny
import torch

from janus import JanusError, JanusMoELayer, Placement
from janus.experts.slots import slice_expert

OLD = Placement([[0, 1, 2, 3, 4, 5, 15], [6, 7, 8, 9, 10, 11, 0], [12, 13, 14, 15, 1, 2, 3]], 16)
NEW = Placement([[0, 1, 2, 3, 4, 5, 9], [6, 7, 8, 9, 10, 11, 12], [12, 13, 14, 15, 1, 8, 3]], 16)
MOVED = [9, 12, 8]


def _experts(seed: int = 0):
    model = tiny.build("mixtral", seed=seed)
    model.set_experts_implementation("eager")
    return model.model.layers[0].mlp.experts


EXPERTS, OTHER = _experts(), _experts(1)


def _batch(seed: int = 0, tokens: int = 24):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(16, generator=g)[:4] for _ in range(tokens)])
    return torch.randn(tokens, 64, generator=g), ids, torch.rand(tokens, 4, generator=g)


def _layer(placement=OLD, experts=EXPERTS, **options):
    return JanusMoELayer(experts, placement, **({"staging": 3} | options))


def _run(layer, batch=None):
    with torch.no_grad():
        return layer(*(batch or _batch()))


def _code(call) -> str:
    with pytest.raises(JanusError) as error:
        call()
    return error.value.code


class Gate:
    """A source that stops before each expert until it is let through; `fail` raises at that expert."""

    def __init__(self, experts=EXPERTS, fail=None):
        self.experts, self.fail, self.asked, self.open = experts, fail, [], threading.Semaphore(0)

    def __call__(self, e):
        self.asked.append(e)
        assert self.open.acquire(timeout=30)
        if e == self.fail:
            raise OSError("no space left on device")
        return slice_expert(self.experts, e)

    def let(self, count=100):
        self.open.release(count)


@pytest.mark.parametrize("balance", ["exact", "round_robin"])
def test_the_old_bits_until_the_switch_and_those_of_a_fresh_layer_after_it(balance):
    layer, gate = _layer(balance=balance), Gate()
    before, fresh = _run(_layer(balance=balance, staging=0)), _run(_layer(NEW, balance=balance, staging=0))
    seen = []
    job = layer.begin_replace(NEW, gate, progress=lambda *done: seen.append(done))
    assert [move.expert for move in job.moves] == MOVED
    assert job.bytes == 3 * sum(p[0].nbytes for p in layer.slots.parameters())
    for _ in MOVED:
        assert not job.done
        assert torch.equal(_run(layer), before)
        gate.let(1)
    assert job.wait(30)
    assert job.done
    assert torch.equal(_run(layer), before)
    assert layer.placement == OLD
    assert layer.commit() is layer
    assert layer.placement == NEW
    assert torch.equal(_run(layer), fresh)
    assert (seen, gate.asked) == ([(1, 3), (2, 3), (3, 3)], MOVED)


def test_replicas_are_run_in_the_order_of_the_placement_wherever_they_are_stored():
    x, _, weights = _batch(tokens=64)
    ids = torch.tensor([[3, 9, 9, 12]]).expand(64, 4)  # both replicas of 9 for one token: their order shows in the sum
    layer, fresh = _layer(balance="round_robin"), _layer(NEW, balance="round_robin", staging=0)
    with layer.replacing(NEW):
        pass
    assert layer.view.stored[6] > layer.view.stored[10]
    assert torch.equal(_run(layer, (x, ids, weights)), _run(fresh, (x, ids, weights)))


@pytest.mark.parametrize("source", ["own slots", "other weights"])
def test_forwards_of_many_threads_never_see_a_mixture(source):
    # OTHER has other weights for the experts that move: an output then tells which placement it was computed with
    experts = OTHER if source == "other weights" else EXPERTS
    layer = _layer()
    batches = [_batch(seed, tokens=6) for seed in range(4)]
    known = [{_digest(_run(layer, batch))} for batch in batches]
    stop, mixed, counts = threading.Event(), [], [0] * 4

    def hammer(i):
        with torch.no_grad():
            while not stop.is_set():
                if _digest(layer(*batches[i])) not in known[i]:
                    mixed.append(i)
                counts[i] += 1

    twin = _layer()  # goes the same way with nobody looking, and says beforehand what each stage gives
    threads = [threading.Thread(target=hammer, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(8):
            placement = (NEW, OLD)[turn % 2]
            given = (
                (lambda e, turn=turn: slice_expert(experts if turn % 4 < 2 else EXPERTS, e))
                if experts is OTHER
                else None
            )
            twin.begin_replace(placement, given).wait()
            twin.commit()
            for i, batch in enumerate(batches):
                known[i].add(_digest(_run(twin, batch)))
            with layer.replacing(placement, given) as job:
                assert [move.expert for move in job.moves]
            assert layer.placement == placement
            seen = list(counts)
            while not all(b > a for a, b in zip(seen, counts, strict=True)):
                time.sleep(0.002)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not mixed
    assert max(map(len, known)) >= (2 if experts is OTHER else 1)


def _digest(y):
    return y.numpy().tobytes()


def test_a_forward_under_way_keeps_its_slots_until_it_returns():
    layer, old = _layer(), _run(_layer())
    inside, go_on = threading.Event(), threading.Event()
    run, results = layer.slots.forward, []

    def slow(*call):
        if threading.current_thread().name == "slow":
            inside.set()
            assert go_on.wait(30)
        return run(*call)

    layer.slots.forward = slow
    thread = threading.Thread(target=lambda: results.append(_run(layer)), name="slow")
    thread.start()
    assert inside.wait(30)
    with layer.replacing(NEW, OTHER):  # into the spare slots
        pass
    job = layer.begin_replace(OLD, OTHER)  # into the slots the slow forward still uses
    assert not job.wait(0.1)
    job.cancel()
    second = layer.begin_replace(OLD, OTHER)
    go_on.set()
    assert second.wait(30)
    thread.join(30)
    assert torch.equal(results[0], old)


def test_a_forward_that_raised_keeps_no_slots():
    layer = _layer()
    layer.slots.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError) as kept:
        _run(layer)
    del layer.slots.forward
    for placement in (NEW, OLD):
        job = layer.begin_replace(placement)
        assert job.wait(30)
        layer.commit()
    assert kept.value.__traceback__ is not None


@pytest.mark.parametrize("fail", MOVED)
def test_a_source_that_fails_leaves_the_old_placement_working(fail):
    layer, before = _layer(), _run(_layer())
    gate = Gate(OTHER, fail)
    gate.let()
    job = layer.begin_replace(NEW, gate)
    with pytest.raises(JanusError, match="no space left on device") as error:
        job.wait(30)
    assert error.value.code == "layer.replace"
    assert not job.done
    assert _code(layer.commit) == "layer.replace"
    assert layer.placement == OLD
    assert torch.equal(_run(layer), before)
    with layer.replacing(NEW):  # the spare slots are free again
        pass
    assert torch.equal(_run(layer), _run(_layer(NEW)))


def test_a_wait_that_times_out_leaves_both_the_job_and_the_old_placement_going():
    layer, gate, before = _layer(), Gate(), _run(_layer())
    job = layer.begin_replace(NEW, gate)
    started = time.monotonic()
    assert job.wait(0.05) is False
    assert time.monotonic() - started < 10
    assert _code(layer.commit) == "layer.replace"
    assert torch.equal(_run(layer), before)
    gate.let()
    assert job.wait(30)
    layer.commit()
    assert layer.placement == NEW


def test_a_block_that_raises_cancels_its_replacement():
    layer, gate, before = _layer(), Gate(), _run(_layer())

    def interrupted():
        with layer.replacing(NEW, gate) as job:
            gate.let(1)
            jobs.append(job)
            threading.Timer(0.05, gate.let, (1,)).start()  # the expert under way is copied to its end
            raise KeyboardInterrupt

    jobs = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not jobs[0].running
    assert len(gate.asked) <= 2
    assert (layer.placement, torch.equal(_run(layer), before)) == (OLD, True)
    with pytest.raises(JanusError, match="was cancelled"):
        jobs[0].wait()


def test_a_source_that_hangs_keeps_the_layer_busy_and_serving():
    layer, gate, before = _layer(), Gate(), _run(_layer())
    job = layer.begin_replace(NEW, gate)
    assert not job.cancel(0.01)
    assert _code(lambda: layer.begin_replace(NEW)) == "layer.busy"
    assert torch.equal(_run(layer), before)
    gate.let()
    assert job.cancel(30)
    with layer.replacing(NEW):
        pass
    assert layer.placement == NEW


def test_one_replacement_at_a_time():
    layer, gate = _layer(), Gate()
    job = layer.begin_replace(NEW, gate)
    assert _code(lambda: layer.begin_replace(NEW)) == "layer.busy"
    assert _code(lambda: layer.load_slots(NEW, EXPERTS)) == "layer.busy"
    assert _code(lambda: layer.load_state_dict(layer.state_dict())) == "layer.busy"
    gate.let()
    job.wait(30)
    assert _code(lambda: layer.begin_replace(NEW)) == "layer.busy"
    layer.commit()
    assert _code(layer.commit) == "layer.replace"


def test_more_moves_than_spare_slots_are_refused_with_the_number_needed():
    layer = _layer(staging=2)
    with pytest.raises(JanusError, match="staging=3") as error:
        layer.begin_replace(NEW)
    assert error.value.code == "layer.staging"
    assert layer.load_slots(NEW, EXPERTS).placement == NEW  # at rest it needs none
    with layer.replacing(NEW) as job:
        assert job.moves == ()  # nothing to do is no mistake


def test_empty_slots_serve_as_spare_ones():
    holes = Placement([[*range(8), -1, -1], [*range(8, 16), -1, -1]], 16)
    filled = Placement([[*range(8), 8, 9], [*range(8, 16), 0, 1]], 16)
    layer = _layer(holes, staging=0)
    with layer.replacing(filled):
        pass
    assert torch.equal(_run(layer), _run(_layer(filled, staging=0)))


def test_a_layer_of_one_instance_takes_what_it_lacks_from_a_source():
    layer, fresh = (_layer(p, instance=1, staging=s) for p, s in ((OLD, 1), (NEW, 0)))
    assert _code(lambda: layer.begin_replace(NEW)) == "source.experts"  # expert 12 is not here
    with layer.replacing(NEW, EXPERTS):
        pass
    assert torch.equal(_run(layer), _run(fresh))


def test_many_placements_one_after_the_other_from_a_folder(tmp_path):
    folder, rng = tiny.save("mixtral", tmp_path), np.random.default_rng(0)
    layer = JanusMoELayer.from_checkpoint(folder, OLD, staging=5)
    for turn in range(12):
        placement = _changed(layer.placement, rng)
        with layer.replacing(placement, folder if turn % 2 else None):
            pass
        assert torch.equal(_run(layer, _batch(turn)), _run(_layer(placement, staging=0), _batch(turn)))
    state = layer.state_dict()
    assert all(torch.equal(state[name], p) for name, p in EXPERTS.named_parameters())


def _changed(placement, rng):
    """Up to 5 slots hold another expert; every expert keeps a slot."""
    slots = placement.slots[0].copy()
    for _ in range(5):
        g, c = rng.integers(3), rng.integers(7)
        e = rng.integers(16)
        if e not in slots[g] and (slots == slots[g, c]).sum() > 1:
            slots[g, c] = e
    return Placement(slots, 16)


def test_a_layer_moved_meanwhile_is_not_switched():
    layer = _layer()
    job = layer.begin_replace(NEW)
    job.wait(30)
    layer.double()
    assert _code(layer.commit) == "layer.replace"
    x, ids, weights = _batch()
    with torch.no_grad():
        assert layer(x.double(), ids, weights.double()).dtype == torch.float64
    assert layer.placement == OLD


def test_a_copy_of_a_layer_has_changes_of_its_own_and_views_are_let_go():
    layer, gate = _layer(), Gate()
    job = layer.begin_replace(NEW, gate)
    twin = copy.deepcopy(layer)
    with twin.replacing(NEW):
        pass
    assert (twin.placement, layer.placement) == (NEW, OLD)
    gate.let()
    job.wait(30)
    gc.disable()  # what a switch frees is known to be free without the collector
    try:
        layer.commit()
        assert all(event.is_set() for event, _ in layer._changes.unused)
    finally:
        gc.enable()


@pytest.mark.gpu
def test_on_a_gpu_the_copies_run_beside_the_forwards():
    layer = _layer().cuda()
    batch = tuple(t.cuda() for t in _batch())
    before = _run(layer, batch)
    job = layer.begin_replace(NEW, lambda e: slice_expert(OTHER, e))
    while not job.done:
        assert torch.equal(_run(layer, batch), before)
        job.wait(0.001)
    layer.commit()
    want = _layer()
    want.begin_replace(NEW, lambda e: slice_expert(OTHER, e)).wait()
    assert torch.equal(_run(layer, batch), _run(want.commit().cuda(), batch))
