"""Memory of a layer's experts: nothing beyond the slots, the announced workspace and one expert.

Peak RssAnon of a process of its own per case, above what it held when the case began: a forward at several batch
sizes, filling slots from a folder, refilling them, converting a model, replacing experts while the layer serves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from figures import figure, report, say
from peak import Peak, rss_anon

MB = 1e6
SMALL_MB = 8  # Python objects, headers of files, the balancer's tables
SIZES = dict(
    hidden_size=1024, intermediate_size=2048, num_hidden_layers=2, num_local_experts=24, num_attention_heads=8,
    num_key_value_heads=2, head_dim=32, num_experts_per_tok=2,
)  # fmt: skip
SAMPLE = dict(num_local_experts=4)
EXPERT = 3 * 1024 * 2048 * 4 / MB
BATCHES = (1, 64, 1024)
SPARE = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="a sixth of the experts")
    parser.add_argument("--case", choices=CASES, help="one case, in this process (the script starts itself)")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(CASES[args.case](args.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="janus-prove-") as folder:
        say("writing the checkpoint")
        run("write", Path(folder), "--sample" if args.sample else "")
        report([one for case in list(CASES)[1:] for one in run(case, Path(folder))])


def run(case: str, folder: Path, *words: str) -> list[dict[str, Any]]:
    # Freed blocks go back at once; the C library would keep them, and later ones would seem to cost nothing.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--case", case, "--folder", str(folder), *filter(None, words)]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


def write(folder: Path) -> list[dict[str, Any]]:
    tiny.save("mixtral", folder / "model", **SIZES | (SAMPLE if "--sample" in sys.argv else {}))
    tiny.save("mixtral", folder / "tiny")
    return []


@contextmanager
def growth() -> Iterator[Callable[[], float]]:
    """Peak above the start, in MB, once the block is left."""
    before, peak = rss_anon(), Peak()
    try:
        yield lambda: (peak.bytes - before) / MB
    finally:
        peak.stop()


def warm(folder: Path) -> Any:
    """Everything is imported and has run once."""
    import torch

    from janus import JanusMoELayer

    layer = JanusMoELayer.from_checkpoint(folder / "tiny")
    with torch.inference_mode():
        layer(torch.ones(2, 64), torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1))
    return layer


def placements(experts: int) -> tuple[Any, Any]:
    """Two instances with a replica each; the second placement moves `SPARE` experts."""
    from janus import Placement

    half = experts // 2
    first = [[*range(half), half], [*range(half, experts), 0]]
    second = [[*range(half), half + 1], [*range(half, experts), 1]]
    return Placement(first, experts), Placement(second, experts)


def num_experts(folder: Path) -> int:
    return json.loads((folder / "model" / "config.json").read_text())["num_local_experts"]


def within(name: str, value: float, parts: dict[str, float]) -> dict[str, Any]:
    """A figure whose bar is a sum; what it consists of is the note."""
    bar = sum(parts.values()) + SMALL_MB
    note = " + ".join(f"{mb:.1f} {what}" for what, mb in parts.items())
    return figure(
        name, round(value, 1), f"<= {bar:.1f}", value <= bar, "MB", f"{note} + {SMALL_MB}".removeprefix(" + ")
    )


def forward(folder: Path) -> list[dict[str, Any]]:
    import torch

    from janus import JanusMoELayer

    warm(folder)
    layer, found = JanusMoELayer.from_checkpoint(folder / "model"), []
    E, K, H = layer.num_experts, SIZES["num_experts_per_tok"], SIZES["hidden_size"]
    for B in BATCHES:
        x, weights = torch.randn(B, H), torch.full((B, K), 1 / K)
        ids = torch.stack([torch.arange(B) % E, (torch.arange(B) + 1) % E], dim=1)
        with growth() as grown, torch.inference_mode():
            for _ in range(3):
                layer(x, ids, weights)
        parts = {"workspace": layer.workspace_bytes(B, K) / MB, "output": x.nbytes / MB}
        found.append(within(f"forward of {B} tokens, {layer.compute}", grown(), parts))
    return found


def load(folder: Path) -> list[dict[str, Any]]:
    from janus import JanusMoELayer
    from janus.experts.checkpoint import Checkpoint

    warm(folder)
    first, second = placements(num_experts(folder))
    with Checkpoint(folder / "model") as checkpoint:
        with growth() as grown:
            layer = JanusMoELayer.from_checkpoint(checkpoint, first, layer=1)
        slots = sum(p.nbytes for p in layer.slots.parameters()) / MB
        filled = within("slots filled from a folder", grown(), {"slots": slots, "one expert": EXPERT})
        with growth() as grown:
            layer.load_slots(second, checkpoint)
    return [filled, within("slots refilled from a folder", grown(), {"one expert": EXPERT})]


def convert(folder: Path) -> list[dict[str, Any]]:
    import transformers

    import janus

    transformers.utils.logging.disable_progress_bar()
    warm(folder)
    janus.convert(tiny.build("mixtral"))
    found = []
    for name, placement in (("shared", None), ("replicas", placements(num_experts(folder))[0])):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", use_safetensors=True)
        for p in model.parameters():
            p.data = p.data.clone()  # the files are mapped; what replaces a mapped page would count as growth
        layer = sum(p.nbytes for p in model.model.layers[0].mlp.experts.parameters()) / MB
        with growth() as grown:
            janus.convert(model, placement)
        more = 2 * 2 * EXPERT + layer
        parts = {} if placement is None else {"4 replicas and one layer twice": more}
        found.append(within(f"a model of 2 layers converted, {name}", grown(), parts))
        del model
    return found


def replace(folder: Path) -> list[dict[str, Any]]:
    import torch

    from janus import JanusMoELayer

    warm(folder)
    first, second = placements(num_experts(folder))
    layer = JanusMoELayer.from_checkpoint(folder / "model", first, staging=SPARE)
    plain = sum(p[0].nbytes for p in layer.slots.parameters()) * first.phy2log.size / MB
    spare = sum(p.nbytes for p in layer.slots.parameters()) / MB - plain
    x, ids, weights = torch.randn(4, SIZES["hidden_size"]), torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1)
    with growth() as grown, torch.inference_mode():
        for placement, source in ((second, folder / "model"), (first, None)):
            job = layer.begin_replace(placement, source)
            while not job.wait(0.01):
                layer(x, ids, weights)
            layer.commit()
    announced = figure(
        "spare slots of a layer", round(spare, 1), f"<= {SPARE} experts", spare <= SPARE * EXPERT + 0.1, "MB",
        f"{SPARE} slots of {EXPERT:.1f} MB",
    )  # fmt: skip
    parts = {"spare slots, written for the first time": spare, "one expert": EXPERT}
    return [announced, within("experts replaced under way, twice", grown(), parts)]


CASES: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "write": write,
    "forward": forward,
    "load": load,
    "convert": convert,
    "replace": replace,
}

if __name__ == "__main__":
    main()
