"""A page for the person who pays: how many GPUs, at what price, split or not, and what the answer rests on.

Writes report.html (one file, opens in any browser, prints) and where_the_time_goes.svg into the current folder. The
price is an example: put in yours.
"""

from pathlib import Path

from janus import RoutingTrace, Slo, plan
from janus.scale import Cluster, Hardware
from janus.types import sample

recorded = RoutingTrace.load(sample("gptoss20b-routing"))
trace = RoutingTrace.synthetic(like=recorded, num_experts=160, top_k=6)  # no routing of DeepSeek-V2 is published
gpu = Hardware.preset("h100-sxm", usd_per_hour=2.5)

found = plan(
    "deepseek-v2",
    Cluster(gpu, gpus_per_node=8, inter_node_gbps=400),
    demand=4000,  # output tokens per second, all requests together
    slo=Slo(tpot_ms=50, percentile=99),
    trace=trace,
    context=500,  # mean tokens in the KV cache of a request
    max_attention=6,
    max_experts=10,
)
print(found.verdict)
found.report("report.html")
found.plot("where_the_time_goes.svg", "breakdown")
size = Path("report.html").stat().st_size
print(f"report.html: {size / 1000:.0f} kB, loads nothing from elsewhere")
