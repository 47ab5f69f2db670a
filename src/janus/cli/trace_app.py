"""`janus trace` and its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, errors included.")]
Seed = Annotated[int, typer.Option(help="Of any draw.")]
Hours = Annotated[float, typer.Option(help="Of ServeGen's files: the first so many hours.")]
KINDS = "routing (npz), expert counts (npz, JSON), requests (CSV, JSONL, npz), or a shipped name"
Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help=f"A trace: {KINDS}; or ServeGen's rates and lengths.")
]


class InspectByDefault(TyperGroup):
    """`janus trace FILE` is `janus trace inspect FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `inspect` before a first word that is no command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["inspect", *args]
        return super().parse_args(ctx, args)


trace_app = typer.Typer(
    name="trace",
    cls=InspectByDefault,
    help="Look at traces, bring them into Janus's own formats, and take samples. `janus trace FILE` inspects.",
)


@trace_app.command()
def inspect(files: Files, seed: Seed = 0, hours: Hours = 24.0, as_json: Json = False) -> None:
    """Say what a routing trace, a file of expert counts or a request trace holds."""
    from janus.cli.trace import describe, load_traces, print_summary

    print_summary(describe(load_traces(files, seed=seed, hours=hours)), as_json)


@trace_app.command()
def convert(
    files: Files,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="npz; for counts also JSON.")],
    to: Annotated[str | None, typer.Option(help="routing, counts or requests; default what was read.")] = None,
    synthetic: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Resample the popularity for this model, and say so.")
    ] = None,
    recording: Annotated[str | None, typer.Option(help="Which one of a file of expert counts.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token, where tokens are drawn from counts.")] = None,
    tokens: Annotated[int, typer.Option(help="How many to draw, where tokens are drawn.")] = 4096,
    seed: Seed = 0,
    hours: Hours = 24.0,
    as_json: Json = False,
) -> None:
    """Write a trace in Janus's own format; what was drawn or borrowed on the way is told in its source."""
    from janus.cli.convert import convert as converted
    from janus.cli.trace import describe, print_summary

    options = {"to": to, "like": synthetic, "recording": recording, "top_k": top_k}
    print_summary(describe(converted(files, out, tokens=tokens, seed=seed, hours=hours, **options)), as_json)


@trace_app.command()
def sample(
    files: Files,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="npz.")],
    tokens: Annotated[int | None, typer.Option(help="Of a routing trace: how many tokens to keep.")] = None,
    requests: Annotated[int | None, typer.Option(help="Of a request trace: how many requests to keep.")] = None,
    seed: Seed = 0,
    hours: Hours = 24.0,
    as_json: Json = False,
) -> None:
    """Keep a random part of a trace: tokens of a routing trace, or requests of a request trace."""
    from janus.cli.convert import sampled, write
    from janus.cli.trace import describe, load_traces, print_summary

    part = sampled(load_traces(files, seed=seed, hours=hours), tokens, requests, seed)
    write(part, out)
    print_summary(describe(part), as_json)
