"""A colocated MoE layer: every rank has its own tokens and some of the experts; rows go out by top-k and come back.

Four processes on this machine play two nodes of two ranks. `janus.comm.all_to_all` takes the place of
`torch.distributed.all_to_all_single`: same arguments, same result, fewer messages between nodes where that is cheaper.
"""

import os
import sys

import torch

from janus.comm import CostModel, all_to_all, rendezvous
from janus.runner.launch import launch
from janus.types import Topology

NODES = Topology(attention=((0, 1),), experts=((2, 3),))  # only which ranks share a node counts here
WORLD, EXPERTS, TOP_K, HIDDEN = 4, 8, 2, 16
HERE = EXPERTS // WORLD  # experts of a rank
# messages between nodes are dear, so "auto" sends one per node and rank; `Exchange.calibrate` measures real links
COST = CostModel({"in_node": 1e-6, "between_nodes": 1e-3}, {"in_node": 1e-9, "between_nodes": 1e-9})


def expert(number: int, x: torch.Tensor) -> torch.Tensor:
    """A stand-in for an MLP: every expert does something else."""
    return torch.tanh(x * (number + 1)) + number


def plain(x_BH: torch.Tensor, ids_BK: torch.Tensor, weights_BK: torch.Tensor) -> torch.Tensor:
    """The layer with all experts at hand."""
    y_BKH = x_BH.new_empty(*ids_BK.shape, HIDDEN)
    for number in range(EXPERTS):
        b, k = (ids_BK == number).nonzero(as_tuple=True)
        y_BKH[b, k] = expert(number, x_BH[b])
    return (y_BKH * weights_BK[..., None]).sum(1)


def colocated(x_BH: torch.Tensor, ids_BK: torch.Tensor, weights_BK: torch.Tensor, rank: int) -> torch.Tensor:
    """The layer with this rank's experts at hand: sizes first, then rows and their experts out, then rows back."""
    order = ids_BK.flatten().argsort(stable=True)  # copies of tokens, in order of expert, so of rank
    sent = torch.bincount(ids_BK.flatten() // HERE, minlength=WORLD)
    expected = torch.empty_like(sent)
    where = {"topology_or_group": NODES, "cost": COST}
    all_to_all(expected, sent, **where)
    rows, ids = x_BH[order // TOP_K], ids_BK.flatten()[order]
    got, got_ids = torch.empty(int(expected.sum()), HIDDEN), torch.empty(int(expected.sum()), dtype=ids.dtype)
    all_to_all(got, rows, expected.tolist(), sent.tolist(), **where)
    all_to_all(got_ids, ids, expected.tolist(), sent.tolist(), **where)
    for number in range(rank * HERE, (rank + 1) * HERE):
        got[got_ids == number] = expert(number, got[got_ids == number])
    back = torch.empty_like(rows)
    all_to_all(back, got, sent.tolist(), expected.tolist(), **where)
    y_BKH = torch.empty(x_BH.shape[0] * TOP_K, HIDDEN)
    y_BKH[order] = back
    return (y_BKH.view(-1, TOP_K, HIDDEN) * weights_BK[..., None]).sum(1)


def main(rank: int) -> None:
    rendezvous(NODES)
    torch.manual_seed(rank)
    x_BH = torch.randn(3 + 2 * rank, HIDDEN)  # uneven batches
    weights_BK, ids_BK = torch.randn(len(x_BH), EXPERTS).softmax(-1).topk(TOP_K)
    y_BH = colocated(x_BH, ids_BK, weights_BK, rank)
    assert torch.equal(y_BH, plain(x_BH, ids_BK, weights_BK))
    print(f"rank {rank}: {len(x_BH)} tokens, {TOP_K * len(x_BH)} rows out and back, equal to the plain layer")


if __name__ == "__main__":
    if "RANK" in os.environ:
        main(int(os.environ["RANK"]))
    else:
        words = [sys.executable, __file__]
        ended = launch(words, WORLD, deadline_s=100, on_line=lambda rank, stream, line: print(line))
        sys.exit(any(e.exit_code for e in ended))
