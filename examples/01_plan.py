"""How many attention and expert GPUs does a service need, and should it be split at all?

    python examples/01_plan.py

Needs no GPU. No per-token routing of DeepSeek-V2 is public, so its popularity is borrowed from gpt-oss-20b; the plan
says so. Give your own recording as `trace` to plan for real.
"""

from importlib.resources import files

from janus import RoutingTrace, Slo, plan
from janus.scale import Cluster, ModelSpec

model = ModelSpec.from_config("deepseek-v2")  # or the path of a Hugging Face config.json
recorded = RoutingTrace.load(files("janus") / "data" / "gptoss20b_routing.npz")
trace = RoutingTrace.synthetic(like=recorded, num_experts=model.experts, top_k=model.top_k)

result = plan(
    model,
    Cluster("h100-sxm", gpus_per_node=8, inter_node_gbps=400),
    demand=2000,  # output tokens per second, over all requests
    slo=Slo(tpot_ms=60),
    trace=trace,
    context=512,  # mean length of the KV cache, tokens
    max_attention=8,
    max_experts=16,
)
print(result)

print()
for pair in ("1A5E", result.pick.name if result.pick else "1A6E", "2A8E"):
    print(result.explain(pair))

part = result.problem.latency.tpot(1, 6, 64, 512, result.problem.table)
print(f"\n1A6E at 64 requests in flight: {part.tpot:.1f} ms = attention {part.attention:.1f} + experts {part.moe:.1f}")
print(f"  + exchange {part.comm:.1f} + other {part.other:.1f} - overlap {part.overlap:.1f}")
