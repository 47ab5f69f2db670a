"""Prove: experts over several ranks give the layer's results, send no token twice, and are balanced as one batch.

    python benchmarks/prove/experts_parallel.py [--sample]

Four processes over gloo play two nodes of two; each compares its tokens with the layer that has all experts, in every
regime and scope, and counts its bytes. Routing is that of gpt-oss-20b, layer 12, in decode: placements from one half of
the recording, batches from the other. A rank's rows are counted against the distinct (token, rank) pairs of the batch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from figures import figure, report, say
from recordings import Routing, routing
from shapes import MODELS

from janus.experts.trip import leaving
from janus.runner.launch import launch
from janus.sched import balance, place
from janus.types import Placement, Topology

MODEL = MODELS["gpt-oss-20b"]
WORLD, C, HIDDEN, INNER = 4, 12, 64, 96  # 48 slots for 32 experts; small ones, for what counts here is not their time
NODES = Topology(attention=((0, 1),), experts=((2, 3),))
POOLS = ((4, 12), (8, 6))  # ranks, slots of a rank
TOKENS = (1, 4, 16, 64)  # of a rank
SHARES = np.array([0, 1, 2, 3])  # uneven: tokens of rank g are SHARES[g] * n
TOLERANCE = 1e-5  # float32 rounding of a sum of K terms in another order, relative to the largest result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="few batches of two sizes")
    sample = parser.parse_args().sample
    found, sizes, batches = routing(MODEL), TOKENS[::2] if sample else TOKENS, 4 if sample else 64
    figures = equal(found, 3 if sample else 20)
    for G, slots in POOLS[:1] if sample else POOLS:
        placement = place(found.seen, G, slots, batch_sizes=tuple(G * n for n in sizes))
        for n in sizes:
            figures += counted(found, placement, n, batches)
    report(figures)


def counted(found: Routing, placement: Placement, n: int, batches: int) -> list[dict[str, Any]]:
    """Rows that travel, and activated slots of the busiest rank, by who balances what; n tokens on every rank."""
    G, C = placement.num_instances, placement.slots_per_instance
    rows, pairs, entries = 0, 0, 0
    a_max: dict[str, list[int]] = {"batch": [], "rank": [], "round robin": []}
    for ids in found.batches(G * n, batches):
        whole = balance(ids, placement)
        physical = whole.physical_ids
        owner = np.repeat(np.arange(G), n)[:, None]
        away = physical // C != owner
        entries += int(away.sum())
        pairs += len(set(zip(np.nonzero(away)[0].tolist(), (physical // C)[away].tolist(), strict=True)))
        for g, part in enumerate(np.split(physical, G)):
            sent = leaving(torch.from_numpy(part), G, C).sent
            rows += sum(sent) - sent[g]
        alone = np.concatenate([balance(part, placement).physical_ids for part in np.split(ids, G)])
        a_max["batch"].append(whole.a_max)
        a_max["rank"].append(int(np.bincount(np.unique(alone) // C).max()))
        a_max["round robin"].append(balance(ids, placement, method="round_robin").a_max)
    mean = {name: round(float(np.mean(values)), 2) for name, values in a_max.items()}
    where = f"{G} ranks x {C} slots, {n} tokens each"
    note = f"{found.label}; {batches} batches"
    return [
        figure(f"{where}: rows sent / distinct (token, rank) pairs", rows / pairs, "1", rows == pairs, "x", note),
        figure(f"{where}: rows sent / choices served elsewhere", round(rows / entries, 3), "<= 1", rows <= entries, "x"),
        figure(f"{where}: a_max", mean["batch"], "<= both others", mean["batch"] == min(mean.values()), "slots",
               f"each rank alone {mean['rank']}, round robin {mean['round robin']}"),
    ]  # fmt: skip


def equal(found: Routing, turns: int) -> list[dict[str, Any]]:
    """Four processes; what each of them saw."""
    placement = place(found.seen, WORLD, C, batch_sizes=(24,))
    with tempfile.TemporaryDirectory() as folder:
        job = {"slots": placement.slots[0].tolist(), "ids": [b.tolist() for b in found.batches(24, turns)]}
        Path(folder, "job").write_text(json.dumps(job))
        ended = launch([sys.executable, __file__], WORLD, deadline_s=300, env={"PARALLEL_JOB": folder})
        for end in ended:
            if end.exit_code:
                say("\n".join(end.tail))
        seen = [json.loads(Path(folder, str(g)).read_text()) for g in range(WORLD) if Path(folder, str(g)).exists()]
    whole = len(seen) == WORLD
    worst = max((one["worst"] for one in seen), default=float("inf"))
    same = whole and all(one["same"] for one in seen)
    sent, bound = (sum(one[name] for one in seen) for name in ("sent", "bound"))
    note = (
        f"{WORLD} processes, {turns} batches, tokens {(SHARES * 4).tolist()}, regimes direct, gather, auto; both scopes"
    )
    return [
        figure("largest relative difference from the layer with all experts", worst, f"<= {TOLERANCE}", worst <= TOLERANCE, "", note),
        figure("bit-equal over regimes and runs", str(same), "True", same),
        figure("bytes sent / bytes of the distinct (token, rank) pairs out and back", round(sent / max(bound, 1), 3),
               "reported", True, "x", f"float32 rows of {HIDDEN}; the rest is ids, routing weights and counts"),
    ]  # fmt: skip


def rank_main(rank: int, folder: Path) -> None:
    """One of the four."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    from janus import JanusMoELayer
    from janus.comm import rendezvous
    from janus.experts.members import ExpertGroup

    rendezvous(NODES)
    job = json.loads((folder / "job").read_text())
    placement = Placement(job["slots"], MODEL.experts)
    config = MixtralConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=MODEL.experts)
    config._experts_implementation = "eager"
    experts, g = MixtralExperts(config).requires_grad_(False), torch.Generator().manual_seed(0)
    for p in experts.parameters():
        p.copy_(torch.randn(p.shape, generator=g) / 8)
    groups = [ExpertGroup(NODES, scope=s, regime=r) for s in ("batch", "rank") for r in ("direct", "gather", "auto")]
    layers, alone = [JanusMoELayer(experts, placement, group=group) for group in groups], JanusMoELayer(experts)
    owner = np.repeat(np.arange(WORLD), SHARES * 4)
    worst, same, bound = 0.0, True, 0
    for turn, ids in enumerate(np.array(job["ids"])):
        mine = torch.from_numpy(ids[owner == rank])
        x, weights = torch.randn(len(mine), HIDDEN), torch.rand(mine.shape)
        want = alone(x, mine, weights)
        got = [layer(x, mine, weights) for layer in layers for _ in range(2)]
        for scope in (got[:6], got[6:]):  # by whom a batch is balanced moves an expert to another replica
            same &= all(torch.equal(scope[0].view(torch.int32), one.view(torch.int32)) for one in scope)
        if len(mine):
            worst = max(worst, *(float((y - want).abs().max() / want.abs().max()) for y in got))
        target = balance(ids, placement).physical_ids // C
        bound += sum(len({*row} - {rank}) for row in target[owner == rank].tolist())
        say(f"rank {rank}: batch {turn}")
    seen = {"worst": worst, "same": same, "sent": groups[0].bytes_sent, "bound": 2 * bound * 2 * 4 * HIDDEN}
    (folder / str(rank)).write_text(json.dumps(seen))


if __name__ == "__main__":
    if "PARALLEL_JOB" in os.environ:
        rank_main(int(os.environ["RANK"]), Path(os.environ["PARALLEL_JOB"]))
    else:
        main()
