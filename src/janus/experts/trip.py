"""Which row goes to which rank and back: from physical ids alone, the same on every rank that knows them.

A token goes once to every rank that holds one of its chosen slots, however many of them it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Leaving:
    """The rows of one rank's tokens that leave it, in order of target, then of token.

    Attributes:
        tokens_S: int64 [S], the token of each row.
        targets_S: int64 [S], the rank each row goes to.
        sent: rows for each rank.
        place_BM: int64 [B, M], where the parts of each token come back, targets ascending; S where there are fewer than
            M = min(K, G).
    """

    tokens_S: torch.Tensor
    targets_S: torch.Tensor
    sent: list[int]
    place_BM: torch.Tensor

    def merge(self, back_SH: torch.Tensor) -> torch.Tensor:
        """Sum the partial results of each token, in float32, in order of the ranks they come from.

        Args:
            back_SH: [S, H], in the order in which the rows left.

        Returns:
            float32 [B, H].
        """
        rows = torch.cat([back_SH, back_SH.new_zeros(1, back_SH.shape[1])])
        out = torch.zeros(len(self.place_BM), back_SH.shape[1], dtype=torch.float32, device=back_SH.device)
        for place_B in self.place_BM.unbind(1):  # one add per row and turn: the order is fixed on every device
            out += rows[place_B]
        return out


def targets(physical_BK: torch.Tensor, num_instances: int, slots_per_instance: int) -> torch.Tensor:
    """Which instances each token needs.

    Args:
        physical_BK: integer [B, K], physical slots; -1 is passed over.
        num_instances: G.
        slots_per_instance: C.

    Returns:
        bool [B, G].

    Example:
        >>> targets(torch.tensor([[0, 1], [5, -1]]), 3, 2).int().tolist()
        [[1, 0, 0], [0, 0, 1]]
    """
    nowhere = num_instances
    host_BK = torch.where(physical_BK >= 0, physical_BK.long() // slots_per_instance, nowhere)
    goes = torch.zeros(len(physical_BK), num_instances + 1, dtype=torch.bool, device=physical_BK.device)
    return goes.scatter_(1, host_BK, True)[:, :num_instances]


def leaving(physical_BK: torch.Tensor, num_instances: int, slots_per_instance: int) -> Leaving:
    """The rows that leave a rank, from the physical ids of its own tokens.

    Args:
        physical_BK: integer [B, K]; -1 is passed over.
        num_instances: G.
        slots_per_instance: C.

    Example:
        >>> rows = leaving(torch.tensor([[0, 1], [1, 2]]), num_instances=2, slots_per_instance=2)
        >>> rows.tokens_S.tolist(), rows.sent, rows.place_BM.tolist()
        ([0, 1, 1], [2, 1], [[0, 3], [1, 2]])
    """
    goes_BG = targets(physical_BK, num_instances, slots_per_instance)
    targets_S, tokens_S = goes_BG.t().nonzero(as_tuple=True)  # host sync here on a GPU, and below
    parts = min(physical_BK.shape[1], num_instances)
    place_BM = torch.full((len(physical_BK), parts), len(tokens_S), device=physical_BK.device)
    nth_BG = goes_BG.cumsum(1) - 1
    place_BM[tokens_S, nth_BG[tokens_S, targets_S]] = torch.arange(len(tokens_S), device=physical_BK.device)
    return Leaving(tokens_S, targets_S, goes_BG.sum(0).tolist(), place_BM)


def arriving(
    physical_NK: torch.Tensor, counts: list[int], me: int, slots_per_instance: int
) -> tuple[torch.Tensor, list[int]]:
    """The rows that arrive at a rank, from the physical ids of all tokens.

    Args:
        physical_NK: integer [N, K], the tokens of rank 0, then of rank 1, ...; -1 is passed over.
        counts: tokens of each rank; N in all.
        me: the rank.
        slots_per_instance: C.

    Returns:
        int64 [A, K], local slots of each row, -1 for a choice served elsewhere; rows from each rank.

    Example:
        >>> slots_AK, expected = arriving(torch.tensor([[0, 1], [1, 2]]), [1, 1], me=1, slots_per_instance=2)
        >>> slots_AK.tolist(), expected
        ([[-1, 0]], [0, 1])
    """
    comes_N = targets(physical_NK, len(counts), slots_per_instance)[:, me]
    of_rank = torch.tensor(counts, device=physical_NK.device)
    owner_N = torch.arange(len(counts), device=physical_NK.device).repeat_interleave(of_rank)
    slots_AK = local(physical_NK[comes_N], me, slots_per_instance)
    return slots_AK, torch.bincount(owner_N[comes_N], minlength=len(counts)).tolist()


def local(physical: torch.Tensor, instance: int | torch.Tensor, slots_per_instance: int) -> torch.Tensor:
    """Slots of an instance by their number there; -1 for those of others."""
    found = physical.long() - instance * slots_per_instance
    return torch.where((physical >= 0) & (found >= 0) & (found < slots_per_instance), found, -1)
