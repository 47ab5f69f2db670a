"""How the work of the GPU kernels is cut: a committed table of measured cuts, and the rule where it has none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from janus.types.rounding import next_power_of_2

TABLE = Path(__file__).resolve().parents[1] / "data" / "experts_tuning.json"
IN_FLIGHT = 96 << 10  # bytes of tiles one program keeps on their way: two programs fit a multiprocessor of 228 KiB


@dataclass(frozen=True)
class Tiles:
    """How one projection is cut.

    Attributes:
        columns: columns of the projection that a program holds; of gates and ups together.
        depth: length of a step along the sum.
        warps: of a program.
        stages: steps on their way at once.
    """

    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Cut:
    """How a batch is cut.

    Attributes:
        rows: entries of one slot that a program takes together; a slot with more has its weights read once more.
        up: the first projection.
        down: the second.
        split: programs that share the length of one sum of the second.
        group: tiles whose blocks of columns run next to each other.
        early: a kernel is launched while the one before it ends, and waits on the device (compute capability 9.0).
    """

    rows: int
    up: Tiles
    down: Tiles
    split: int = 1
    group: int = 1
    early: bool = False


@dataclass(frozen=True)
class Problem:
    """What a cut depends on; ids do not belong to it, since the host never reads them.

    Attributes:
        tokens: T.
        choices: K.
        slots: S.
        hidden: H.
        inner: F.
        item: bytes of an activation: 2 or 4.
        stored: bytes of a weight: 1, 2 or 4.
        pair: 2 where gate and up are one projection, else 1.
        processors: multiprocessors of the GPU.
        shared: bytes of shared memory that a program may have.
    """

    tokens: int
    choices: int
    slots: int
    hidden: int
    inner: int
    item: int = 2
    stored: int = 2
    pair: int = 2
    processors: int = 132
    shared: int = 227 << 10

    @property
    def active(self) -> int:
        """Most slots that can be active."""
        return max(1, min(self.slots, self.tokens * self.choices))

    @property
    def rows(self) -> int:
        """Entries that a slot hardly exceeds: twice the mean and a few, and never more than tokens."""
        return max(1, min(self.tokens, 2 * self.tokens * self.choices // self.active + 4))


def cut_of(problem: Problem, device: str, form: str) -> Cut:
    """The measured cut of the nearest smaller key of the table; the rule's where there is none.

    Args:
        problem: sizes.
        device: compute capability, such as ``"9.0"``.
        form: of the weights: ``"bfloat16"``, ``"float16"``, ``"float32"``, ``"int8"``, ``"fp8"``.
    """
    found = table(TABLE).get(key_of(problem, device, form))
    return found if found else rule(problem)


def key_of(problem: Problem, device: str, form: str) -> str:
    """The table's key: active slots and entries of a slot as powers of two that are not smaller.

    Example:
        >>> key_of(Problem(tokens=8, choices=8, slots=128, hidden=2048, inner=768), "9.0", "bfloat16")
        '9.0 bfloat16 2048x768 active<=64 rows<=8'
    """
    active, rows = next_power_of_2(problem.active), next_power_of_2(problem.rows)
    return f"{device} {form} {problem.hidden}x{problem.inner} active<={active} rows<={rows}"


@cache
def table(path: Path) -> dict[str, Cut]:
    """The cuts of a file; what it says of itself stays in the file."""
    return {key: cut_from(entry) for key, entry in json.loads(path.read_text())["cuts"].items()}


def cut_from(entry: dict[str, Any]) -> Cut:
    """A cut as the table holds it."""
    fields: dict[str, Any] = entry | {side: Tiles(**entry[side]) for side in ("up", "down")}
    return Cut(**fields)


def cut_to(cut: Cut) -> dict[str, Any]:
    """What `cut_from` reads."""
    return asdict(cut)


def rule(problem: Problem) -> Cut:
    """A cut by reasoning.

    Few entries per slot: time is that of reading weights. Rows are as many as a slot hardly exceeds; columns as many as
    still give every multiprocessor two programs, so that enough bytes are on their way; the second sum is split where
    even the narrowest columns give too few. Many: time is that of the products, and tiles are square.
    """
    rows = next((m for m in (16, 32, 64) if problem.rows <= m), 128 if problem.item == 2 else 64)
    wide = 128 if rows >= 64 and problem.item == 2 else 64
    up = _columns(problem, problem.pair * problem.inner, wide)
    down = _columns(problem, problem.hidden, wide)
    split = 1
    while (
        split < 4
        and problem.active * -(-problem.hidden // down) * split < 2 * problem.processors
        and problem.inner // split >= 256
    ):
        split *= 2
    return Cut(
        rows, _tiles(problem, rows, up, problem.hidden), _tiles(problem, rows, down, problem.inner), split,
        8 if rows >= 64 else 1,
    )  # fmt: skip


def _columns(problem: Problem, width: int, wide: int) -> int:
    enough = 2 * problem.processors
    return next((c for c in (wide, wide // 2) if problem.active * -(-width // c) >= enough), 32)


def _tiles(problem: Problem, rows: int, columns: int, length: int) -> Tiles:
    depth = 64 if rows >= 64 or length % 128 else 128
    if problem.item == 4:
        depth //= 2  # as many bytes, half the numbers
    step = depth * (rows * problem.item + columns * problem.stored)
    room = min(IN_FLIGHT * (2 if rows > 64 else 1), problem.shared * 7 // 8)
    return Tiles(columns, depth, 8 if rows > 64 else 4, max(2, min(6, room // step)))
