"""Routing and count files: ours, the real recordings, and everything that is neither."""

import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_strategies import NONSENSE, only_janus_error, refuses, routing_traces

from janus.types import RoutingTrace, read_cross_layer_counts, read_expert_counts, sample


@given(routing_traces())
@settings(max_examples=60, deadline=None)
def test_a_trace_survives_a_file(trace):
    with tempfile.TemporaryDirectory() as folder:
        trace.save(path := Path(folder) / "r.npz")
        loaded = RoutingTrace.load(path)
    assert loaded == trace
    assert loaded.ids.dtype == np.int16
    assert (loaded.step is None) == (trace.step is None)


@pytest.mark.parametrize("experts", [256, 257])
def test_the_largest_id_survives_the_narrow_form(tmp_path, experts):
    RoutingTrace([[[experts - 1]]], experts).save(tmp_path / "r.npz")
    assert RoutingTrace.load(tmp_path / "r.npz").ids.tolist() == [[[experts - 1]]]


@given(cut=st.floats(0, 1), flip=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=80, deadline=None)
def test_a_damaged_file_is_refused_or_read_right(cut, flip, bit):
    trace = RoutingTrace(np.arange(24).reshape(4, 3, 2), 24, source="x")
    with tempfile.TemporaryDirectory() as folder:
        trace.save(path := Path(folder) / "r.npz")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(cut * (len(whole) - 1))])
        refuses("routing.file", str(path), RoutingTrace.load, path)
        flipped = bytearray(whole)
        flipped[flip % len(whole)] ^= 1 << bit
        path.write_bytes(flipped)
        only_janus_error("routing.file", RoutingTrace.load, path)


@given(NONSENSE, NONSENSE)
@settings(max_examples=60, deadline=None)
def test_nonsense_counts_are_refused(first, second):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.json"
        path.write_text(json.dumps({"a": first, "b": second}, default=str, skipkeys=True))
        only_janus_error("routing.file", read_expert_counts, path)
        only_janus_error("routing.file", read_cross_layer_counts, path)
    only_janus_error("routing.file", read_expert_counts, first)
    only_janus_error("routing.file", RoutingTrace.load, second)


def written(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    refuses("routing.file", "is not an npz", RoutingTrace.load, tmp_path / "pickle.npz")
    np.savez(tmp_path / "object.npz", allow_pickle=True, ids=np.array([Bomb()], dtype=object), format="janus.routing/1")
    refuses("routing.file", "cannot be read as an npz", RoutingTrace.load, tmp_path / "object.npz")
    assert not (tmp_path / "exploded").exists()


def test_foreign_files_are_refused_with_what_was_found(tmp_path):
    refuses("routing.file", "found a, b", RoutingTrace.load, written(tmp_path / "a.npz", b=[1], a=[2]))
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    refuses("routing.file", "no NumPy array", RoutingTrace.load, tmp_path / "z.npz")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 2)))
    (tmp_path / "one.npy").write_bytes(buffer.getvalue())
    refuses("routing.file", "is not an npz", RoutingTrace.load, tmp_path / "one.npy")
    (tmp_path / "empty.npz").write_bytes(b"")
    refuses("routing.file", "is not an npz", RoutingTrace.load, tmp_path / "empty.npz")
    refuses("routing.file", "not a regular file", RoutingTrace.load, tmp_path)
    refuses("routing.file", "does not exist", RoutingTrace.load, tmp_path / "absent.npz")


OURS = {
    "format": "janus.routing/1",
    "num_experts": 4,
    "source": "s",
    "synthetic": False,
    "ids": np.zeros((1, 1, 1), int),
}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "janus.routing/9"},
        {"num_experts": [4, 4]},
        {"num_experts": 4.0},
        {"num_experts": 0},
        {"synthetic": 1},
        {"ids": np.zeros((1, 1), int)},
        {"ids": np.full((1, 1, 1), 4)},
        {"request": [0]},
        {"request": [0], "step": [0.5]},
    ],
)
def test_a_bad_field_is_refused_with_the_files_name(tmp_path, change):
    assert RoutingTrace.load(written(tmp_path / "good.npz", **OURS)).num_experts == 4
    path = written(tmp_path / "bad.npz", **(OURS | change))
    refuses("routing.file", str(path), RoutingTrace.load, path)


def test_a_missing_field_is_refused(tmp_path):
    for name in OURS:
        fields = {key: value for key, value in OURS.items() if key != name}
        refuses("routing.file", "", RoutingTrace.load, written(tmp_path / "bad.npz", **fields))


def test_a_recording_by_request_and_step(tmp_path):
    topk = np.arange(2 * 3 * 1 * 2, dtype=np.uint8).reshape(2, 3, 1, 2)
    path = written(tmp_path / "topk.npz", topk=topk)
    assert RoutingTrace.load(path).num_experts == 12
    assert RoutingTrace.load(path, num_experts=16).num_experts == 16
    refuses("routing.file", "0..7; token", RoutingTrace.load, path, num_experts=8)
    refuses("routing.file", "num_experts must be", RoutingTrace.load, path, num_experts="8")
    refuses("routing.file", "leave it out", RoutingTrace.load, written(tmp_path / "o.npz", **OURS), num_experts=5)
    for bad in (topk[0], topk.astype(float), topk[:0]):
        refuses("routing.file", "topk", RoutingTrace.load, written(tmp_path / "bad.npz", topk=bad))


def test_counts_leave_out_dense_layers(tmp_path):
    path = written(tmp_path / "c.npz", one=[[0, 0], [3, 1], [0, 2]], two=[[0, 0], [0, 0], [1, 1]])
    counts = read_expert_counts(path)
    assert counts["one"].tolist() == [[3, 1], [0, 2]]
    assert counts["two"].tolist() == [[0, 0], [1, 1]]  # idle in this recording, not dense
    for bad in ([[1.5]], [[-1]], [1], [[]], [[2**60]], [["1"]], [[True]]):
        (tmp_path / "c.json").write_text(json.dumps({"one": bad}))
        refuses("routing.file", "counts 'one' must be integers >= 0", read_expert_counts, tmp_path / "c.json")
    for bad in ("[]", "{}", "3", "nonsense", ""):
        (tmp_path / "c.json").write_text(bad)
        refuses("routing.file", "c.json", read_expert_counts, tmp_path / "c.json")


def test_the_shipped_counts():
    counts = read_expert_counts(sample("olmoe-mixtral-counts"))
    assert len(counts) == 13
    assert counts["olmoe/arxiv"].shape == (3, 64)
    assert counts["mixtral8x7b/c4"].sum(axis=1).tolist() == [417_792] * 3


def test_joint_counts_must_be_square(tmp_path):
    path = written(tmp_path / "x.npz", a__b=np.zeros((1, 2, 3), int))
    refuses("routing.file", "'a/b' must be [L - 1, E, E]", read_cross_layer_counts, path)


def test_the_recorded_routing(shared_data):
    trace = RoutingTrace.load(shared_data / "routing/gptoss20b.npz")
    assert (trace.num_tokens, trace.num_layers, trace.top_k, trace.num_experts) == (192 * 128, 24, 4, 32)
    raw = np.load(shared_data / "routing/gptoss20b.npz")["topk"]
    assert (trace.ids[(trace.request == 7) & (trace.step == 100)][0] == raw[7, 100]).all()
    small = RoutingTrace.load(sample("gptoss20b-routing"))
    for at in (0, 777, small.num_tokens - 1):
        assert (small.ids[at] == raw[small.request[at], small.step[at]]).all()


def test_the_recorded_loads(shared_data):
    loads = read_expert_counts(shared_data / "expert_load/deepseek_v3_LOCAL_ONLY.npz")
    assert len(loads) == 4
    assert {value.shape for value in loads.values()} == {(58, 256)}
    for value in loads.values():
        assert 3 < np.median(value.max(axis=1) / value.mean(axis=1)) < 9
    trace = RoutingTrace.from_counts(loads["decode_in1000out1000"], 8, tokens=2000)
    active = [
        len(np.unique(trace.sample(64, np.random.default_rng(s))[:, layer])) for s in range(5) for layer in range(58)
    ]
    assert 185 < np.mean(active) < 205  # "198 of 256 experts are active at 64 tokens", by the same marginals


def test_the_recorded_joint_counts_have_the_recorded_marginals(shared_data):
    joint = read_cross_layer_counts(shared_data / "expert_load/olmoe_mixtral_cross_layer.npz")
    counts = read_expert_counts(shared_data / "expert_load/olmoe_mixtral_counts.json")
    assert len(joint) == 10
    for name, pairs in joint.items():
        assert (pairs.sum(axis=2) == counts[name][:2]).all()
        assert (pairs.sum(axis=1) == counts[name][1:]).all()
