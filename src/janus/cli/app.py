"""The commands and their options; what they do lives in the modules beside this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import janus
from janus.cli.options import (
    Config,
    ContextCv,
    ExpertHardware,
    Explain,
    GpusPerNode,
    HardwareChoice,
    InterNodeGbps,
    Json,
    Latency,
    Prefill,
    Price,
    Recording,
    Report,
    Routing,
    Synthetic,
)
from janus.cli.trace_app import trace_app

app = typer.Typer(
    name="janus",
    help="Serve Mixture-of-Experts models with attention and experts on separate GPU pools.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(trace_app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"janus {janus.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Local Hugging Face folder of a Mixture-of-Experts model.")
    ],
    topology: Annotated[str, typer.Option(help="Attention and expert processes, e.g. 2A4E.")],
    gpus_per_node: Annotated[int, typer.Option(help="Ranks that count as one node.")] = 8,
    gate: Annotated[str, typer.Option(help="Side that routes: experts or attention.")] = "experts",
    balance: Annotated[str, typer.Option(help="How replicas are chosen: exact, greedy, tokens, ...")] = "exact",
    regime: Annotated[str, typer.Option(help="Exchange: auto, direct, gather, spread or relay.")] = "auto",
    compute: Annotated[str, typer.Option(help="How experts are run: auto, eager, numba, mixed or triton.")] = "auto",
    quantize: Annotated[str | None, typer.Option(help="Keep experts in 8 bits: int8 or fp8.")] = None,
    placement: Annotated[Path | None, typer.Option(help="Placement file; default: experts in order.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSON list of token-id lists, or of strings.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt as text; may be repeated.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Per prompt.")] = 32,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the likeliest token.")] = False,
    temperature: Annotated[float | None, typer.Option(help="With --sample; default 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="With --sample: keep so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --sample: keep this share of probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --sample; default 0.")] = None,
    deadline: Annotated[float, typer.Option(help="Seconds for everything together.")] = 300.0,
    step_timeout: Annotated[float, typer.Option(help="Seconds one step may wait for a peer.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Run MODEL disaggregated on this machine: starts one process per rank, prints completions and statistics.

    With RANK in the environment (torchrun) this process is that rank, and starts none.
    """
    from janus.cli.run import print_result, run_all, run_rank
    from janus.cli.settings import checked_sampling, checked_settings

    sampling = checked_sampling(sample, temperature, top_k, top_p, seed)
    settings = checked_settings(
        model=model, topology=topology, gpus_per_node=gpus_per_node, gate=gate, balance=balance, regime=regime,
        compute=compute, quantize=quantize, placement=placement, prompts=prompts, texts=prompt or [],
        max_new_tokens=max_new_tokens, sampling=sampling, deadline_s=deadline, step_s=step_timeout,
    )  # fmt: skip
    if "RANK" in os.environ:
        result = run_rank(settings)
    else:
        result = run_all(settings, [sys.executable, "-m", "janus.cli", *context.obj])
    if result is not None:
        print_result(result, as_json)


@app.command()
def plan(
    typed: typer.Context,
    config: Config,
    slo_ms: Annotated[float, typer.Option(help="Longest time per output token, ms, at --percentile.")],
    routing: Routing,
    recording: Recording = None,
    synthetic: Synthetic = False,
    requests: Annotated[str | None, typer.Option(help="Request trace; or azure-conversation, shipped.")] = None,
    demand: Annotated[float | None, typer.Option(help="Output tokens per second; default from --requests.")] = None,
    context: Annotated[float | None, typer.Option(help="Mean KV length, tokens; default from --requests.")] = None,
    percentile: Annotated[float, typer.Option(help="Of the requests that must keep the SLO.")] = 99.0,
    context_cv: ContextCv = None,
    headroom: Annotated[float, typer.Option(help="Factor on the demand, >= 1.")] = 1.0,
    length_headroom: Annotated[float, typer.Option(help="Factor on the KV lengths, >= 1.")] = 1.0,
    prefill: Prefill = "elsewhere",
    hardware: HardwareChoice = None,
    expert_hardware: ExpertHardware = None,
    price: Price = None,
    gpus_per_node: GpusPerNode = None,
    inter_node_gbps: InterNodeGbps = None,
    latency: Latency = None,
    objective: Annotated[str, typer.Option(help="What to minimise: gpus, or usd (needs --price).")] = "gpus",
    method: Annotated[str, typer.Option(help="exhaustive, or milp.")] = "exhaustive",
    solver: Annotated[str, typer.Option(help="Of --method milp: auto, HiGHS or CBC.")] = "auto",
    time_limit: Annotated[float | None, typer.Option(help="Of --method milp, seconds: then the best so far.")] = None,
    max_attention: Annotated[int, typer.Option(help="Largest attention pool to try.")] = 64,
    max_experts: Annotated[int, typer.Option(help="Largest expert pool to try.")] = 64,
    explain: Explain = None,
    report: Report = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the search space: png, svg or pdf.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the plan as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Find the fewest GPUs (or dollars) that serve CONFIG within an SLO, beside the best colocated deployment."""
    from janus.cli.plan import check_asked, make_plan, print_plan
    from janus.types import Slo

    check_asked(explain or [], report, plot, save)
    found = make_plan(
        config, hardware=hardware or ["h100-sxm"], expert_hardware=expert_hardware or [], price=price or [],
        gpus_per_node=gpus_per_node, inter_node_gbps=inter_node_gbps, routing=routing, recording=recording,
        synthetic=synthetic, requests=requests, demand=demand, context=context, context_cv=context_cv,
        slo=Slo(slo_ms, percentile), latency=latency, headroom=(headroom, length_headroom), prefill=prefill,
        objective=objective, method=method, solver=solver, time_limit_s=time_limit, max_attention=max_attention,
        max_experts=max_experts,
    )  # fmt: skip
    if report is not None:
        found.report(report, ["janus", *typed.obj])
    if plot is not None:
        found.plot(plot)
    if save is not None:
        found.save(save)
    print_plan(found, explain or [], as_json)


@app.command()
def calibrate(
    config: Config,
    save: Annotated[Path, typer.Option(help="Where to write the times, for janus plan --latency.")],
    hardware: Annotated[str, typer.Option(help="What this machine's GPU is; for peaks and memory.")] = "h100-sxm",
    gpus_per_node: GpusPerNode = None,
    inter_node_gbps: InterNodeGbps = None,
    tables: Annotated[Path | None, typer.Option(help="Fit these kernel tables (CSV) instead of measuring.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    budget: Annotated[float, typer.Option(help="Seconds to measure for, about.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Measure attention and experts of CONFIG on this machine, for plans that rest on measured times."""
    from janus.cli.calibrate import calibrated, print_calibration

    found = calibrated(
        config, hardware=hardware, gpus_per_node=gpus_per_node, inter_node_gbps=inter_node_gbps, tables=tables,
        device=device, budget_s=budget, save=save,
    )  # fmt: skip
    print_calibration(found, save, as_json)


@app.command()
def simulate(
    typed: typer.Context,
    config: Config,
    slo_ms: Annotated[float, typer.Option(help="Longest time per output token, ms.")],
    requests: Annotated[
        list[str], typer.Option(help="Request trace; twice for ServeGen's rates and lengths; or azure-conversation.")
    ],
    routing: Routing,
    recording: Recording = None,
    synthetic: Synthetic = False,
    policy: Annotated[
        list[str] | None, typer.Option(help="janus, monolithic, megascale, xdeepserve or static; may be repeated.")
    ] = None,
    hours: Annotated[float, typer.Option(help="The first so many hours of the requests.")] = 24.0,
    percentile: Annotated[float, typer.Option(help="Share of requests that must keep the SLO, %.")] = 99.0,
    headroom: Annotated[float, typer.Option(help="Factor on the demand that policies plan for, >= 1.")] = 1.2,
    window_s: Annotated[float, typer.Option(help="Seconds between decisions.")] = 900.0,
    start_s: Annotated[float, typer.Option(help="Seconds until a new instance can load its weights.")] = 120.0,
    efficiency: Annotated[
        list[str] | None, typer.Option(metavar="POLICY=SHARE", help="Work a GPU gets done under a policy; repeatable.")
    ] = None,
    hardware: Annotated[str, typer.Option(help="a100-sxm, h100-sxm, h200-sxm, b200-sxm, gb200.")] = "h100-sxm",
    price: Price = None,
    gpus_per_node: GpusPerNode = None,
    inter_node_gbps: InterNodeGbps = None,
    max_attention: Annotated[int, typer.Option(help="Largest attention pool.")] = 64,
    max_experts: Annotated[int, typer.Option(help="Largest expert pool.")] = 64,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    report: Report = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the day: png, svg or pdf.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write every timeline as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Serve a day of requests under one or more policies that size the pools; compare GPU-hours and kept promises."""
    from janus.cli.inputs import check_outputs
    from janus.cli.simulate import play, print_days, write_days
    from janus.types import Slo

    check_outputs(report, plot, save)
    days = play(
        config, requests=requests, policies=policy or ["janus"], hours=hours, hardware=hardware, price=price or [],
        gpus_per_node=gpus_per_node, inter_node_gbps=inter_node_gbps, routing=routing, recording=recording,
        synthetic=synthetic, slo=Slo(slo_ms, percentile), headroom=headroom, window_s=window_s, start_s=start_s,
        efficiency=efficiency or [], seed=seed, max_attention=max_attention, max_experts=max_experts,
    )  # fmt: skip
    write_days(days, save, plot, report, ["janus", *typed.obj])
    print_days(days, as_json)
