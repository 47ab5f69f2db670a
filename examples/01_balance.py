"""How many experts does the busiest instance read? Recorded batches of a real model, three ways to pick replicas.

The routing is that of gpt-oss-20b (32 experts, 4 per token); a recording of it ships with the package.
"""

import numpy as np

from janus import RoutingTrace, balance
from janus.sched import place
from janus.types import sample

INSTANCES, SLOTS = 8, 6  # 48 slots for 32 experts: 16 to spare for replicas
METHODS = ("random", "greedy", "exact")

trace = RoutingTrace.load(sample("gptoss20b-routing"))
placement = place(trace, INSTANCES, SLOTS, batch_sizes=(16,))
replicas = placement.logcnt
print(f"{trace.num_experts} experts on {INSTANCES} instances x {SLOTS} slots, up to {replicas.max()} replicas of one")
print("experts read by the busiest instance, mean of 50 batches; 'least': what no choice of replicas can beat\n")
print(f"{'batch':>5}  " + "  ".join(f"{method:>6}" for method in METHODS) + "   least")

rng = np.random.default_rng(0)
for batch_size in (4, 8, 16, 32, 64):
    a_max = {method: [] for method in METHODS}
    least = []
    for _ in range(50):
        ids_BLK = trace.sample(batch_size, rng)
        layer = int(rng.integers(placement.num_layers))
        for method in METHODS:
            assignment = balance(ids_BLK[:, layer].astype(np.int32), placement, layer=layer, method=method)
            a_max[method].append(assignment.a_max)
        least.append(assignment.lower_bound)
    print(f"{batch_size:>5}  " + "  ".join(f"{np.mean(a_max[m]):6.2f}" for m in METHODS) + f"  {np.mean(least):6.2f}")
