"""The commands and their options; what they do lives in the modules beside this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import janus

app = typer.Typer(
    name="janus",
    help="Serve Mixture-of-Experts models with attention and experts on separate GPU pools.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, errors included.")]


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
    balance: Annotated[str, typer.Option(help="How replicas are chosen: exact, greedy, cost, ...")] = "exact",
    regime: Annotated[str, typer.Option(help="Exchange: auto, direct, gather or relay.")] = "auto",
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
        placement=placement, prompts=prompts, texts=prompt or [], max_new_tokens=max_new_tokens, sampling=sampling,
        deadline_s=deadline, step_s=step_timeout,
    )  # fmt: skip
    if "RANK" in os.environ:
        result = run_rank(settings)
    else:
        result = run_all(settings, [sys.executable, "-m", "janus.cli", *context.obj])
    if result is not None:
        print_result(result, as_json)


@app.command()
def trace(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Routing (npz), expert counts (npz, JSON) or requests (CSV, JSONL, npz)."),
    ],
    as_json: Json = False,
) -> None:
    """Say what a routing trace, a file of expert counts or a request trace holds."""
    from janus.cli.trace import describe, load_trace, print_summary

    print_summary(describe(load_trace(file)), as_json)
