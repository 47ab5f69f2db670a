"""EPLB's door: every form its users hold gives the same placement, physical ids stay, maps that disagree are refused."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_strategies import NONSENSE, only_janus_error, refuses

from janus.types import Placement

PHY = [0, 1, 2, 0]  # two GPUs with two slots each
LOG, CNT = [[0, 3], [1, -1], [2, -1]], [2, 1, 1]


@st.composite
def engine_maps(draw):
    """phy2log [L, R] as an engine might hold it, duplicates on one GPU included, its other two maps, and G."""
    L, G, C = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    E = draw(st.integers(1, G * C))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spare = rng.integers(0, E, size=(L, G * C - E))
    phy2log = rng.permuted(np.concatenate([np.tile(np.arange(E), (L, 1)), spare], axis=1), axis=1)
    logcnt = np.stack([np.bincount(row, minlength=E) for row in phy2log])
    log2phy = np.full((L, E, int(logcnt.max()) + 1), -1)
    for layer, e in np.ndindex(L, E):
        held = np.flatnonzero(phy2log[layer] == e)
        log2phy[layer, e, : len(held)] = rng.permutation(held)  # engines promise no order
    return phy2log, log2phy, logcnt, G


@given(engine_maps())
@settings(max_examples=60, deadline=None)
def test_every_form_of_a_map_gives_the_same_placement(maps):
    phy2log, log2phy, logcnt, G = maps
    plain = Placement.from_eplb(phy2log, G)
    assert Placement.from_eplb(phy2log, G, log2phy=log2phy, logcnt=logcnt) == plain
    assert Placement.from_eplb(None, G, log2phy=log2phy) == plain
    assert Placement.from_eplb(None, G, log2phy=log2phy, logcnt=logcnt, num_experts=logcnt.shape[1]) == plain
    assert Placement.from_eplb(phy2log[0], G, log2phy=log2phy[0], logcnt=logcnt[0]).uniform


@given(engine_maps())
@settings(max_examples=60, deadline=None)
def test_physical_ids_stay_and_duplicates_on_one_gpu_are_counted(maps):
    phy2log, _, _, G = maps
    placement = Placement.from_eplb(phy2log, G)
    kept = placement.phy2log >= 0
    assert (placement.phy2log[kept] == phy2log[kept]).all()
    by_gpu = phy2log.reshape(len(phy2log) * G, -1)
    assert placement.eplb_duplicates == sum(len(row) - len(set(row)) for row in by_gpu.tolist()) == (~kept).sum()


@given(engine_maps(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_single_difference_between_the_maps_is_found(maps, seed):
    phy2log, log2phy, logcnt, G = maps
    rng = np.random.default_rng(seed)
    layer, e = rng.integers(len(logcnt)), rng.integers(logcnt.shape[1])
    logcnt[layer, e] += rng.choice([-1, 1])
    refuses("placement.eplb", f"layer {layer}: expert {e}", Placement.from_eplb, phy2log, G, logcnt=logcnt)
    log2phy[layer, e, np.argmax(log2phy[layer, e] >= 0)] = -1  # one replica forgotten
    refuses("placement.eplb", f"layer {layer}: physical id", Placement.from_eplb, phy2log, G, log2phy=log2phy)


def test_tensors_are_taken_like_arrays():
    torch = pytest.importorskip("torch")
    for dtype in (torch.int64, torch.int32):
        maps = {"log2phy": torch.tensor(LOG, dtype=dtype), "logcnt": torch.tensor(CNT, dtype=dtype)}
        assert Placement.from_eplb(torch.tensor(PHY, dtype=dtype), 2, **maps) == Placement.from_eplb(PHY, 2)
    refuses("placement.shape", "float32", Placement.from_eplb, torch.zeros(4), 2)
    refuses("placement.shape", "no host copy", Placement.from_eplb, torch.empty(4, dtype=torch.int64, device="meta"), 2)


def test_a_tensor_on_another_device_is_copied_to_the_host():
    torch = pytest.importorskip("torch")

    class Elsewhere(torch.Tensor):
        """Refuses to be read where it is, as a GPU's tensor does."""

        def cpu(self):
            return self.as_subclass(torch.Tensor)

        def numpy(self):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        __array__ = numpy

    there = torch.tensor(PHY).as_subclass(Elsewhere)
    assert Placement.from_eplb(there, 2) == Placement.from_eplb(PHY, 2)


def test_no_torch_is_imported_for_it():
    code = "import sys; from janus import Placement; Placement.from_eplb([0, 1], 1); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("code", "says", "maps"),
    [
        (
            "placement.eplb",
            "layer 0: physical id 1: expert 1 by phy2log, 2 by log2phy",
            {"log2phy": [[0, 3], [2], [1]]},
        ),
        ("placement.eplb", "layer 0: expert 2: replicas 1 by phy2log, 2 by logcnt", {"logcnt": [2, 1, 2]}),
        ("placement.eplb", "(1, 3, 2); got (3, 2)", {"phy2log": [PHY], "log2phy": LOG}),
        ("placement.eplb", "logcnt must have the layers and sizes of phy2log, (3,); got (1, 3)", {"logcnt": [CNT]}),
        ("placement.eplb", "'log2phy': 3, 'logcnt': 4", {"log2phy": LOG, "logcnt": [2, 1, 1, 0]}),
        ("placement.eplb", "'logcnt': 3, 'num_experts': 4", {"logcnt": CNT, "num_experts": 4}),
        ("placement.eplb", "names one twice: 3 of layer 0", {"log2phy": [[0, 3], [1], [3]]}),
        ("placement.eplb", "names one twice", {"log2phy": [[0, 0], [1], [2]]}),
        ("placement.range", "0..3; layer 0, expert 1 holds 4", {"log2phy": [[0, 3], [4], [2]]}),
        ("placement.range", "expert 1 holds -2", {"log2phy": [[0, 3], [-2], [2]]}),
        ("placement.range", "0..1; layer 0, physical id 2 holds 2", {"logcnt": [2, 1]}),
        ("placement.eplb", "the largest is 5, layers name 4 ids", {"phy2log": None, "log2phy": [[0, 5], [1], [2]]}),
        ("placement.shape", "give phy2log or log2phy=", {"phy2log": None}),
        ("placement.shape", "divisible by num_instances; got (3,)", {"phy2log": None, "log2phy": [[0], [1], [2]]}),
        ("placement.shape", "[L, E, X] or [E, X]; got float64", {"log2phy": [[0.0, 3.0]]}),
    ],
)
def test_what_is_wrong_is_named(code, says, maps):
    if isinstance(maps.get("log2phy"), list):
        width = max(map(len, maps["log2phy"]))
        maps = maps | {"log2phy": [row + [-1] * (width - len(row)) for row in maps["log2phy"]]}
    refuses(code, says, Placement.from_eplb, **{"phy2log": PHY, "num_instances": 2} | maps)


@given(NONSENSE, NONSENSE, NONSENSE)
@settings(max_examples=60, deadline=None)
def test_nonsense_is_refused_as_a_placement_error(first, second, third):
    only_janus_error("placement.", Placement.from_eplb, first, 2, log2phy=second, logcnt=third)
    only_janus_error("placement.", Placement.from_eplb, PHY, 2, log2phy=first, logcnt=second, num_experts=third)
    only_janus_error("placement.", Placement.from_eplb, None, first, log2phy=second)


@pytest.mark.gpu
def test_a_map_on_a_gpu_is_copied_to_the_host():
    torch = pytest.importorskip("torch")
    maps = {"log2phy": torch.tensor(LOG).cuda(), "logcnt": torch.tensor(CNT, dtype=torch.int32).cuda()}
    assert Placement.from_eplb(torch.tensor(PHY).cuda(), 2, **maps) == Placement.from_eplb(PHY, 2)
