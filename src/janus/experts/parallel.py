"""Colocated expert parallelism: every rank has its own tokens and the slots of one instance.

One call: tell each other the chosen experts, pick replicas, send each token once to every rank that it needs, run the
slots, send the partial sums back, and add them up per token in a fixed order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from janus.errors import JanusError, PeerLost
from janus.experts.members import ExpertGroup
from janus.experts.notices import DTYPES, REFUSED, TOKENS, Notice, compare, gather, swap
from janus.experts.packing import Column, pack, unpack, width
from janus.experts.slots import ExpertSlots
from janus.experts.terms import digest
from janus.experts.trip import Leaving, arriving, leaving, local
from janus.experts.view import View
from janus.sched import Assignment
from janus.types import Placement

_outside_graphs: Any = torch.compiler.disable  # its type loses `self`


@dataclass(frozen=True, eq=False)
class Trip:
    """What a rank knows of one call once all have told.

    Attributes:
        rows: that leave it.
        expected: rows from each member.
        columns: of a row: the hidden states, the routing weights, and with scope "rank" the slots.
        slots: int64 [A, K] of the rows that come, known by all with scope "batch"; else int32 [S, K] of those that leave.
    """

    rows: Leaving
    expected: list[int]
    columns: list[Column]
    slots: torch.Tensor


class ParallelExperts:
    """One MoE layer over a group of ranks; holds no weights.

    Args:
        group: the ranks.
        placement: one instance per rank.
        layer: tells layers apart.
        check: refuses a wrong call by a `JanusError`.
        choose: logical ids of a batch -> its `Assignment`; the same on every rank.

    Attributes:
        last: of the latest batch: of all ranks, or with scope "rank" of this one; None where it had no tokens.
    """

    def __init__(
        self,
        group: ExpertGroup,
        placement: Placement,
        layer: int,
        check: Callable[..., None],
        choose: Callable[[torch.Tensor], Assignment],
    ) -> None:
        self.group, self.placement, self.check, self.choose = group, placement, check, choose
        self.shape = placement.num_instances, placement.slots_per_instance
        # 28 bits of the placement: while it is replaced, ranks may be at different ones
        self._plain = Notice(REFUSED, layer=layer, placement=int(digest(placement.slots.tolist())[:7], 16))
        self.last: Assignment | None = None

    def serving(self, placement: Placement) -> ParallelExperts:
        """This one, or one with the same options for another placement."""
        if placement is self.placement:
            return self
        return ParallelExperts(self.group, placement, self._plain.layer, self.check, self.choose)

    @_outside_graphs  # exchanges between processes have no place in one
    def run(
        self,
        slots: ExpertSlots,
        view: View,
        hidden: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
    ) -> torch.Tensor:
        """As `JanusMoELayer.forward`; every member calls it, those without tokens with B = 0.

        Args:
            slots: of this rank's instance.
            view: where its physical slots are stored.
            hidden: [B, H], B differs from rank to rank.
            topk_ids: [B, K].
            topk_weights: [B, K].
        """
        with self._telling(slots.device):
            self.check(hidden, topk_ids, topk_weights)
            _refuse_gradients(hidden, topk_weights, *slots.parameters())
            mine = self._plain.of_call(hidden, topk_ids, topk_weights)
        trip = (self._all if self.group.scope == "batch" else self._own)(mine, topk_ids, hidden.shape[1])
        if trip is None:
            return torch.zeros_like(hidden)
        with self.group.between_exchanges():
            x_AH, slots_AK, weights_AK = self._dispatch(trip, hidden, topk_weights)
            first = self.group.me * self.shape[1]
            stored_AK = view.local(torch.where(slots_AK >= 0, slots_AK.long() + first, -1))
            y_AH = slots(x_AH, stored_AK, weights_AK)
            return self._combine(trip, y_AH).to(hidden.dtype)

    def _all(self, mine: Notice, ids_BK: torch.Tensor, hidden_size: int) -> Trip | None:
        """Scope "batch": every rank balances the tokens of all, so nobody need be told how many rows come."""
        said, ids_NK = gather(self.group, mine, ids_BK)
        columns = _columns(said, hidden_size)
        self.last = self.choose(ids_NK) if columns else None
        if self.last is None:
            return None
        (instances, width), me, counts = self.shape, self.group.me, [notice.tokens for notice in said]
        physical_NK = self.last.physical_ids
        slots_AK, expected = arriving(physical_NK, counts, me, width)
        return Trip(leaving(physical_NK.split(counts)[me], instances, width), expected, columns, slots_AK)

    def _own(self, mine: Notice, ids_BK: torch.Tensor, hidden_size: int) -> Trip | None:
        """Scope "rank": each rank balances its own tokens and tells each other one how many rows come."""
        with self._telling(ids_BK.device):
            self.last = self.choose(ids_BK) if len(ids_BK) else None
        physical_BK = ids_BK if self.last is None else self.last.physical_ids
        rows = leaving(physical_BK, *self.shape)
        said = self._swap([replace(mine, tokens=n) for n in rows.sent], ids_BK.device)
        columns = _columns(said, hidden_size)
        if not columns:
            return None
        slots_SK = local(physical_BK[rows.tokens_S], rows.targets_S[:, None], self.shape[1]).to(torch.int32)
        columns.append((columns[1][0], torch.int32))
        return Trip(rows, [notice.tokens for notice in said], columns, slots_SK)

    def _dispatch(self, trip: Trip, hidden_BH: torch.Tensor, weights_BK: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = trip.rows
        sent = torch.empty(0, width(trip.columns), dtype=torch.uint8, device=hidden_BH.device)
        if len(rows.tokens_S):
            parts = [hidden_BH[rows.tokens_S], weights_BK[rows.tokens_S], trip.slots]
            sent = pack(parts[: len(trip.columns)])
        got = sent.new_empty(sum(trip.expected), sent.shape[1])
        self.group.exchange(got, sent, trip.expected, rows.sent)
        x_AH, weights_AK, *slots = unpack(got, trip.columns)
        return x_AH, slots[0] if slots else trip.slots, weights_AK

    def _combine(self, trip: Trip, y_AH: torch.Tensor) -> torch.Tensor:
        back_SH = y_AH.new_empty(len(trip.rows.tokens_S), y_AH.shape[1])
        self.group.exchange(back_SH, y_AH.contiguous(), trip.rows.sent, trip.expected)
        return trip.rows.merge(back_SH)

    def _swap(self, notices: list[Notice], device: torch.device) -> list[Notice]:
        return compare(self.group, swap(self.group, [notice.words(device) for notice in notices]).tolist())

    @contextlib.contextmanager
    def _telling(self, device: torch.device) -> Iterator[None]:
        """A refusal in here is told to the others, who wait for this rank."""
        try:
            yield
        except JanusError:
            with contextlib.suppress(JanusError, PeerLost):
                if self.group.scope == "batch":
                    gather(self.group, self._plain, torch.empty(0, 1, dtype=torch.int32, device=device))
                else:
                    self._swap([self._plain] * self.group.world, device)
            raise


def _columns(said: list[Notice], hidden_size: int) -> list[Column]:
    """What a row holds, by the first rank that has tokens; nothing where none has any."""
    for notice in said:
        if notice.state == TOKENS:
            return [(hidden_size, DTYPES[notice.dtype]), (notice.top_k, DTYPES[notice.weights_dtype])]
    return []


def _refuse_gradients(*tensors: torch.Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        rule = "experts on several ranks take no gradients"
        raise JanusError("layer.grad", f"{rule}, but a tensor requires grad; call under torch.inference_mode()")
