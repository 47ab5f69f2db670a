"""One rank of a job: serve several models, gates and regimes one after the other in the same processes.

A process that imports torch and transformers costs seconds, so a topology is launched once and everything it must show
runs inside. Used by the tests and the proofs; `run_job` is the other half, in the launching process.

    job = {"topology": "2A4E", "gpus_per_node": 2, "cases": [{"folder": ..., "prompts": [[...]], "max_new_tokens": 8,
           "options": {"gate": "experts"}, "generate": {}, "ranks": {"3": {"folder": ...}}}]}

"family" instead of "folder" serves a live model from `tiny.build`; "ranks" overrides a case's fields on single ranks;
"own_loop" drives `runner.model` step by step instead of calling `generate`; "logits" makes one forward per prompt on the first
attention rank, and its "completions" are the logits of the last token; a "world" larger than the topology leaves idle ranks.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import tiny
from peak import Peak

COLLECTED = {"stats": "stats", "errors": "error", "peak_anon": "peak_anon"}  # one entry per rank


def run_job(
    job: dict[str, Any], *, deadline_s: float = 240.0, env: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Launch the job's topology on this machine; returns one result per case, as the first attention rank saw it.

    Each result holds "completions" and "stats" (of every rank); a case that raised holds "error" and "message".
    """
    from janus import Topology
    from janus.runner.launch import launch

    world = job.get("world") or Topology.parse(job["topology"], gpus_per_node=job["gpus_per_node"]).world_size
    with tempfile.TemporaryDirectory(prefix="janus-job-") as folder:
        path = Path(folder, "job.json")
        path.write_text(json.dumps(job))
        ended = launch([sys.executable, __file__, str(path)], world, deadline_s=deadline_s, env=env)
        failed = [e for e in ended if e.exit_code != 0]
        if failed:
            said = [
                f"rank {e.rank}: exit {e.exit_code}, signal {e.signal}\n  " + "\n  ".join(e.tail[-20:]) for e in failed
            ]
            raise RuntimeError("\n".join(said))
        return [_collect(Path(folder), i, world) for i in range(len(job["cases"]))]


def _collect(folder: Path, case: int, world: int) -> dict[str, Any]:
    parts = [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(world)]
    first = next(part for part in parts if "stats" not in part or part["stats"]["role"] == "attention")
    every = {name: [part.get(key) for part in parts] for name, key in COLLECTED.items()}
    return first | every


def main(path: Path) -> None:
    """Run all cases as one rank."""
    peak = Peak()  # before torch is imported
    import torch

    job = json.loads(path.read_text())
    torch.set_num_threads(1)
    for i, case in enumerate(job["cases"]):
        rank, part = run_case(job, case)
        part["peak_anon"] = peak.bytes
        path.with_name(f"{i}-{rank}.json").write_text(json.dumps(part))


def run_case(job: dict[str, Any], case: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """One model served once; returns this rank and what it saw."""
    from janus import DisaggregatedRunner, JanusError, Topology
    from janus.comm import Timeouts

    case = case | case.get("ranks", {}).get(os.environ["RANK"], {})
    topology = Topology.parse(job["topology"], gpus_per_node=job["gpus_per_node"])
    timeouts = Timeouts(**job.get("timeouts", {}))
    try:
        model = tiny.build(case["family"]) if "family" in case else case["folder"]
        with DisaggregatedRunner(model, topology=topology, timeouts=timeouts, **_options(case)) as runner:
            out: dict[str, Any] = {}
            if runner.role == "attention":
                loop = own_loop if case.get("own_loop") else last_logits if case.get("logits") else built_in
                out["completions"] = loop(runner, case)
            else:
                runner.serve()
            return runner.rank, out | {"stats": runner.stats()}
    except JanusError as error:
        return int(os.environ["RANK"]), {"error": error.code, "message": str(error)}


def built_in(runner: Any, case: dict[str, Any]) -> list[list[int]]:
    """The runner's own loop."""
    return runner.generate(case["prompts"], max_new_tokens=case["max_new_tokens"], **case.get("generate", {}))


def own_loop(runner: Any, case: dict[str, Any]) -> list[list[int]]:
    """A user's loop: the first attention rank completes one prompt after the other, the others have no work."""
    import torch

    out = []
    for prompt in case["prompts"]:
        ids = torch.tensor([prompt])
        for _ in range(case["max_new_tokens"]):
            if runner.topology.instance(runner.rank):
                runner.idle_step()
                continue
            with torch.inference_mode():
                token = runner.model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, token[None, None]], dim=1)
        out.append(ids[0, len(prompt) :].tolist())
    return out


def last_logits(runner: Any, case: dict[str, Any]) -> list[list[float]]:
    """What the first attention rank says of the token after each prompt, the others without work."""
    import torch

    if runner.topology.instance(runner.rank):
        return [[runner.idle_step()] for _ in case["prompts"]]
    with torch.inference_mode():
        return [runner.model(input_ids=torch.tensor([p])).logits[0, -1].tolist() for p in case["prompts"]]


def _options(case: dict[str, Any]) -> dict[str, Any]:
    import torch

    from janus import Placement
    from janus.sched import RooflineCost

    options = dict(case.get("options", {}))
    if "placement" in options:
        options["placement"] = Placement.from_dict(options["placement"])
    if "dtype" in options:
        options["dtype"] = getattr(torch, options["dtype"])
    if "cost" in options:
        options["cost"] = RooflineCost(*options["cost"])
    return options


if __name__ == "__main__":
    main(Path(sys.argv[1]))
