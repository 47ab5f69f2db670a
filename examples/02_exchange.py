"""Rows out to the experts and back: two attention and three expert processes on this machine, uneven batches.

Each expert instance multiplies what it receives by its own number; the sums that come home show who took part.
"""

import os
import sys

from janus import Exchange, Topology
from janus.runner.launch import launch

TOPOLOGY = Topology(attention=((0, 1),), experts=((2, 3), (4,)))  # two nodes of experts, one of them with a single rank
STEPS = [(3, 1), (0, 2), (0, 0)]  # tokens of each attention instance; none at all is allowed too


def attend(ex: Exchange, instance: int) -> None:
    import torch

    for step, counts in enumerate(STEPS):
        b = counts[instance]
        x_bH = torch.full((b, 4), 1.0 + instance)
        agreed = ex.begin(b)
        if agreed.total:
            y_bH = ex.combine(ex.dispatch(x_bH, layer=0))
            print(f"step {step}: attention {instance} sent {b} rows ({agreed.regime}), got back {y_bH[:, 0].tolist()}")


def serve(ex: Exchange, instance: int) -> None:
    while not (step := ex.begin()).closed:
        if step.total:
            x_BH, handle = ex.receive()
            ex.reply(x_BH * (instance + 1), handle)  # 1 + 2 + 3: every row comes home six times as large


def main() -> None:
    """One rank."""
    import torch

    rank = int(os.environ["RANK"])
    ex = Exchange(TOPOLOGY, hidden_size=4, dtype=torch.float32, max_tokens=8, device="cpu")
    act = attend if TOPOLOGY.role(rank) == "attention" else serve
    act(ex, TOPOLOGY.instance(rank))
    ex.close()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        ended = launch(
            [sys.executable, __file__],
            TOPOLOGY.world_size,
            deadline_s=100,
            on_line=lambda rank, stream, line: print(line),
        )
        sys.exit(any(e.exit_code for e in ended))
