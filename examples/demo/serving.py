"""Second half of the demo: two pools of processes, tokens compared with the undivided model, and where the time went."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pictures import draw_a_max
from progress import bar
from rich.console import Console
from rich.table import Table

from janus import Placement, RoutingTrace, Topology, balance
from janus.runner.launch import launch
from janus.sched import place

HERE = Path(__file__).parent
MODEL = HERE.parent / "tiny_moe"
TOPOLOGY, GPUS_PER_NODE, SLOTS = "2A4E", 2, 20
NEW_TOKENS, DEADLINE_S = 48, 150.0
METHODS = ("random", "tokens", "greedy", "exact")
REGIMES = ("direct", "gather")


def show(console: Console, picture: Path) -> bool:
    """Serve, compare, print the tables; returns whether every token was equal."""
    prompts = [p["ids"] for p in json.loads((MODEL / "prompts.json").read_text())]
    trace = RoutingTrace.load(MODEL / "routing.npz")
    placement = place(trace, 4, SLOTS, batch_sizes=(len(prompts),))
    with tempfile.TemporaryDirectory(prefix="janus-demo-") as name:
        folder = Path(name)
        parts = serve(console, folder, prompts, placement)
        table = a_max_table(
            RoutingTrace.load(folder / "gather.npz"), first(parts["gather"], "batches"), placement, len(prompts)
        )
    equal = compare(console, prompts, parts)
    print_a_max(console, table)
    print_traffic(console, parts)
    print_time(console, parts["gather"])
    draw_a_max(table, picture, f"tiny_moe, {len(prompts)} requests in decode, {placement}")
    return equal


def serve(
    console: Console, folder: Path, prompts: list[list[int]], placement: Placement
) -> dict[str, list[dict[str, Any]]]:
    """Run all ranks in processes of their own; what each wrote, by regime and rank."""
    world = Topology.parse(TOPOLOGY, gpus_per_node=GPUS_PER_NODE).world_size
    job = {
        "model": str(MODEL / "checkpoint"), "topology": TOPOLOGY, "gpus_per_node": GPUS_PER_NODE, "prompts": prompts,
        "max_new_tokens": NEW_TOKENS, "regimes": REGIMES,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    placement.save(folder / "placement.json")
    console.print(
        f"{world} processes, {TOPOLOGY} on nodes of {GPUS_PER_NODE}, {len(prompts)} prompts, {NEW_TOKENS} new tokens each"
    )
    command = [sys.executable, str(HERE / "rank.py"), str(folder)]
    with bar(console, "serving over both regimes"):
        ended = launch(command, world, deadline_s=DEADLINE_S)
    for rank in ended:
        if not rank.ok:
            console.print("\n".join(rank.tail), markup=False)
            raise SystemExit(f"rank {rank.rank} ended with exit code {rank.exit_code}, signal {rank.signal}")
    return {
        regime: [json.loads((folder / f"{regime}-{r}.json").read_text()) for r in range(world)] for regime in REGIMES
    }


def first(ranks: list[dict[str, Any]], key: str) -> Any:
    """What the first rank that has `key` wrote under it."""
    return next(part[key] for part in ranks if key in part)


def compare(console: Console, prompts: list[list[int]], parts: dict[str, list[dict[str, Any]]]) -> bool:
    """Generate with the undivided model and compare token by token."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(MODEL / "checkpoint", dtype=torch.float32).eval()
    want = []
    with bar(console, "undivided model") as moved, torch.inference_mode():
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([prompt])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
            want.append(out[0, len(prompt) :].tolist())
            moved(i + 1, len(prompts), "undivided model")
    equal = True
    for regime in REGIMES:
        got = first(parts[regime], "completions")
        same = sum(a == b for g, w in zip(got, want, strict=True) for a, b in zip(g, w, strict=False))
        equal &= got == want
        console.print(f"{regime}: {same} of {sum(map(len, want))} tokens equal to those of the undivided model")
    text = bytes(t for t in prompts[0] + first(parts["gather"], "completions")[0] if t < 256).decode(errors="replace")
    console.print(f"the first prompt and its completion: {text!r}", markup=False, highlight=False)
    return equal


def a_max_table(routing: RoutingTrace, sizes: list[int], placement: Placement, full: int) -> dict[str, list[float]]:
    """Mean a_max per layer of every method, over the full decode batches that were served."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    decode = [routing.ids[s : s + n] for s, n in zip(starts, sizes, strict=True) if n == full]
    return {
        method: [
            sum(balance(ids[:, layer], placement, layer=layer, method=method).a_max for ids in decode) / len(decode)
            for layer in range(routing.num_layers)
        ]
        for method in METHODS
    }


def print_a_max(console: Console, table: dict[str, list[float]]) -> None:
    layers = range(len(table["exact"]))
    out = Table(
        "method",
        *(f"layer {i}" for i in layers),
        "mean",
        title="a_max: most activated experts on one instance, mean over decode batches",
    )
    for method, row in table.items():
        out.add_row(method, *(f"{x:.2f}" for x in row), f"{sum(row) / len(row):.2f}")
    console.print(out)


def print_traffic(console: Console, parts: dict[str, list[dict[str, Any]]]) -> None:
    out = Table(
        "regime",
        "messages between nodes",
        "MB between nodes",
        "messages in a node",
        "TPOT ms",
        title="all ranks, whole run",
    )
    for regime, ranks in parts.items():
        between, inside = ([r["stats"]["traffic"][link] for r in ranks] for link in ("between_nodes", "in_node"))
        tpot = max(r["stats"]["tpot_ms"] for r in ranks if r["stats"]["role"] == "attention")
        out.add_row(
            regime, str(sum(t["messages"] for t in between)), f"{sum(t['bytes'] for t in between) / 1e6:.2f}",
            str(sum(t["messages"] for t in inside)), f"{tpot:.1f}",
        )  # fmt: skip
    console.print(out)


def print_time(console: Console, ranks: list[dict[str, Any]]) -> None:
    """Where the first attention and the first expert rank spent the time of the run that gathered."""
    for stats in (next(r["stats"] for r in ranks if r["stats"]["role"] == role) for role in ("attention", "expert")):
        seconds = dict(stats["seconds"])
        if "generate_s" in stats:
            seconds["attention and the rest of the model"] = stats["generate_s"] - sum(seconds.values())
        phases = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        console.print(f"rank {stats['rank']} ({stats['role']}): {phases}", highlight=False)
