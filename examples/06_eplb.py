"""From EPLB, SGLang or vLLM: hand over the maps of your engine, get physical ids of the same numbering, read fewer experts.

The routing is recorded (gpt-oss-20b: 32 experts, 4 per token). The maps are made as EPLB makes them: replicas by load,
each on the least-loaded GPU with room, so that two replicas of an expert may meet on one GPU.
"""

import numpy as np
import torch

from janus import Balancer, Placement, RoutingTrace
from janus.sched import replicate
from janus.types import sample

GPUS, SLOTS, LAYER = 8, 6, 12

trace = RoutingTrace.load(sample("gptoss20b-routing"))


def engine_map(counts_E: np.ndarray) -> np.ndarray:
    """phy2log [R] of one layer."""
    replicas_E = replicate(counts_E, GPUS * SLOTS)
    share_E = counts_E / replicas_E
    load, held = np.zeros(GPUS), [[] for _ in range(GPUS)]
    for e in sorted(np.repeat(np.arange(len(counts_E)), replicas_E), key=lambda e: -share_E[e]):
        g = min((g for g in range(GPUS) if len(held[g]) < SLOTS), key=lambda g: load[g])
        held[g].append(e)
        load[g] += share_E[e]
    return np.concatenate(held)


# what an engine holds, as tensors
phy2log = torch.from_numpy(np.stack([engine_map(counts_E) for counts_E in trace.counts()]))  # [L, R]
logcnt = torch.stack([torch.bincount(row, minlength=32) for row in phy2log])  # [L, E]
log2phy = torch.full((*logcnt.shape, int(logcnt.max())), -1)  # [L, E, X]
for layer, e in np.ndindex(*logcnt.shape):
    log2phy[layer, e, : logcnt[layer, e]] = torch.where(phy2log[layer] == e)[0]

placement = Placement.from_eplb(phy2log, GPUS, log2phy=log2phy, logcnt=logcnt)
balancer = Balancer(placement, max_tokens=64)
print(f"{placement}: {placement.eplb_duplicates} replicas beside another of their expert, which can never help")
print("experts read by the busiest GPU, mean of 50 batches of layer 12:   random   round robin   Balancer")

rng = np.random.default_rng(0)
torch.manual_seed(0)
for batch_size in (8, 16, 32, 64):
    a_max = {"random": [], "round robin": [], "Balancer": []}
    for _ in range(50):
        ids = torch.from_numpy(trace.sample(batch_size, rng)[:, LAYER].astype(np.int64))
        turn = torch.arange(ids.numel()).reshape(ids.shape)
        for name, pick in (("random", torch.randint(1 << 30, ids.shape)), ("round robin", turn)):
            theirs = log2phy[LAYER, ids, pick % logcnt[LAYER, ids]]  # what these engines do: each entry for itself
            a_max[name].append(int(torch.bincount(theirs.unique() // SLOTS).max()))
        ours = balancer(ids, LAYER)
        assert torch.equal(phy2log[LAYER, ours], ids)  # their numbering: feed it back as it is
        a_max["Balancer"].append(int(torch.bincount(ours.unique() // SLOTS).max()))
    means = "   ".join(f"{np.mean(values):{len(name)}.2f}" for name, values in a_max.items())
    print(f"{f'batch of {batch_size} tokens':>65}   {means}")
