"""Layer 2, gloo processes: `all_to_all` against what was sent and against torch, byte for byte; refusals; losses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NODES = {
    "two of two": {"nodes": [[0, 1], [2, 3]]},
    "one and three": {"nodes": [[0], [1, 2, 3]]},
    "mixed up": {"nodes": [[0, 3, 4], [1], [2]]},
    "topology": {"topology": {"attention": [[4, 1]], "experts": [[0, 3], [2]]}, "torch_too": False},
    "shared boxes": {"topology": {"attention": [[0], [1]], "experts": [[2, 3]], "hosts": [[0, 1]]}},
}
WORLD = {"mixed up": 5, "topology": 5}


@pytest.mark.parametrize("name", NODES)
def test_every_regime_is_bit_for_bit_what_was_sent(nursery, name):
    values = nursery.values("alltoall_equal", WORLD.get(name, 4), **NODES[name])
    assert all(value == values[0] for value in values), "all ranks take the same way"
    taken = values[0]
    ways = {
        kind: {way for key, way in taken.items() if key.startswith(kind)}
        for kind in ("direct", "gather", "auto True", "auto False True")
    }
    assert ways["direct"] == {"direct"}
    assert ways["gather"] == {"rode", "gather"}
    # where few pieces are not empty, "gather" may save no message and "direct" is as cheap
    assert {"rode", "gather" if name == "two of two" else "rode"} <= ways["auto True"] <= {"rode", "gather", "direct"}
    assert {"rode", "direct"} <= ways["auto False True"]


def test_on_one_node_and_on_one_rank_everything_is_direct(nursery):
    for world in (1, 3):
        for value in nursery.values("alltoall_equal", world):
            assert set(value.values()) == {"direct"}


def test_a_part_of_the_world(nursery):
    values = nursery.values("alltoall_equal", 5, members=[1, 2, 4], nodes=[[0, 1, 2], [3, 4]])
    assert values[0] == values[3] == {}
    assert values[1] == values[2] == values[4]
    assert "rode" in set(values[1].values())


PAIRED = {0: ([1, 2, 3], [1, 4, 5]), 1: ([4, 2, 6], [2, 2, 6]), 2: ([5, 6, 3], [3, 6, 3])}


def _paired(**differ):
    """Splits that fit; other arguments for all ranks, or for one (r0, r1, r2)."""
    common = {"regime": "gather"} | {name: value for name, value in differ.items() if name not in ("r0", "r1", "r2")}
    return [{"sent": s, "expected": e, **common, **differ.get(f"r{rank}", {})} for rank, (s, e) in PAIRED.items()]


THREE = [[0, 2], [1]]


def test_splits_that_contradict_are_refused_on_every_rank_with_one_sentence(nursery):
    per_rank = _paired(r1={"expected": [2, 2, 7]})
    values = nursery.values("alltoall_refused", 3, per_rank=per_rank, nodes=THREE)
    message = (
        "what one rank sends another must be what that one expects; rank 2 sends rank 1 6 rows, rank 1 expects 7; "
        "exchange the splits before the rows"
    )
    assert values == [["alltoall.splits", message]] * 3


@pytest.mark.parametrize(
    ("field", "differ"),
    [
        ("regime", {"r2": {"regime": "auto"}, "cost": "gather"}),
        ("cost", {"r0": {"cost": 1.0}}),
        ("dtype", {"r1": {"dtype": "int32"}}),
        ("row_bytes (8 and 16)", {"r2": {"dtype": "float64"}}),
    ],
)
def test_arguments_that_differ_are_refused_on_every_rank(nursery, field, differ):
    values = nursery.values("alltoall_refused", 3, per_rank=_paired(**differ), nodes=THREE)
    assert values == [values[0]] * 3
    code, message = values[0]
    assert code == "alltoall.contract"
    assert field.split()[0] in message or field.startswith("row_bytes")
    assert "rank 0 and rank" in message


def test_what_fits_is_not_refused(nursery):
    assert nursery.values("alltoall_refused", 3, per_rank=_paired(), nodes=THREE) == [["", ""]] * 3


ALONE = """
import torch, torch.distributed as dist
from janus.comm import CostModel, all_to_all
from janus.errors import JanusError
from janus.types import Topology

def code(*args, **more):
    try:
        all_to_all(*args, **more)
    except JanusError as error:
        assert "None" not in error.message or "group" in error.message, error
        return error.code.removeprefix("alltoall.")
    return "fine"

x, out = torch.zeros(4, 2), torch.zeros(4, 2)
print(code(out, x), "before")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print(code(out, x))
print(code(out, x, [4], [4]), code(out, x, [], []), code(out, x, torch.tensor([4])))
print(code(out, [1.0]), code(torch.zeros(()), torch.zeros(())), code(out, torch.zeros(2, 4).T), code(out.to_sparse(), x))
print(code(out, torch.zeros(4, 2, dtype=torch.complex64).conj()), code(out, x.clone().requires_grad_()))
print(code(out, x.double()), code(out, torch.zeros(4, 3)), code(torch.zeros(4, 2, device="meta"), x), code(x[:2], x[1:3]))
print(code(out, x, [3]), code(out, x, [4, 0]), code(out, x, [-4]), code(out, x, "4"), code(out, x, [4.0]), code(out, x, 4))
print(code(out, x[:3]), code(torch.zeros(4, 2, device="meta"), torch.zeros(4, 2, device="meta")))
print(code(out, x, regime="relay"), code(out, x, cost="cheap"), code(out, x, timeout_s=0), code(out, x, timeout_s="1"))
print(code(out, x, topology_or_group="world"), code(out, x, topology_or_group=Topology(((0,),), ((1,),))))
print(code(x[:0], out[:0]), code(torch.zeros(4, 0), torch.zeros(4, 0)), code(x[:2], x[2:]))
"""
SAID = """group before
fine
fine fine fine
tensor tensor tensor tensor
tensor grad
dtype shape device overlap
splits splits splits splits splits splits
splits device
regime cost timeout timeout
group world
fine fine fine
"""


def test_every_mistake_that_one_rank_can_see_is_refused_by_name():
    src = str(Path(__file__).parents[2] / "src")
    words = [sys.executable, "-W", "error", "-c", ALONE]
    done = subprocess.run(words, env={"PYTHONPATH": src}, capture_output=True, text=True, check=False)
    assert done.stdout == SAID, done.stderr


TWO_NODES = [[0, 1], [2, 3]]
TIMEOUT_S = 6.0
STOP_S = 2.0


def _losses(nursery, victim, **args):
    outcomes = nursery.run("alltoall_lost", 4, nodes=TWO_NODES, victim=victim, deadline_s=30, **args)
    others = [outcome for outcome in outcomes if outcome.rank != victim]
    for outcome in others:
        assert outcome.exit_code == 0, outcome.error
        for _, peer, phase, layer, rank, _ in outcome.value:
            assert (peer, phase, layer, rank) == (victim, "all_to_all", -1, outcome.rank), outcome.value
    return [[seconds for seconds, *_ in outcome.value] for outcome in others]


@pytest.mark.parametrize(
    ("victim", "when", "regime", "rows"),
    [
        (0, 0, "direct", 1),
        (3, 0, "direct", 64),
        (1, 0, "gather", 1),
        (2, 1, "gather", 1),  # before it has told anybody anything
        (3, 2, "auto", 1),  # between the two phases of the agreement
        (0, 3, "gather", 64),  # once all have agreed
        (2, 4, "gather", 64),  # between the two phases of the rows
    ],
)
def test_every_survivor_names_a_killed_rank_at_once(nursery, victim, when, regime, rows):
    seconds = _losses(nursery, victim, when=when, sig="SIGKILL", regime=regime, timeout_s=TIMEOUT_S, rows=rows)
    # 0.3 s until it dies, 0.3 s in which notes are followed, and the busy machine
    assert max(first for first, _ in seconds) < TIMEOUT_S / 2
    assert max(second for _, second in seconds) < TIMEOUT_S / 2, "the group stays lost, and says so at once"


@pytest.mark.parametrize(("victim", "when", "regime"), [(1, 0, "direct"), (2, 0, "auto"), (3, 2, "gather")])
def test_every_survivor_names_a_stopped_rank_after_the_deadline(nursery, victim, when, regime):
    seconds = _losses(nursery, victim, when=when, sig="SIGSTOP", regime=regime, timeout_s=STOP_S)
    assert max(first for first, _ in seconds) < STOP_S + 3.0
    assert min(first for first, _ in seconds) > STOP_S / 2
