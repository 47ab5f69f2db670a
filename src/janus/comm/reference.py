"""The flat, plain-loop oracle: one process that sees every rank's rows. Same results as the exchange, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from janus.comm.layout import expert_nodes
from janus.types import Topology


def receive(
    x: Sequence[torch.Tensor],
    instance: int,
    *,
    ids: Sequence[torch.Tensor] | None = None,
    weights: Sequence[torch.Tensor] | None = None,
    slots: int = 1,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """What expert `instance` receives.

    Args:
        x: [b, H] of every attention instance.
        instance: expert instance g.
        ids: [b, K] physical ids of every attention instance; None with gate "experts".
        weights: [b, K] of every attention instance.
        slots: C.

    Returns:
        Rows [n, H], ids int64 [n, K] with -1 elsewhere, weights [n, K] with 0 elsewhere.

    Example:
        >>> x = [torch.tensor([[1.0], [2.0]])]
        >>> rows, ids, _ = receive(x, 1, ids=[torch.tensor([[0], [2]])], weights=[torch.ones(2, 1)], slots=2)
        >>> rows.tolist(), ids.tolist()
        ([[2.0]], [[2]])
    """
    if ids is None or weights is None:
        return torch.cat(list(x)), None, None
    rows, chosen, weighed = [], [], []
    for x_bH, ids_bK, w_bK in zip(x, ids, weights, strict=True):
        for t in range(len(x_bH)):
            here = [int(r) >= 0 and int(r) // slots == instance for r in ids_bK[t]]
            if any(here):
                rows.append(x_bH[t])
                chosen.append([int(r) if h else -1 for r, h in zip(ids_bK[t], here, strict=True)])
                weighed.append([w if h else torch.zeros_like(w) for w, h in zip(w_bK[t], here, strict=True)])
    top_k, kind = ids[0].shape[1], weights[0].dtype
    return (
        torch.stack(rows) if rows else x[0].new_empty(0, x[0].shape[1]),
        torch.tensor(chosen, dtype=torch.int64).reshape(-1, top_k),
        torch.stack([torch.stack(w) for w in weighed]) if weighed else torch.empty(0, top_k, dtype=kind),
    )


def combine(
    y: Sequence[torch.Tensor],
    counts: Sequence[int],
    topology: Topology,
    *,
    ids: Sequence[torch.Tensor] | None = None,
    slots: int = 1,
) -> list[torch.Tensor]:
    """What every attention instance gets back.

    Args:
        y: partial outputs of every expert instance, row for row what it received.
        counts: tokens of each attention instance.
        topology: fixes the order: instances within a node in float32, rounded, then nodes in float32, rounded.
        ids: as given to `receive`.
        slots: as given to `receive`.

    Example:
        >>> t = Topology(attention=((0,),), experts=((1,), (2,)))
        >>> combine([torch.ones(1, 1), torch.ones(1, 1)], (1,), t)[0].tolist()
        [[2.0]]
    """
    cursor = [0] * len(y)
    home = []
    for a, b in enumerate(counts):
        rows = []
        for t in range(b):
            total = torch.zeros(y[0].shape[1])
            for node in expert_nodes(topology):
                partial = torch.zeros(y[0].shape[1])
                for g in node:
                    if ids is None or any(int(r) >= 0 and int(r) // slots == g for r in ids[a][t]):
                        partial += y[g][cursor[g]]
                        cursor[g] += 1
                total += partial.to(y[0].dtype)
            rows.append(total.to(y[0].dtype))
        home.append(torch.stack(rows) if rows else y[0].new_empty(0, y[0].shape[1]))
    return home
