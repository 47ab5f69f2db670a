"""What is read from files is bounded and plain: sizes, zips that unpack to more than they may, numbers that are none."""

import io
import zipfile

import numpy as np
import pytest

from janus import JanusError
from janus.types import RoutingTrace, files
from janus.types.files import read_json, read_npz, read_text


def refusal(read, *args):
    with pytest.raises(JanusError) as error:
        read(*args)
    assert error.value.code == "x.file"
    return error.value.message


def test_a_text_may_have_as_many_bytes_as_the_limit_and_no_more(tmp_path):
    path = tmp_path / "t"
    path.write_bytes("é12".encode())
    assert read_text(path, "x.file", limit=4) == "é12"
    assert "must be at most 3 bytes, it has 4" in refusal(read_text, path, "x.file", 3)


def test_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    path = tmp_path / "t"
    path.write_bytes(b"\xef\xbb\xbfa\n\xff")
    assert read_text(path, "x.file") == "a\n\ufffd"


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "[" * 200_000, "9" * 5000, "", "{"])
def test_what_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "j").write_text(text)
    assert "is not JSON" in refusal(read_json, tmp_path / "j", "x.file")


def test_a_zip_that_unpacks_to_more_than_it_may_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros(100_000, dtype=np.int8))
    assert path.stat().st_size < 2000
    assert len(read_npz(path, "x.file")["a"]) == 100_000
    monkeypatch.setattr(files, "MAX_ARRAY_BYTES", 50_000)
    monkeypatch.setattr(np, "load", None)  # refused before anything is unpacked
    assert "must unpack to at most 50000 bytes" in refusal(read_npz, path, "x.file")


def test_a_member_never_gives_more_than_it_says(tmp_path):
    """A zip that says less than it holds: the size that was checked is all that is read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        member = io.BytesIO()
        np.save(member, np.zeros(100_000, dtype=np.int8))
        archive.writestr("a.npy", member.getvalue())
    size = len(member.getvalue()).to_bytes(4, "little")
    (tmp_path / "lie.npz").write_bytes(buffer.getvalue().replace(size, (200).to_bytes(4, "little")))
    assert "cannot be read as an npz" in refusal(read_npz, tmp_path / "lie.npz", "x.file")


def test_a_pickle_in_an_npz_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    np.savez(tmp_path / "p.npz", ids=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(JanusError) as error:
        RoutingTrace.load(tmp_path / "p.npz")
    assert error.value.code == "routing.file"
    assert not (tmp_path / "ran").exists()
