"""`janus run`: the launcher's half (`run_all`), one rank's half (`run_rank`), and what passes between them.

A rank that is done writes ``rank-N.json`` into the rendezvous folder and names it on stdout; the launcher reads it at
once, before the folder goes. So results have no size limit and survive whatever a library prints.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from janus.cli.last_words import last_words
from janus.cli.prompts import encode
from janus.cli.report import RunFailed, exit_code, from_dict, to_dict
from janus.cli.settings import RunSettings
from janus.errors import JanusError, PeerLost
from janus.runner.launch import Ended, launch

Json = dict[str, Any]

HANDOVER = "@janus-handover "
GRACE_S = 5.0  # on top of the step timeout, within which the peers of a failed rank notice


RANK_GB = 0.25  # anonymous memory of a rank before it holds any weight: interpreter, torch, transformers


def check_room(world: int, free_gb: float) -> None:
    """Refuse to start more processes on this machine than its memory can hold, weights not counted.

    Raises:
        JanusError: ``run.world``.
    """
    if world * RANK_GB > free_gb:
        raise JanusError(
            "run.world",
            f"{world} processes need about {world * RANK_GB:.0f} GB before any weight, this machine has {free_gb:.1f} GB "
            "available; make the topology smaller, or spread it over machines with torchrun",
        )


def available_gb(meminfo: Path = Path("/proc/meminfo")) -> float:
    """Memory that new processes can have, caches that the kernel would give up included; infinite where unknown."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):
        return float("inf")


def run_all(settings: RunSettings, command: Sequence[str]) -> Json:
    """Start one copy of `command` per rank, pass their lines on to stderr, and return the result they agreed on.

    Raises:
        JanusError: what a rank refused.
        PeerLost: what a rank lost, where no rank has a better reason.
        RunFailed: a rank crashed or was killed, or the deadline passed.
    """
    handed: dict[int, Json] = {}

    def on_line(rank: int, stream: str, line: str) -> None:
        _, found, path = line.partition(HANDOVER)  # not always at the start: a library may have left a line open
        if found and stream == "stdout":
            handed[rank] = json.loads(Path(path).read_text())
        else:
            print(f"[{rank} {settings.topology.role(rank)}] {line}", file=sys.stderr, flush=True)

    world, grace_s = settings.topology.world_size, settings.step_s + GRACE_S
    check_room(world, available_gb())
    ended = launch(command, world, deadline_s=settings.deadline_s, grace_s=grace_s, on_line=on_line)
    _raise_reason(settings, ended, handed)
    return assemble(settings, [handed[rank] for rank in sorted(handed)])


def run_rank(settings: RunSettings) -> Json | None:
    """Be one rank; returns the result on the first attention rank, unless a launcher took it, and None elsewhere."""
    rendezvous, rank = os.environ.get("JANUS_RENDEZVOUS"), os.environ["RANK"]
    try:
        with nullcontext() if rendezvous else last_words():
            part = _serve(settings)
    except (JanusError, PeerLost) as error:
        if rendezvous is None:
            raise
        if isinstance(error, PeerLost):  # each rank has seen something else; a refusal is told once, by the launcher
            print(error, file=sys.stderr, flush=True)
        _hand_over(rendezvous, rank, {"error": to_dict(error)})
        raise SystemExit(exit_code(error)) from error
    if rendezvous is not None:
        _hand_over(rendezvous, rank, part)
        return None
    return assemble(settings, [part]) if "completions" in part else None


def assemble(settings: RunSettings, parts: Sequence[Json]) -> Json:
    """The result of a run: the completions, and the statistics of the ranks whose parts are at hand."""
    completions = next(part["completions"] for part in parts if "completions" in part)
    stats = [part["stats"] for part in parts]
    return {
        "model": str(settings.model),
        "topology": str(settings.topology),
        "completions": completions,
        "stats": stats,
    }


def _serve(settings: RunSettings) -> Json:
    """This rank's statistics, and on the first attention rank the completions."""
    from janus.comm import Timeouts
    from janus.runner import DisaggregatedRunner

    start = time.monotonic()
    with DisaggregatedRunner(
        str(settings.model),
        topology=settings.topology,
        placement=settings.placement,
        gate=settings.gate,
        balance=settings.balance,
        regime=settings.regime,
        compute=settings.compute,
        quantize=settings.quantize,
        timeouts=Timeouts(step_s=settings.step_s),
    ) as runner:
        print(f"ready in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        if runner.role != "attention":
            runner.serve()
            return {"stats": runner.stats()}
        tokenizer = _tokenizer(settings)
        ids = encode(settings.prompts, tokenizer)
        tokens = runner.generate(ids, max_new_tokens=settings.max_new_tokens, **settings.sampling)
        if runner.rank != settings.topology.attention_ranks[0]:
            return {"stats": runner.stats()}
        texts = [tokenizer.decode(row, skip_special_tokens=True) if tokenizer else None for row in tokens]
        completions = [{"tokens": row, "text": text} for row, text in zip(tokens, texts, strict=True)]
        return {"stats": runner.stats(), "completions": completions}


def _tokenizer(settings: RunSettings) -> Any:
    if not isinstance(settings.prompts[0], str):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(settings.model), local_files_only=True)


def _hand_over(rendezvous: str, rank: str, payload: Json) -> None:
    path = Path(rendezvous.removeprefix("file://")).with_name(f"rank-{rank}.json")
    path.write_text(json.dumps(payload))
    print(f"{HANDOVER}{path}", flush=True)


def _raise_reason(settings: RunSettings, ended: list[Ended], handed: dict[int, Json]) -> None:
    """Of all that went wrong, tell the cause: a refusal, else the first crash, else a lost peer, else the deadline."""
    errors = [from_dict(handed[e.rank]["error"]) for e in _by_time(ended) if "error" in handed.get(e.rank, {})]
    refused = [error for error in errors if isinstance(error, JanusError)]
    if refused:
        raise refused[0]
    silent = [e for e in _by_time(ended) if not e.ok and not e.killed_by_us and e.rank not in handed]
    if silent:
        raise _crash(settings, silent[0], errors)
    if errors:
        raise errors[0]
    late = [e for e in ended if e.killed_by_us]
    first = settings.topology.attention_ranks[0]
    if late:
        names = ", ".join(f"{e.rank} ({settings.topology.role(e.rank)})" for e in late)
        limit = f"the deadline of {settings.deadline_s:g} s passed with rank {names} still running"
        raise RunFailed("run.deadline", f"{limit}; raise --deadline, or see their last lines above")
    if "completions" not in handed.get(first, {}):
        raise RunFailed("run.crash", f"rank {first} (attention) ended without a result; see its last lines above")


def _by_time(ended: list[Ended]) -> list[Ended]:
    return sorted(ended, key=lambda e: e.seconds)


def _crash(settings: RunSettings, ended: Ended, errors: Sequence[Exception]) -> RunFailed:
    who = f"rank {ended.rank} ({settings.topology.role(ended.rank)})"
    others = "".join(f"; {error}" for error in errors)
    if ended.signal is not None:
        return RunFailed("run.killed", f"{who} was killed by {signal.Signals(ended.signal).name}{others}")
    last = ended.tail[-1] if ended.tail else "it printed nothing"
    return RunFailed("run.crash", f"{who} ended with exit code {ended.exit_code}: {last}{others}")


def print_result(result: Json, as_json: bool) -> None:
    """One JSON object, or each completion (text, else token ids) followed by a line per rank."""
    if as_json:
        print(json.dumps(result))
        return
    for number, row in enumerate(result["completions"]):
        print(f"# completion {number}: {len(row['tokens'])} tokens")
        print(" ".join(map(str, row["tokens"])) if row["text"] is None else row["text"])
    for stats in result["stats"]:
        print(f"# rank {stats['rank']} {stats['role']}: {_stats_line(stats)}")


def _stats_line(stats: Json) -> str:
    words = [f"{phase} {seconds:.3f} s" for phase, seconds in stats.get("seconds", {}).items()]
    words += [f"{t['messages']} messages {t['bytes']} bytes {link}" for link, t in stats.get("traffic", {}).items()]
    if stats.get("tpot_ms") is not None:
        words.insert(0, f"{stats['tokens']} tokens, {stats['tpot_ms']:.1f} ms per output token")
    layers = [layer for layer in stats.get("layers", []) if layer["batches"]]
    if layers:
        mean = sum(layer["a_max"] for layer in layers) / len(layers)
        words.insert(0, f"mean a_max {mean:.2f} over {len(layers)} layers")
    return ", ".join(words)
