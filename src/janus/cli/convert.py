"""`janus trace convert` and `janus trace sample`: one trace in, another one out, and its source says what was done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from janus.cli.trace import Counts, Trace, kind, load_traces
from janus.errors import JanusError, known
from janus.scale import ModelSpec
from janus.types import RequestTrace, RoutingTrace
from janus.types.checks import integer
from janus.types.files import write_npz, write_text

KINDS = ("routing", "counts", "requests")


def convert(
    names: Sequence[str | Path],
    out: Path,
    *,
    to: str | None,
    like: str | None,
    recording: str | None,
    top_k: int | None,
    tokens: int,
    seed: int,
    hours: float,
) -> Trace:
    """Read a trace in any format, write it in Janus's own, and return it.

    Args:
        names: one trace, or ServeGen's rates and lengths.
        out: what to write: npz, for counts also JSON.
        to: kind to write, ``"routing"``, ``"counts"`` or ``"requests"``; None for the kind that was read.
        like: a model whose routing is to be made up from the popularity read; the trace is then marked synthetic.
        recording: which one of a file of expert counts; None for all of them, or the only one.
        top_k: K of tokens drawn from counts.
        tokens: how many to draw, where tokens are drawn.
        seed: of any draw.
        hours: of ServeGen's files.

    Raises:
        JanusError: ``trace.convert``, ``trace.file``, ``routing.*``, ``requests.*``, ``model.*``.
    """
    trace = load_traces(names, seed=seed, hours=hours)
    wanted = known(to or ("routing" if like else kind(trace)), KINDS, "--to", "trace.convert")
    if (wanted == "requests") != isinstance(trace, RequestTrace):
        raise JanusError("trace.convert", f"{kind(trace)} cannot become {wanted}: a different thing was recorded")
    if isinstance(trace, dict) and recording is not None:
        trace = {recording: trace[known(recording, trace, "--recording", "trace.convert")]}
    if like is not None:
        trace = _synthetic(trace, like, tokens, seed)
    if wanted == "routing" and isinstance(trace, dict):
        trace = _drawn(trace, names[0], top_k, tokens, seed)
    if wanted == "counts" and isinstance(trace, RoutingTrace):
        trace = {trace.source or Path(names[0]).stem: trace.counts()}
    write(trace, out)
    return trace


def sampled(trace: Trace, tokens: int | None, requests: int | None, seed: int) -> Trace:
    """A random part of a trace, in its order: so many tokens of a routing trace, so many requests of a request trace.

    Raises:
        JanusError: ``trace.sample``.
    """
    rng = np.random.default_rng(integer(seed, "--seed", "trace.sample"))
    if isinstance(trace, RoutingTrace):
        keep = _chosen(trace.num_tokens, tokens, "--tokens", rng)
        known_steps = (
            {}
            if trace.request is None or trace.step is None
            else {"request": trace.request[keep], "step": trace.step[keep]}
        )
        source = f"{trace.source}, {len(keep)} of {trace.num_tokens} tokens"
        return RoutingTrace(
            trace.ids[keep], trace.num_experts, source=source, synthetic=trace.synthetic, **known_steps
        )  # fmt: skip
    if isinstance(trace, RequestTrace):
        keep = _chosen(trace.num_requests, requests, "--requests", rng)
        source = f"{trace.source}, {len(keep)} of {trace.num_requests} requests"
        return RequestTrace(
            trace.times_s[keep], trace.input_tokens[keep], trace.output_tokens[keep], duration_s=trace.duration_s,
            source=source, recorded=trace.recorded,
        )  # fmt: skip
    raise JanusError(
        "trace.sample", "expert counts have no tokens to choose from; draw some: janus trace convert --to routing"
    )


def write(trace: Trace, out: Path) -> None:
    """Write a trace in Janus's own format.

    Raises:
        JanusError: ``trace.convert`` for an ending that does not fit, ``routing.file``, ``requests.file``.
    """
    endings = (".npz", ".json") if isinstance(trace, dict) else (".npz",)
    if out.suffix not in endings:
        raise JanusError("trace.convert", f"{kind(trace)} are written to {' or '.join(endings)}; got {out}")
    if not isinstance(trace, dict):
        trace.save(out)
    elif out.suffix == ".json":
        write_text(out, "routing.file", json.dumps({name: counts.tolist() for name, counts in trace.items()}))
    else:
        write_npz(out, "routing.file", **trace)


def _chosen(have: int, wanted: int | None, option: str, rng: np.random.Generator) -> np.ndarray:
    rule = f"{option} must say how many of the {have} to keep, 1..{have}"
    if wanted is None or not 1 <= wanted <= have:
        raise JanusError("trace.sample", f"{rule}; got {wanted}")
    return np.sort(rng.choice(have, wanted, replace=False))


def _synthetic(trace: Trace, like: str, tokens: int, seed: int) -> RoutingTrace:
    model = ModelSpec.from_config(like)
    if isinstance(trace, dict):  # only the popularity is taken, so any top_k will do
        trace = RoutingTrace.from_counts(_only(trace), top_k=1, source="expert counts")
    assert isinstance(trace, RoutingTrace)
    return RoutingTrace.synthetic(
        like=trace, num_experts=model.experts, top_k=model.top_k, num_layers=model.moe_layers, tokens=tokens, seed=seed
    )


def _drawn(counts: Counts, name: str | Path, top_k: int | None, tokens: int, seed: int) -> RoutingTrace:
    chosen = _only(counts)
    if top_k is None:
        raise JanusError("trace.convert", "counts do not say how many experts a token chooses; give --top-k")
    source = f"{Path(name).name}, {next(iter(counts))}"
    return RoutingTrace.from_counts(chosen, top_k, tokens=tokens, seed=seed, source=source)


def _only(counts: Counts) -> np.ndarray:
    if len(counts) != 1:
        raise JanusError("trace.convert", f"say which counts with --recording: one of {', '.join(counts)}")
    return next(iter(counts.values()))
