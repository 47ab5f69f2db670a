"""A table that was saved answers alike; a damaged file says which it is and what is wrong."""

import json

import numpy as np
import pytest

from janus import JanusError, RoutingTrace
from janus.scale import ActivationTable


@pytest.fixture(params=["trace", "counts"])
def table(request, skewed):
    given, how = skewed(3, 12), {"top_k": 2}
    if request.param == "trace":
        ids = np.random.default_rng(0).permuted(np.tile(np.arange(12), (60, 3, 1)), axis=2)[:, :, :2]
        given, how = RoutingTrace(ids, 12, source="made up", synthetic=True), {}
    return ActivationTable.build(given, [(3, 5), (4, 4)], [1, 4, 9], layers=2, samples=3, **how)


def test_saved_and_loaded_it_answers_alike(table, tmp_path):
    table.save(tmp_path / "t.npz")
    again = ActivationTable.load(tmp_path / "t.npz")
    assert (again.rows, again.batch_sizes, again.source, again.method) == (
        table.rows, table.batch_sizes, table.source, table.method,
    )  # fmt: skip
    assert again.bound(3, 4, 5) == table.bound(3, 4, 5)
    assert again.step_spread(3, 4, 5) == table.step_spread(3, 4, 5)
    assert again.extended([(6, 3)]).rows == table.extended([(6, 3)]).rows  # drawn from the same routing


def test_loading_places_nothing_anew(table, tmp_path, monkeypatch):
    table.save(tmp_path / "t.npz")
    again = ActivationTable.load(tmp_path / "t.npz")
    monkeypatch.setattr(type(again.carlo), "_place", lambda *_: pytest.fail("placed again"))
    assert again.bound(4, 4, 4) == table.bound(4, 4, 4)


def changed(path, **arrays):
    with np.load(path) as data:
        held = {name: data[name] for name in data.files}
    held |= arrays
    np.savez(path, **{name: a for name, a in held.items() if a is not None})


DAMAGE = {
    "missing": {"values": None},
    "shape": {"values": np.zeros((1, 5, 3))},
    "nan": {"correlation": np.array([np.nan, 0.0])},
    "negative": {"correlation": np.array([-1.0, 0.0])},
    "ascend": {"batch_sizes": np.array([4, 1, 9])},
    "twice": {"pairs": np.array([[3, 5], [3, 5]])},
    "float": {"pairs": np.array([[3.0, 5.0], [4.0, 4.0]])},
    "placement": {"slots0": np.zeros((2, 3, 4), dtype=np.int32)},
    "expert": {"slots0": np.full((2, 3, 5), 99, dtype=np.int32)},
    "head": {"head": np.array("{")},
    "format": {"head": np.array(json.dumps({"format": "janus.trace/1"}))},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_by_name(table, tmp_path, name):
    table.save(tmp_path / "t.npz")
    changed(tmp_path / "t.npz", **DAMAGE[name])
    with pytest.raises(JanusError, match=r"t\.npz") as error:
        ActivationTable.load(tmp_path / "t.npz")
    assert error.value.code == "activation.file"


@pytest.mark.parametrize(
    ("field", "value"),
    [("top_k", 5), ("samples", 1), ("layers", "two"), ("seed", -1), ("method", "magic"), ("placing", "best"),
     ("source", 7), ("synthetic", "no")],
)  # fmt: skip
def test_a_head_that_makes_no_sense_is_refused(table, tmp_path, field, value):
    table.save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as data:
        head = json.loads(str(data["head"]))
    if field == "top_k" and table.carlo.routing.trace is None:
        value = 50
    changed(tmp_path / "t.npz", head=np.array(json.dumps(head | {field: value})))
    with pytest.raises(JanusError) as error:
        ActivationTable.load(tmp_path / "t.npz")
    assert error.value.code == "activation.file"


def test_no_file_and_no_table(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    for name in ("none.npz", "text.npz"):
        with pytest.raises(JanusError, match=name) as error:
            ActivationTable.load(tmp_path / name)
        assert error.value.code == "activation.file"
