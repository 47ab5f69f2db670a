"""What is fixed for batches of one size: constants of the kernels, sizes of the grids, shapes of the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from janus.experts.activation import Activation
from janus.experts.tuning import Cut, Problem
from janus.types.rounding import next_power_of_2

FOUND_BY_ALL = 64  # entries up to which every program finds the tiles itself: a square of comparisons
SUMMED_BY_LAST = 64  # tokens up to which the last program of a block of columns adds up
TOKENS_SUMMED, COLUMNS_SUMMED = 4, 256  # by a program of the kernel that adds up many
FUSED = {"enable_fp_fusion": True}  # multiply-adds, said at every launch: Triton's own default is about to change
ONE_WARP_EACH = 128  # slots that a warp of the sorting kernel counts without spilling


@dataclass(frozen=True)
class Weights:
    """How the weights lie.

    Attributes:
        transposed: [S, in, out] instead of [S, out, in].
        biased: both projections have a bias.
        share: outputs that share a scale; 0 where weights are not quantized.
    """

    transposed: bool = False
    biased: bool = False
    share: int = 0


@dataclass(frozen=True)
class Launches:
    """The launches of one batch: constants and grid of each kernel.

    Attributes:
        cap: most tiles there can be.
        sorts: tiles are found by `kernel.sort`, in a launch of its own.
        combines: choices are added up by `kernel.combine`, in a launch of its own.
        grids: kernel -> programs.
        fixed: kernel -> constants, warps and stages.
        shapes: of the plan, the order, what stands between the projections, and the parts of sums.
    """

    cap: int
    sorts: bool
    combines: bool
    grids: dict[str, tuple[int, ...]]
    fixed: dict[str, dict[str, Any]]
    shapes: tuple[tuple[int, ...], ...]


def launches(problem: Problem, weights: Weights, activation: Activation | None, cut: Cut) -> Launches:
    """All of it, from sizes alone.

    Args:
        problem: sizes of the batch.
        weights: how the weights lie.
        activation: what `kernel.up` computes; None leaves it to the module, between the two projections.
        cut: how the work is cut.
    """
    T, K, S, H, F, pair = *_sizes(problem), problem.pair
    n, BM = T * K, cut.rows
    cap = most_tiles(n, S, BM)
    # a slot hardly ever has more entries than there are tokens: programs walk on to what this leaves out
    tiles = min(cap, min(S, n) * -(-T // BM))
    SP, BN = max(32, next_power_of_2(S)), min(COLUMNS_SUMMED, next_power_of_2(H))
    combines = T > SUMMED_BY_LAST
    early = FUSED | {"EARLY": cut.early} | ({"launch_pdl": True} if cut.early else {})
    common = {
        "K": K, "H": H, "F": F, "TRANSPOSED": weights.transposed, "BIAS": weights.biased, "BO": weights.share,
        "NP": max(16, next_power_of_2(n)) if n <= FOUND_BY_ALL else 0, "BM": BM, "GROUP": cut.group, **early,
    }  # fmt: skip
    sums = {"SPLIT": cut.split, "SUMS": not combines, "BT": 1 if T == 1 else 16}
    added = {"K": K, "H": H, "SPLIT": cut.split, "BT": TOKENS_SUMMED, "BN": BN, "num_warps": 4}
    return Launches(
        cap, n > FOUND_BY_ALL, combines,
        grids={
            "sort": (min(S, n),),
            "up": (tiles * -(-F * pair // cut.up.columns),),
            "down": (tiles * -(-H // cut.down.columns) * cut.split,),
            "combine": (-(-T // TOKENS_SUMMED), -(-H // BN)),
        },
        fixed={
            "sort": {"SP": SP, "BM": BM, "BLOCK": 1024, "num_warps": max(4, min(16, SP // ONE_WARP_EACH)), **early},
            "up": common | _formula(activation, pair) | _tiles(cut, "up", pair),
            "down": common | sums | _tiles(cut, "down", 1),
            "combine": added | early,
        },
        shapes=((1 + 3 * cap,), (n,), (n, F if activation else F * pair), (cut.split, n, H)),
    )  # fmt: skip


def most_tiles(n: int, slots: int, rows: int) -> int:
    """Tiles when as many slots as can be are active, and the rest of the entries fill whole ones.

    Example:
        >>> most_tiles(40, slots=3, rows=16)  # 1 + 1 + 38 entries: one, one and three tiles
        5
    """
    active = min(n, slots)
    return active + (n - active) // rows


def needs(made: Launches, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """What the workspace has to hold."""
    return list(zip(made.shapes, (torch.int32, torch.int32, dtype, torch.float32), strict=True))


def _sizes(problem: Problem) -> tuple[int, int, int, int, int]:
    return problem.tokens, problem.choices, problem.slots, problem.hidden, problem.inner


def _tiles(cut: Cut, projection: str, pair: int) -> dict[str, Any]:
    how = getattr(cut, projection)
    return {
        "BN": how.columns // pair, "BK": how.depth, "STAGES": how.stages, "num_warps": how.warps,
        "num_stages": how.stages,
    }  # fmt: skip


def _formula(act: Activation | None, pair: int) -> dict[str, Any]:
    if act is None:
        return {
            "KIND": "", "ALPHA": 1.0, "CLAMP": "", "LIMIT": 0.0, "SHIFT": 0.0, "GATED": pair == 2, "INTERLEAVED": False
        }  # fmt: skip
    return {
        "KIND": act.kind, "ALPHA": act.alpha, "CLAMP": act.clamp, "LIMIT": act.limit if act.clamp else 0.0,
        "SHIFT": act.shift, "GATED": act.gated, "INTERLEAVED": act.interleaved,
    }  # fmt: skip
