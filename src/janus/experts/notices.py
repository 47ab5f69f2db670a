"""What the ranks tell each other before the rows of a call: how many tokens, of what kind, and which experts they chose.

A notice has a fixed size, so ranks whose calls do not fit together hear it from each other and refuse alike. Where ids
travel too, they ride in the same message as long as they fit in the room that the previous call needed.
"""

from __future__ import annotations

import weakref
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch

from janus.errors import JanusError
from janus.experts.members import ExpertGroup
from janus.types.rounding import next_power_of_2

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
IDLE, TOKENS, REFUSED = range(3)  # what a rank has to say
_SIZE = 7  # int32 fields of a notice
_LEAST_ROOM = 64  # ids
_ROOMS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # of each group, alike on its ranks


@dataclass(frozen=True)
class Notice:
    """What one rank says of its call.

    Attributes:
        state: `IDLE` (no tokens, so no opinion about the rest), `TOKENS` or `REFUSED`.
        tokens: rows; for all ranks, or for one of them with scope "rank".
        top_k: K.
        dtype: of the hidden states, as a place in `DTYPES`.
        weights_dtype: of the routing weights.
        layer: which one is called.
        placement: a number that tells placements apart.
    """

    state: int
    tokens: int = 0
    top_k: int = 0
    dtype: int = 0
    weights_dtype: int = 0
    layer: int = 0
    placement: int = 0

    def of_call(self, hidden_BH: torch.Tensor, ids_BK: torch.Tensor, weights_BK: torch.Tensor) -> Notice:
        """The notice of a call of the same layer.

        Raises:
            JanusError: ``layer.dtype`` for dtypes that do not travel.
        """
        for what, dtype in (("hidden", hidden_BH.dtype), ("topk_weights", weights_BK.dtype)):
            if dtype not in DTYPES:
                raise JanusError(
                    "layer.dtype", f"{what} must be of one of the dtypes {DTYPES}, got {dtype}; convert it"
                )
        if ids_BK.dtype.is_floating_point or ids_BK.dtype.is_complex or ids_BK.dtype == torch.bool:
            raise JanusError("layer.dtype", f"topk_ids must be integers, got {ids_BK.dtype}; convert them")
        if not len(hidden_BH):
            return replace(self, state=IDLE)
        tokens, top_k = ids_BK.shape
        codes = DTYPES.index(hidden_BH.dtype), DTYPES.index(weights_BK.dtype)
        return Notice(TOKENS, tokens, top_k, *codes, self.layer, self.placement)

    def words(self, device: torch.device) -> torch.Tensor:
        """int32 [7]."""
        return torch.tensor(astuple(self), dtype=torch.int32, device=device)


def swap(group: ExpertGroup, rows: list[torch.Tensor]) -> torch.Tensor:
    """Row t of every member goes to member t; returns what came, in order of source."""
    sent = torch.stack(rows)
    got = torch.empty_like(sent)
    ones = [1] * group.world
    group.exchange(got, sent, ones, ones)
    return got


def compare(group: ExpertGroup, table: list[list[int]]) -> list[Notice]:
    """The notices of all members, if they fit together.

    Args:
        group: who said it.
        table: the words of each member's notice.

    Raises:
        JanusError: ``experts.refused`` where a member refused its call; ``experts.call`` where members call different
            layers, or with another K or dtype.
    """
    found = [Notice(*words) for words in table]
    rank = group.roster.rank
    for member, notice in enumerate(found):
        if notice.state == REFUSED:
            rule = f"rank {rank(member)} refused its call, so the others cannot go on"
            raise JanusError("experts.refused", f"{rule}; see the error there")
    everybody = list(range(len(found)))
    with_tokens = [member for member in everybody if found[member].state == TOKENS]
    for field in fields(Notice)[2:]:
        of = everybody if field.name in ("layer", "placement") else with_tokens
        values = [getattr(found[member], field.name) for member in of]
        for member, value in zip(of, values, strict=True):
            if value != values[0]:
                rule = f"all ranks must call one layer, with one placement, top_k and dtype; {field.name} differs"
                both = [f"rank {rank(m)} has {_shown(field.name, v)}" for m, v in ((of[0], values[0]), (member, value))]
                raise JanusError("experts.call", f"{rule}: {', '.join(both)}; make the calls alike")
    return found


def gather(group: ExpertGroup, mine: Notice, ids_BK: torch.Tensor) -> tuple[list[Notice], torch.Tensor]:
    """Tell all members the chosen experts of this one: one exchange, or a second one where a batch outgrows the room.

    Args:
        group: who takes part.
        mine: notice of this rank.
        ids_BK: integer [B, K].

    Returns:
        the notices; int32 [N, K], the choices of all tokens, rank after rank.
    """
    room = _ROOMS.get(group.roster.group, _LEAST_ROOM)
    device = ids_BK.device
    # an id beyond int32 must not become a good one
    ids = ids_BK.reshape(-1).clamp(-(2**31), 2**31 - 1).to(torch.int32) if mine.state == TOKENS else ids_BK.new_empty(0)
    letter = torch.full((_SIZE + room,), -1, dtype=torch.int32, device=device)
    letter[:_SIZE] = mine.words(device)
    letter[_SIZE : _SIZE + len(ids)] = ids[:room]
    got = swap(group, [letter] * group.world)
    table = got[:, :_SIZE].tolist()  # host sync here
    need = [tokens * top_k for _, tokens, top_k, *_ in table]
    _ROOMS[group.roster.group] = max(_LEAST_ROOM, next_power_of_2(max(need)))
    found = compare(group, table)
    rest = _rest(group, ids[room:].to(torch.int32), [max(n - room, 0) for n in need])
    parts = [torch.cat([row[_SIZE : _SIZE + min(n, room)], more]) for row, n, more in zip(got, need, rest, strict=True)]
    top_k = next((notice.top_k for notice in found if notice.state == TOKENS), 1)
    return found, torch.cat(parts).view(-1, top_k)


def _rest(group: ExpertGroup, mine: torch.Tensor, sizes: list[int]) -> list[torch.Tensor] | tuple[torch.Tensor, ...]:
    if not any(sizes):
        return [mine] * len(sizes)
    got = mine.new_empty(sum(sizes))
    group.exchange(got, mine.repeat(group.world), sizes, [len(mine)] * group.world)
    return got.split(sizes)


def _shown(field: str, value: int) -> str:
    return str(DTYPES[value]) if "dtype" in field else str(value)
