"""The folder of computed arrays: what was put is got, and whatever is wrong with it costs time alone."""

import numpy as np
import pytest

from janus import JanusError
from janus.scale import ActivationTable
from janus.scale.activation import store
from janus.scale.activation.store import Store, code, default_folder, digest

ARRAYS = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array([0.5])}


def test_what_was_put_is_got(tmp_path):
    kept = Store(tmp_path / "new" / "folder")
    assert kept.get("k") == {}
    kept.put("k", ARRAYS)
    again = Store(tmp_path / "new" / "folder").get("k")
    assert {name: (a.dtype, a.tolist()) for name, a in again.items()} == {
        name: (a.dtype, a.tolist()) for name, a in ARRAYS.items()
    }


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip", b"text", "half"])
def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path, damage):
    kept = Store(tmp_path)
    kept.put("k", ARRAYS)
    file = tmp_path / "k.npz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage == "half" else damage)
    assert kept.get("k") == {}
    kept.put("k", ARRAYS)
    assert set(kept.get("k")) == {"a", "b"}


def test_pickled_objects_are_not_read(tmp_path):
    np.savez(tmp_path / "k.npz", a=np.array([{"code": 1}], dtype=object))
    assert Store(tmp_path).get("k") == {}


def test_files_used_longest_ago_go_first(tmp_path):
    import os

    kept = Store(tmp_path, most_bytes=5000)
    noise = np.random.default_rng(0).integers(0, 2**31, 300)  # about 2 kB on disk
    for age, key in enumerate(("oldest", "middle")):
        kept.put(key, {"a": noise})
        os.utime(tmp_path / f"{key}.npz", (1000 + age, 1000 + age))
    kept.get("oldest")  # used again: the other one is now the oldest
    kept.put("new", {"a": noise})
    assert sorted(f.stem for f in tmp_path.iterdir()) == ["new", "oldest"]


def test_a_folder_that_cannot_be_made_costs_time_alone(tmp_path, skewed):
    blocked = tmp_path / "file"
    blocked.write_text("")
    table = ActivationTable.build(skewed(1, 12), [(3, 5)], [4], top_k=2, cache=blocked / "below")
    assert table.at(3, 4).a_max >= 1


def test_where_the_folder_is(monkeypatch, tmp_path):
    for name in ("JANUS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "janus"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "janus"
    monkeypatch.setenv("JANUS_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"
    assert Store.of(True) == Store(tmp_path / "own")
    monkeypatch.setenv("JANUS_CACHE", "Off")
    assert default_folder() is None
    assert Store.of(True) is None
    assert Store.of(False) is None
    assert Store.of(str(tmp_path)) == Store(tmp_path)
    with pytest.raises(JanusError) as error:
        Store.of(3)
    assert error.value.code == "scale.cache"


def test_a_digest_knows_types_shapes_values_and_code(monkeypatch):
    a = np.arange(6)
    told = {digest(a), digest(a.reshape(2, 3)), digest(a.astype(np.int32)), digest(a + 1), digest("a"), digest("a", 1)}
    assert len(told) == 6
    assert digest(a) == digest(a.copy())
    before = digest(a)
    assert code() == code()
    monkeypatch.setattr(store, "code", lambda: "another version")
    assert digest(a) != before
