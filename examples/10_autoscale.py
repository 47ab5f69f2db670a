"""A day in sixteen windows: the autoscaler is fed what was measured and says which pools should serve next.

In production the loop is the same: at the end of every window (15 minutes, say) hand over output tokens per second, the
mean KV length and how often each expert was chosen (`Balancer.expert_load` counts it), and act on the decision. The
model is OLMoE on small imaginary cards, so that both pools have to grow; popularity comes from recorded text domains.
"""

import numpy as np

from janus.scale import Autoscaler, Cluster, Hardware, ModelSpec, Observation, Tuning
from janus.types import read_expert_counts, sample

WINDOW_S = 900
recorded = read_expert_counts(sample("olmoe-mixtral-counts"))  # three layers per text domain
model = ModelSpec.from_config("olmoe-1b-7b")


def counts(domain: str) -> np.ndarray:
    """[L, E] for every layer of the model: each of the three recorded ones stands for its neighbours."""
    rows = recorded[f"olmoe/{domain}"]
    return rows[np.linspace(0, len(rows) - 1, model.moe_layers).round().astype(int)]


card = Hardware("card", 6 * 2**30, 1e12, 2e14, 4e14, 2e11, gpus_per_node=4, inter_node_gbps=200)
scaler = Autoscaler(
    model,
    Cluster(card),
    slo=8.5,  # ms per output token
    trace=counts("wikipedia"),
    context=400,  # tokens in the KV cache of a request, for what is prepared now; each observation brings its own
    demand=6000,  # the most output tokens per second that are expected
    headroom=1.1,
    max_attention=4,
    max_experts=6,
    max_batch=128,
    tuning=Tuning(patience=3),
)

day = [400, 300, 300, 900, 1800, 2800, 3600, 4200, 3900, 4300, 3400, 2200, 1200, 700, 500, 400]
gpu_hours = 0.0
print("window tokens/s  decision  pools  GPUs  moved GB  ready after")
for window, demand in enumerate(day):
    domain = "github" if 5 <= window < 10 else "wikipedia"  # programmers at work
    seen = Observation(window * WINDOW_S, demand, context=400, counts=counts(domain))
    said = scaler.decide(seen)
    pools = f"{said.n_attention}A{said.n_experts}E"
    gpu_hours += said.gpus * WINDOW_S / 3600
    print(
        f"{window:6} {demand:8}  {said.action:9} {pools:5} {said.gpus:5}  {said.moved_bytes / 1e9:8.2f}  {said.migration_s:6.1f} s"
    )
    if said.action != "keep":
        print(f"       {said.reason}")
print(f"{gpu_hours:.0f} GPU-hours; the largest pools all day: {10 * len(day) * WINDOW_S / 3600:.0f}")
