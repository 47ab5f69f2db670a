"""Reading and writing files for the nouns: no pickle, no half-written file, one error code per noun."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError

T = TypeVar("T")
NPZ_MAGIC = b"PK"  # an npz is a zip
# Larger files are refused before they are read: a mistaken path or a hostile file must not fill the memory. Parsed
# text takes some ten times its size; what an npz holds is counted as its members say they unpack.
MAX_TEXT_BYTES = 512 * 2**20
MAX_JSON_BYTES = 64 * 2**20
MAX_ARRAY_BYTES = 2**30


def read_head(path: str | Path, code: str) -> bytes:
    """The first 4 bytes, to tell formats apart; raises the `JanusError` of an unreadable file."""
    return _read(path, code, _first_bytes)


def read_text(path: str | Path, code: str, limit: int = MAX_TEXT_BYTES) -> str:
    """The whole file as text; bytes that are no UTF-8 become U+FFFD, so that a parser can name their line."""

    def read(file: Path) -> str:
        with file.open("rb") as opened:
            data = opened.read(limit + 1)
        if len(data) > limit:
            size = file.stat().st_size
            raise JanusError(code, f"{path} must be at most {limit} bytes, it has {size}; is it the right file?")
        return data.decode("utf-8-sig", errors="replace")

    return _read(path, code, read)


def read_json(path: str | Path, code: str, limit: int = MAX_JSON_BYTES) -> Any:
    """The value a JSON file holds; NaN and Infinity are no JSON."""
    text = read_text(path, code, limit)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise JanusError(code, f"{path} is not JSON: {_brief(error)}") from None


def read_npz(path: str | Path, code: str) -> dict[str, npt.NDArray[Any]]:
    """Every array of an npz, none of them unpickled."""
    if read_head(path, code)[:2] != NPZ_MAGIC:
        raise JanusError(code, f"{path} is not an npz (a zip of NumPy arrays); it starts with other bytes")
    try:
        _check_unpacked(path, code)
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as data:  # np.load leaks its own handle
            arrays = {name: data[name] for name in data.files}
    except JanusError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise a dozen kinds on corrupt bytes
        raise JanusError(code, f"{path} cannot be read as an npz: {_brief(error)}") from None
    foreign = [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]
    if foreign:
        raise JanusError(code, f"{path} is a zip, not an npz: member {foreign[0]!r} is no NumPy array")
    return arrays


def write_text(path: str | Path, code: str, text: str) -> None:
    """Write text, whole or not at all."""
    _write(path, code, text.encode())


def write_npz(path: str | Path, code: str, **arrays: Any) -> None:
    """Write a compressed npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    _write(path, code, buffer.getvalue())


@contextlib.contextmanager
def reading(path: str | Path, code: str) -> Iterator[None]:
    """Give every `JanusError` raised inside this file's code and name: what is in a file is the file's mistake."""
    try:
        yield
    except JanusError as error:
        raise JanusError(code, f"{path}: {error.message}") from error


def _check_unpacked(path: str | Path, code: str) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())  # zipfile never unpacks more than this
    if size > MAX_ARRAY_BYTES:
        raise JanusError(code, f"{path} must unpack to at most {MAX_ARRAY_BYTES} bytes, it says {size}; split it")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _read(path: str | Path, code: str, read: Callable[[Path], T]) -> T:
    file = _checked(path, code)
    try:
        if not file.is_file():  # a device or a pipe could be endless
            kind = "is not a regular file" if file.exists() else "does not exist"
            raise JanusError(code, f"{path} {kind}; give the path of a file")
        return read(file)
    except (OSError, ValueError) as error:
        if isinstance(error, JanusError):
            raise
        raise JanusError(code, f"cannot read {path}: {error}") from None


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"  # some quote the corrupt bytes at length


def _first_bytes(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)


def _write(path: str | Path, code: str, data: bytes) -> None:
    file = _checked(path, code)
    part = file.with_name(f".{file.name}.{os.getpid()}.part") if file.name else file
    try:
        part.write_bytes(data)
        part.replace(file)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            part.unlink(missing_ok=True)
        raise JanusError(code, f"cannot write {path}: {error}") from None


def _checked(path: str | Path, code: str) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise JanusError(code, f"a path must be a str or a Path, got {type(path).__name__}") from None
