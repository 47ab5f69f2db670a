"""The kernel's door: what a refused batch, odd arrays, modes of torch and odd sizes must not break. Layer 2 (interpreter)."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from janus import JanusError
from janus.sched import Balancer, balance
from janus.types import Placement

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THREE = Placement([[0, 1, 2], [0, 3, 4], [1, 2, 5]], num_experts=6)
GOOD = torch.tensor([[0, 1], [2, -1]], device=DEVICE)


def made(placement=THREE, **options):
    return Balancer(placement, max_tokens=4, backend="triton", device=DEVICE, **options)


def test_a_refused_batch_leaves_no_trace():
    balancer = made(check_ids=True, record_load=True)
    kept = balancer(GOOD, 0)
    sums, load, last, ids = balancer.stats.sums, balancer.expert_load, balancer.load.tolist(), kept.tolist()
    with pytest.raises(JanusError, match="token 0, choice 1 holds 9; was the placement made for this model"):
        balancer(torch.tensor([[0, 9]], device=DEVICE), 0)
    assert (balancer.stats.sums == sums).all()
    assert (balancer.expert_load == load).all()
    assert (balancer.load.tolist(), kept.tolist()) == (last, ids)


def test_checks_inside_a_graph_are_refused(monkeypatch):
    balancer, unchecked = made(check_ids=True), made()
    monkeypatch.setattr("janus.sched.device.capturing", lambda device: True)
    with pytest.raises(JanusError, match="cannot be captured") as caught:
        balancer(GOOD, 0)
    assert caught.value.code == "sched.option"
    assert unchecked(GOOD, 0).tolist() == [[3, 6], [2, -1]]


def test_arrays_that_torch_would_not_take_are_copied():
    host = GOOD.cpu().numpy()
    frozen = host.copy()
    frozen.flags.writeable = False
    for ids in (host.astype(">i8"), host.astype(">i4"), frozen):
        got = balance(ids, THREE, backend="triton") if DEVICE == "cpu" else None
        assert got is None or got.physical_ids.tolist() == [[3, 6], [2, -1]]


def test_a_mask_is_not_passed_over():
    hidden = np.ma.masked_array(GOOD.cpu().numpy(), mask=[[1, 0], [0, 0]])
    with pytest.raises(JanusError, match=r"filled\(-1\)"):
        balance(hidden, THREE, backend="triton")


def test_a_balancer_made_under_inference_mode_serves_outside_it():
    with torch.inference_mode():
        balancer = made(record_load=True)
        balancer(GOOD, 0)
    balancer.reset_stats()
    assert not balancer(GOOD, 0).is_inference()
    assert balancer.stats.batches.tolist() == [1]


def test_every_layer_gets_pointers_of_the_same_alignment():
    """Else Triton compiles once more in the middle of serving: an odd number of experts, layer by layer."""
    placement = Placement([[[0, 1], [2, -1]]] * 3, num_experts=3)
    balancer = made(placement, record_load=True)
    for layer in range(3):
        balancer(torch.tensor([[0, 1], [2, -1]], device=DEVICE), layer)
    assert balancer.expert_load.tolist() == [[1, 1, 1]] * 3
    assert {load.data_ptr() % 16 for _, load in balancer._engine._tallies} == {0}


@pytest.mark.skipif(DEVICE == "cuda", reason="about machines without a GPU")
def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(JanusError, match="sees 2 GPUs") as caught:
        Balancer(THREE, max_tokens=4, device="cuda:2")
    assert caught.value.code == "sched.device"
    for device in ("cpu:0", torch.device("cpu", 0)):
        assert Balancer(THREE, max_tokens=4, backend="triton", device=device)(GOOD, 0).tolist() == [[3, 6], [2, -1]]


def test_an_interpreter_asked_for_too_late_is_refused():
    code = """
        import os, triton
        os.environ["TRITON_INTERPRET"] = "1"
        import numpy as np
        from janus import Balancer, JanusError, Placement
        try:
            Balancer(Placement([[0]], num_experts=1), max_tokens=1, backend="triton")
        except JanusError as error:
            print(error.code, "before triton is imported" in str(error))
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.stdout.split() == ["sched.device", "True"], done.stderr
