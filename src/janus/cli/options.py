"""Options that several commands share, or that take more than a line to say."""

# evaluated when the commands are made: no `from __future__ import annotations` here
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, errors included.")]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help="Model folder, config.json, or a name: deepseek-v2.")]
Routing = Annotated[str, typer.Option(help="Routing trace or expert counts; or gptoss20b-routing, shipped.")]
Recording = Annotated[str | None, typer.Option(help="Which recording of a file of expert counts.")]
Synthetic = Annotated[
    bool, typer.Option("--synthetic", help="Resample the popularity in --routing for this model, and say so.")
]
GpusPerNode = Annotated[int | None, typer.Option(help="Default the hardware's.")]
InterNodeGbps = Annotated[float | None, typer.Option(help="Network per GPU; default the hardware's.")]
Price = Annotated[list[str] | None, typer.Option(metavar="NAME=USD", help="Dollars per GPU-hour; may be repeated.")]
Report = Annotated[Path | None, typer.Option(help="Write one HTML page for whoever decides.")]
Latency = Annotated[Path | None, typer.Option(help="Measured times: a file of janus calibrate; default a roofline.")]
HardwareChoice = Annotated[
    list[str] | None,
    typer.Option(help="h100-sxm (default), a100-sxm, h200-sxm, b200-sxm or gb200; repeated: a choice per pool."),
]
ExpertHardware = Annotated[
    list[str] | None, typer.Option(help="Of the expert pool; default the same. May be repeated.")
]
ContextCv = Annotated[
    float | None, typer.Option(help="Spread of the KV lengths over their mean; default from --requests, or 0.6.")
]
Prefill = Annotated[str, typer.Option(help="elsewhere, or attention: these GPUs also read the prompts.")]
Explain = Annotated[list[str] | None, typer.Option(help="Why (not) this pair, e.g. 1A5E; may be repeated.")]
