"""A folder of arrays that were slow to compute, by a digest of all that went into them; losing it costs time alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.types.files import read_npz, write_npz

Arrays = dict[str, npt.NDArray[Any]]
MOST_BYTES = 256 * 2**20
OFF = ("off", "0", "no", "false", "")
_FORMAT = "janus.scale.activation.store/1"


@dataclass(frozen=True)
class Store:
    """Arrays on disk, one npz per key; what cannot be read or written is as if it were not there.

    Args:
        folder: made when something is stored.
        most_bytes: files used longest ago go when all together are larger.
    """

    folder: Path
    most_bytes: int = MOST_BYTES

    @classmethod
    def of(cls, cache: bool | str | Path) -> Store | None:
        """True: `default_folder`; False: none; else the folder to use.

        Raises:
            JanusError: ``scale.cache`` for anything else.
        """
        if isinstance(cache, bool):
            folder = default_folder() if cache else None
            return folder and cls(folder)
        if not isinstance(cache, (str, Path)):
            raise JanusError("scale.cache", f"cache must be True, False or a folder, got {cache!r}")
        return cls(Path(cache))

    def get(self, key: str) -> Arrays:
        """The arrays of a key, {} when there are none."""
        file = self._file(key)
        try:
            found = read_npz(file, "scale.cache") if file.is_file() else {}
            os.utime(file)  # used now
        except (JanusError, OSError):
            return {}
        return found

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep the arrays of a key, whole or not at all, and drop the files used longest ago."""
        with contextlib.suppress(JanusError, OSError):  # a full disk or a home that is read-only
            self.folder.mkdir(parents=True, exist_ok=True)
            write_npz(self._file(key), "scale.cache", **arrays)
            self._prune()

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _prune(self) -> None:
        files = sorted(self.folder.glob("*.npz"), key=lambda f: f.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > self.most_bytes:
                file.unlink(missing_ok=True)


def default_folder() -> Path | None:
    """``JANUS_CACHE`` where set (None for "off"), else ``janus`` in ``XDG_CACHE_HOME``, else in ``~/.cache``."""
    said = os.environ.get("JANUS_CACHE")
    if said is not None:
        return None if said.strip().lower() in OFF else Path(said)
    above = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(above) if above else Path.home() / ".cache") / "janus"
    except RuntimeError:  # no home
        return None


def digest(*parts: Any) -> str:
    """32 hex digits of arrays (type, shape and values) and plain values; of this version of the code as well."""
    told = hashlib.blake2b(code().encode(), digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            told.update(f"{part.dtype.str}{part.shape}".encode())
            told.update(np.ascontiguousarray(part).tobytes())
        else:
            told.update(f"{part!r};".encode())
    return told.hexdigest()


@lru_cache(maxsize=1)
def code() -> str:
    """Digest of the source that placements, balancers and draws come from: what other code made is not reused."""
    from janus import __version__

    told = hashlib.blake2b(f"{_FORMAT} {__version__} {np.__version__}".encode(), digest_size=16)
    package = Path(__file__).resolve().parents[2]
    for pattern in ("sched/*.py", "types/*.py", "scale/activation/batches.py", "scale/activation/montecarlo.py"):
        for file in sorted(package.glob(pattern)):
            told.update(file.read_bytes())
    return told.hexdigest()
