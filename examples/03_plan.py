"""How many GPUs of each kind does DeepSeek-V2 need for a demand and a latency objective, and is splitting worth it?

No routing of DeepSeek-V2 is published, so its popularity is borrowed from a recording of gpt-oss-20b: the figures say
"synthetic routing" for that reason.
"""

from janus import RoutingTrace, Slo, plan
from janus.scale import Cluster, Hardware
from janus.types import sample

recorded = RoutingTrace.load(sample("gptoss20b-routing"))
trace = RoutingTrace.synthetic(like=recorded, num_experts=160, top_k=6)
cluster = Cluster(Hardware.preset("h100-sxm"), gpus_per_node=8, inter_node_gbps=400)

found = plan(
    "deepseek-v2",
    cluster,
    demand=2000,  # output tokens per second, all requests together
    slo=Slo(tpot_ms=40),
    trace=trace,
    context=500,  # mean tokens in the KV cache of a request
    max_attention=8,
    max_experts=16,
)
whole = found.colocated
print("synthetic routing; objective: 40 ms per output token at 2000 tokens per second")
print(
    f"split      {found.topology}, {found.gpus} GPUs: {found.tpot_ms:.1f} ms, {found.tokens_per_gpu_s:.0f} tokens/s per GPU"
)
print(f"colocated  {whole.copies} x {whole.width} GPUs: {whole.tpot_ms:.1f} ms")
for other in ("1A6E", "2A8E"):
    print(f"{other}       {found.explain(other)}")
