"""The two kinds of text the tiny model knows: Shakespeare (prose) and CPython's standard library (code), as bytes."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

KINDS = ("prose", "code")
DEFAULT_TEXT = Path(__file__).parents[3] / "shared" / "data" / "text" / "tinyshakespeare.txt"
TRAIN_BYTES = 1_000_000
HELDOUT_BYTES = 110_000
HELDOUT_FILE_BYTES = 8_000  # of one file, so that a few long ones do not fill the held-out code


@dataclass(frozen=True)
class Corpus:
    """Training and held-out bytes of one kind, each a uint8 array whose values are the token ids themselves."""

    train: np.ndarray
    heldout: np.ndarray


def load(text: Path) -> dict[str, Corpus]:
    """Both kinds by name, about 1.0 MB to train on and 0.11 MB held out of each.

    `text` is the file of prose; the code is read from the standard library of the running Python, so another Python
    version gives slightly other code. Raises FileNotFoundError, naming the remedy, where `text` is absent.
    """
    if not text.is_file():
        raise FileNotFoundError(
            f"The prose to train on must be a text file; {text} is not there. "
            "Save data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn and pass it with --text PATH."
        )
    return {"prose": _prose(text.read_bytes()), "code": _code(_stdlib_files())}


def load_or_exit(text: Path) -> dict[str, Corpus]:
    """`load` for a command line: a missing file becomes a usage error of `--text`."""
    try:
        return load(text)
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error), param_hint="--text") from error


def _prose(data: bytes) -> Corpus:
    """The last HELDOUT_BYTES are held out: the end of the file is other plays, not other lines of the same scene."""
    return Corpus(_as_ids(data[:-HELDOUT_BYTES][:TRAIN_BYTES]), _as_ids(data[-HELDOUT_BYTES:]))


def _code(files: list[Path]) -> Corpus:
    """Every fourth file trains; held-out files come from between them, so that no file is on both sides."""
    train = b"".join(f.read_bytes() for f in files[0::4])
    heldout = b"".join(f.read_bytes()[:HELDOUT_FILE_BYTES] for f in files[2::8])
    return Corpus(_as_ids(train[:TRAIN_BYTES]), _as_ids(heldout[:HELDOUT_BYTES]))


def _stdlib_files() -> list[Path]:
    # _sysconfigdata is generated per machine (compiler flags, build paths): it would make the corpus differ by host.
    files = Path(sysconfig.get_path("stdlib")).glob("*.py")
    return sorted((f for f in files if not f.name.startswith("_sysconfigdata")), key=lambda f: f.name)


def _as_ids(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)
