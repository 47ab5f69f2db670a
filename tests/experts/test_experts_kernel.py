"""Chosen experts by Triton's kernels against float64, entry by entry. Layer 2 (Triton's interpreter), or 3 on a GPU."""

import dataclasses

import entries
import pytest
import torch
from entries import GPT_OSS, LIMITS, SILU
from hypothesis import given, settings
from hypothesis import strategies as st

from janus import JanusError
from janus.experts.activation import KINDS, Activation
from janus.experts.tuning import Cut, Tiles

pytest.importorskip("triton")
from janus.experts import device, kernel, launches, workspace
from janus.experts.device import TritonEngine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Cut(16, Tiles(32, 32, 4, 2), Tiles(32, 32, 4, 2))


def worst(made, T, K, S, dtype=torch.float32, *, cut=None, quantize=None, absent=0.2, seed=0):
    """Relative error of a batch through an engine."""
    out = entries.slots(made, S, dtype, quantize=quantize, device=DEVICE)
    x, ids, weights = entries.batch(T, K, S, made.hidden_size, dtype, absent=absent, seed=seed, device=DEVICE)
    engine = TritonEngine(out, cut)
    got = engine(x, ids, weights)
    assert (got.dtype, got.shape, got.device) == (x.dtype, x.shape, x.device)
    assert not engine._workspace.arrived.any()
    return entries.error(got, entries.plain(out, x, ids, weights))


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 12), st.integers(1, 5), st.integers(1, 9), st.integers(1, 50), st.integers(1, 40),
    st.sampled_from(list(LIMITS)), st.integers(0, 99),
)  # fmt: skip
def test_any_sizes(T, K, S, H, F, dtype, seed):
    assert worst(entries.layout(H, F), T, K, S, dtype, seed=seed) <= LIMITS[dtype]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "act", [SILU, GPT_OSS, Activation("relu2", gated=False)], ids=["gated", "interleaved", "no gate"]
)
@pytest.mark.parametrize("bias", [False, True])
def test_every_layout(act, bias, transposed):
    made = entries.layout(40, 24, act, bias=bias, transposed=transposed)
    assert worst(made, 3, 2, 3) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gated", [False, True])
def test_every_activation(kind, gated):
    assert worst(entries.layout(32, 16, Activation(kind, gated)), 4, 2, 3) <= 1e-5


@pytest.mark.parametrize("clamp", ["before", "after"])
def test_limits_are_met(clamp):
    act = Activation("silu", clamp=clamp, limit=0.4)
    free = dataclasses.replace(act, clamp="")
    x = torch.linspace(-2, 2, 64).view(1, 64)
    assert not torch.allclose(act.apply(x), free.apply(x))
    assert worst(entries.layout(32, 16, act), 4, 2, 3) <= 1e-5


def test_an_activation_nobody_knows_is_run_by_the_module():
    made = entries.layout(32, 16)
    made.template._apply_gate = lambda hidden: torch.sin(hidden[..., :16]) * hidden[..., 16:]
    assert TritonEngine(entries.slots(made, 3)).activation is None
    assert worst(made, 5, 2, 3) <= 1e-5
    assert worst(made, 70, 2, 3, torch.bfloat16) <= 2e-2


@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", list(LIMITS))
def test_quantized_weights_are_what_they_stand_for(form, transposed, dtype):
    """Sizes of one block and a part of the next: every kind of scale is used."""
    made = entries.layout(136, 130, transposed=transposed)
    assert worst(made, 2, 2, 2, dtype, quantize=form) <= LIMITS[dtype]


def test_quantized_interleaved_weights():
    assert worst(entries.layout(136, 72, GPT_OSS, bias=True, transposed=True), 3, 2, 2, quantize="fp8") <= 1e-5


CUTS = [(6, {"split": 2}), (40, {"split": 4}), (70, {"split": 2, "group": 8}), (40, {"group": 3}), (70, {"rows": 32})]


@pytest.mark.parametrize(("T", "change"), CUTS, ids=str)
def test_results_do_not_depend_on_how_the_work_is_cut(T, change):
    """6 tokens: tiles found by all; 40: sorted; 70: the sum in a launch of its own. A slot has more than 16 entries."""
    assert worst(entries.layout(40, 70), T, 2, 3, cut=dataclasses.replace(SMALL, **change), absent=0.1) <= 1e-5


@pytest.mark.parametrize("T", [6, 40, 70])
def test_the_same_batch_gives_the_same_bits(T):
    out = entries.slots(entries.layout(32, 16), 3, device=DEVICE)
    given = entries.batch(T, 2, 3, 32, device=DEVICE)
    assert torch.equal(out(*given), out(*given))


@pytest.mark.parametrize("T", [20, 70])
def test_all_entries_of_one_slot(T):
    """Far more entries than the grid is made for: the same slot for every choice of every token."""
    out = entries.slots(entries.layout(32, 16), 5, device=DEVICE)
    x, ids, weights = entries.batch(T, 3, 5, 32, device=DEVICE)
    ids[:] = 3
    got = TritonEngine(out, SMALL)(x, ids, weights)
    assert entries.error(got, entries.plain(out, x, ids, weights)) <= 1e-5


@pytest.mark.parametrize(("T", "programs"), [(6, 1), (40, 3), (70, 1)])
def test_a_grid_of_any_size_does_all_the_work(T, programs, monkeypatch):
    out = entries.slots(entries.layout(70, 40), 4, device=DEVICE)
    x, ids, weights = entries.batch(T, 2, 4, 70, device=DEVICE)
    want = TritonEngine(out, SMALL)(x, ids, weights)
    made = TritonEngine(out, SMALL)
    usual = made.launches(T, 2)
    grids = usual.grids | dict.fromkeys(("sort", "up", "down"), (programs,))
    monkeypatch.setitem(made._launches, (T, 2), dataclasses.replace(usual, grids=grids))
    assert torch.equal(made(x, ids, weights), want)


@pytest.mark.parametrize("T", [1, 40, 70])
def test_tokens_served_elsewhere_are_zero(T):
    out = entries.slots(entries.layout(40, 16), 4, device=DEVICE)
    x, ids, weights = entries.batch(T, 2, 4, 40, absent=1.0, device=DEVICE)
    assert torch.equal(out(x, ids, weights), torch.zeros_like(x))
    ids[0, 1] = 2
    got = out(x, ids, weights)
    assert got[0].any()
    assert not got[1:].any()


def test_no_tokens():
    out = entries.slots(entries.layout(40, 16), 4, device=DEVICE)
    x, ids, weights = entries.batch(0, 2, 4, 40, device=DEVICE)
    assert out(x, ids, weights).shape == (0, 40)


@pytest.mark.parametrize("T", [2, 40])
def test_slots_that_do_not_exist_are_passed_over(T):
    """Checked before the engine where checks are on; here nothing is read out of bounds."""
    out = entries.slots(entries.layout(40, 16), 4, device=DEVICE)
    x, ids, weights = entries.batch(T, 2, 4, 40, device=DEVICE)
    wild = torch.where(ids < 0, torch.tensor([4, 2**40], device=DEVICE)[torch.arange(2)], ids)
    wild[0] = torch.tensor([-5, 1])
    ids[0] = torch.tensor([-1, 1])
    assert torch.equal(out(x, wild, weights), out(x, ids, weights))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_ids_and_weights_of_other_types_and_strides(dtype):
    out = entries.slots(entries.layout(40, 16), 4, device=DEVICE)
    x, ids, weights = entries.batch(6, 3, 4, 40, device=DEVICE)
    weights = weights.to(dtype)
    want = out(x, ids, weights)
    assert torch.equal(out(x, ids.int(), weights), want)
    assert torch.equal(out(x.t().contiguous().t(), ids.t().contiguous().t(), weights.t().contiguous().t()), want)


def test_replaced_weights_and_moved_slots_are_seen():
    out = entries.slots(entries.layout(40, 16), 2, device=DEVICE)
    x, ids, weights = entries.batch(3, 2, 2, 40, absent=0.0, device=DEVICE)
    first = out(x, ids, weights)
    out.down_proj = torch.nn.Parameter(out.down_proj * 2, requires_grad=False)
    assert entries.error(out(x, ids, weights), 2 * first.cpu().double()) <= 1e-6
    half = out.to(torch.bfloat16)
    assert half(x.bfloat16(), ids, weights).dtype == torch.bfloat16


def test_more_tokens_than_the_workspace_may_hold_run_in_turns(monkeypatch):
    monkeypatch.setattr(device, "PASS_BYTES", 1)
    out = entries.slots(entries.layout(40, 16), 4, device=DEVICE)
    x, ids, weights = entries.batch(150, 2, 4, 40, device=DEVICE)
    engine = TritonEngine(out)
    got = engine(x, ids, weights)
    assert sorted(engine._launches) == [(22, 2), (64, 2)]
    assert entries.error(got, entries.plain(out, x, ids, weights)) <= 1e-5


def test_sixteen_choices_and_no_more():
    out = entries.slots(entries.layout(32, 16), 20, device=DEVICE)
    x, ids, weights = entries.batch(3, 16, 20, 32, device=DEVICE)
    assert entries.error(out(x, ids, weights), entries.plain(out, x, ids, weights)) <= 1e-5
    with pytest.raises(JanusError, match=r"experts\.limit.*at most 16 choices.*got 17"):
        out(*entries.batch(3, 17, 20, 32, device=DEVICE))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 99))
def test_entries_are_sorted_by_slot_and_cut_into_tiles(n, S, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, S, (n,), generator=g)
    cap = launches.most_tiles(n, S, 4)
    plan, order = torch.full((1 + 3 * cap,), -7, dtype=torch.int32), torch.full((n,), -7, dtype=torch.int32)
    on = [tensor.to(DEVICE) for tensor in (ids, plan, order)]
    kernel.sort[(3,)](*on, n, S, cap, SP=64, BM=4, BLOCK=16, EARLY=False)
    plan, order = on[1].tolist(), on[2].tolist()
    want = [[i for i in range(n) if ids[i] == s] for s in range(S)]
    assert order[: int((ids >= 0).sum())] == [i for own in want for i in own]
    tiles = [(s, own[at : at + 4]) for s, own in enumerate(want) for at in range(0, len(own), 4)]
    assert plan[0] == len(tiles) <= cap
    for i, (s, own) in enumerate(tiles):
        assert plan[1 + i] == s
        assert order[plan[1 + cap + i] : plan[1 + 2 * cap + i]] == own


def test_the_workspace_is_announced_shared_and_not_moved_under_a_capture():
    first, second = (TritonEngine(entries.slots(entries.layout(64, F), 3, device=DEVICE)) for F in (16, 24))
    held = first.held_bytes
    second.reserve(5000, 4)
    grown = first.held_bytes
    assert grown == second.held_bytes
    assert grown >= held + 5000 * 4 * (4 * 64 + 4 * 24) // 2
    second.reserve(100, 4)
    assert second.held_bytes == grown
    made = workspace.Workspace(torch.device(DEVICE))
    a, b = made.take(((3, 5), torch.bfloat16), ((7,), torch.int32))
    assert (a.shape, a.dtype, b.shape, b.dtype) == ((3, 5), torch.bfloat16, (7,), torch.int32)
    assert b.data_ptr() - a.data_ptr() == workspace.ALIGNED
    with pytest.raises(JanusError, match=r"holds 512 bytes, 1000 are needed; run one batch of this size") as caught:
        made._grow(1000, capturing=True)
    assert caught.value.code == "experts.workspace"


def test_what_the_kernels_cannot_run_is_refused_with_the_reason(monkeypatch):
    made = entries.layout(16, 8)

    def refused(words, dtype=torch.float32, S=2, where="cpu", layout=made):
        out = entries.ExpertSlots(layout, range(S), dtype=dtype, device=where)
        assert words in device.why_not(out)

    refused("not torch.float64", torch.float64)
    refused("at most 4096 slots, these are 4097", S=4097)
    refused("are on meta", where="meta")
    refused("this layout has ['norm']", layout=dataclasses.replace(made, shapes=made.shapes | {"norm": (16,)}))
    out = entries.slots(made, 2)
    assert device.why_not(out) == ""
    out.down_proj = torch.nn.Parameter(out.down_proj.transpose(1, 2), requires_grad=False)
    assert "contiguous" in device.why_not(out)
    monkeypatch.setattr(device, "interpreted", lambda: False)
    refused("runs on a GPU")
    with pytest.raises(JanusError, match="compute='triton' cannot run here: it runs on a GPU"):
        _ = entries.ExpertSlots(made, [0], dtype=torch.float32, compute="triton").compute
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    refused("triton is not installed")


@pytest.mark.parametrize("T", [2, 70])
def test_what_is_compiled_ahead_has_the_arguments_of_a_launch(T, monkeypatch):
    """The interpreter compiles nothing: positions and names are those that the kernels have, types those of a call."""
    seen = {}

    class Recorded:
        def __getattr__(self, name):
            def warmup(*given, grid, **fixed):
                names = list(getattr(kernel, name).arg_names)
                options = {"num_warps", "num_stages", "launch_pdl", "enable_fp_fusion"}
                assert [*names[: len(given)], *sorted(set(fixed) - options)] == [
                    *names[: len(given)], *sorted(names[len(given) :])
                ]  # fmt: skip
                seen[name] = dict(zip(names, given, strict=False))

            return type("Kernel", (), {"warmup": staticmethod(warmup)})

    engine = TritonEngine(entries.slots(entries.layout(32, 16), 4, torch.bfloat16, quantize="int8", device=DEVICE))
    monkeypatch.setattr(device, "_kernel", Recorded)
    engine.compile(T, 2)
    assert set(seen) == ({"up", "down"} if T == 2 else {"sort", "up", "down", "combine"})
    assert (seen["up"]["w"], seen["up"]["scale"], seen["up"]["x"]) == (torch.int8, torch.float32, torch.bfloat16)
    assert (seen["down"]["weights"], seen["down"]["ids"]) == (torch.float32, torch.int64)
    assert seen["up"]["n"] == 2 * T
