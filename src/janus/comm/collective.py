"""`all_to_all`: rows from every rank to every rank, by way of the nodes where that is cheaper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from janus.comm.accord import Accord, header_bytes
from janus.comm.cost import CostModel
from janus.comm.mail import Mail
from janus.comm.parcels import carry, direct, land
from janus.comm.ports import IntArray
from janus.comm.roster import Roster, host_identity, roster_of
from janus.comm.shuffle import REGIMES, candidates, loads, phases
from janus.comm.splits import Order, order_of, refuse
from janus.comm.wire import At
from janus.errors import known
from janus.types.checks import instance, number

MOST_RIDING = 1 << 14  # bytes of a piece that rides with the agreement: a receiver must offer room for all of them
_HOSTS = 0  # tag
# gloo over TCP: a message costs processor time on both ends, wherever it goes, and a phase some scheduling; rounded from
# what `Exchange.calibrate` saw with one core per rank and less
_GLOO = CostModel(
    {"in_node": 5e-5, "between_nodes": 5e-5}, {"in_node": 1 / 3e9, "between_nodes": 1 / 1.25e9}, round_s=5e-4
)
_NCCL = CostModel()


def all_to_all(
    output: torch.Tensor,
    input: torch.Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    *,
    topology_or_group: Any = None,
    regime: str = "auto",
    cost: CostModel | None = None,
    timeout_s: float = 30.0,
) -> None:
    """Do what `torch.distributed.all_to_all_single` does, with few messages between nodes where that is cheaper.

    The result is that of torch bit for bit, in every regime. ``"direct"`` agrees on nothing. Before ``"gather"``, and in
    ``"auto"`` where it may pay, all ranks tell each other their splits, in messages that travel as gather's do; small
    rows ride along. After a `PeerLost` the group's connections are closed: make a new group.

    Args:
        output: where the rows go, in order of source; contiguous, any dtype, any trailing shape.
        input: the rows, in order of target; contiguous, of the same dtype and trailing shape.
        output_split_sizes: rows of `output` from each rank; None: equal.
        input_split_sizes: rows of `input` for each rank; None: equal.
        topology_or_group: a `Topology` whose two pools, attention first, are the world; or a process group, None for the
            default one, whose nodes are found by comparing hosts at the first call.
        regime: ``"direct"``, ``"gather"``, or ``"auto"``: the cheaper one by `cost`.
        cost: behind ``"auto"``, equal on all ranks; None: rough figures of gloo over TCP for CPU tensors, else those of
            `CostModel`.
        timeout_s: until everything must have arrived.

    Raises:
        JanusError: ``alltoall.*``, before a row is sent.
        PeerLost: phase ``"all_to_all"``.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> out = torch.empty(2, 3)
        >>> all_to_all(out, torch.ones(2, 3))
        >>> out.sum()
        tensor(6.)
        >>> dist.destroy_process_group()
    """
    known(regime, (*REGIMES, "auto"), "regime", "alltoall.regime")
    remedy = "leave it out for the default"
    if cost is not None:
        instance(cost, CostModel, "cost must be a janus.comm.CostModel", "alltoall.cost", remedy)
    seconds = _seconds(timeout_s)
    roster = roster_of(topology_or_group)
    order = order_of(output, input, output_split_sizes, input_split_sizes, roster)
    mail = Mail(roster, At.within("all_to_all", -1, seconds))
    mail.check_usable()
    _move(order, roster, regime, cost or (_GLOO if input.device.type == "cpu" else _NCCL), mail)


def _move(order: Order, roster: Roster, regime: str, cost: CostModel, mail: Mail) -> None:
    """Direct without a word, or agree, and then what was agreed on."""
    device = order.input.device
    boxes = (0,) * roster.world if regime == "direct" else _boxes(roster, mail, device)
    found = candidates(regime, boxes)
    said = json.dumps(cost.to_dict())
    riding = MOST_RIDING if regime == "gather" else worth_riding(said, boxes)
    if found == ("direct",) or riding < 0:
        direct(order, roster, mail)
        return
    # NCCL delivers no message shorter than its buffer
    accord = Accord(order, roster, boxes, riding if device.type == "cpu" else 0)
    sizes, rode = accord.reach(regime, said, mail)
    if rode is not None:
        land(order, rode, roster.me)
    elif choice(found, cost, boxes, sizes * order.row_bytes) == "direct":
        direct(order, roster, mail)
    else:
        carry(order, "gather", boxes, sizes, roster.me, mail)


def choice(found: tuple[str, ...], model: CostModel, boxes: tuple[int, ...], sizes: IntArray) -> str:
    """The cheapest of the regimes `found`, the first one when equal.

    Args:
        found: names.
        model: gives the times.
        boxes: which node each rank sits in.
        sizes: [W, W], bytes from each rank for each rank.

    Example:
        >>> model = CostModel({"in_node": 1e-6, "between_nodes": 1e-4}, {"in_node": 1e-10, "between_nodes": 1e-9})
        >>> [choice(("direct", "gather"), model, (0, 0, 1, 1), np.full((4, 4), n)) for n in (100, 10**7)]
        ['gather', 'direct']
    """
    if len(found) == 1:
        return found[0]
    times = [model.messages_seconds(loads(regime, boxes, sizes), boxes) for regime in found]
    return found[times.index(min(times))]


@lru_cache(maxsize=64)
def worth_riding(cost: str, boxes: tuple[int, ...]) -> int:
    """Up to how many bytes per piece the agreement, with rows riding along, is no dearer than "direct" without it.

    Pieces are taken to be equal; -1: never. "gather" saves messages and not bytes, so where it does not pay for the
    smallest rows, it does not pay, and nothing need be agreed on.

    Args:
        cost: JSON of the model.
        boxes: which node each rank sits in.
    """
    model, world, found = CostModel(**json.loads(cost)), len(boxes), -1
    headers = [np.array([len(m.sources) for m in phase]) * header_bytes(world) for phase in phases("gather", boxes)]
    for bits in range(MOST_RIDING.bit_length()):
        sizes = np.full((world, world), 1 << bits, dtype=np.int64)
        gathered = loads("gather", boxes, sizes)
        for load, header in zip(gathered, headers, strict=True):
            load[:, 2] += header
        flat = model.messages_seconds(loads("direct", boxes, sizes), boxes)
        if model.messages_seconds(gathered, boxes) > flat:
            break
        found = 1 << bits
    return found


def _boxes(roster: Roster, mail: Mail, device: torch.device) -> tuple[int, ...]:
    """Which node each member sits in; the first call of a group compares the hosts."""
    if roster.boxes is not None:
        return roster.boxes
    mine = torch.tensor(list(host_identity()), dtype=torch.uint8, device=device)
    hosts = mine.repeat(roster.world, 1)
    others = [m for m in range(roster.world) if m != roster.me]
    mail.exchange(mail.expect(_HOSTS, [(m, hosts[m]) for m in others]), [(m, mine) for m in others])
    return roster.settled([bytes(host) for host in hosts.tolist()])


def _seconds(value: Any) -> float:
    rule = "timeout_s must be a finite number of seconds > 0"
    found = number(value, rule, "alltoall.timeout")
    return found if found > 0 else refuse("timeout", f"{rule}, got {value!r}; try 30.0")
