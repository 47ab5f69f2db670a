"""One rank of the demo: serve the same prompts twice, rows sent directly and gathered per node, and write what was seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from janus import DisaggregatedRunner, Placement, Topology


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    topology = Topology.parse(job["topology"], gpus_per_node=job["gpus_per_node"])
    torch.set_num_threads(1)
    for regime in job["regimes"]:
        with DisaggregatedRunner(
            job["model"], topology=topology, placement=Placement.load(folder / "placement.json"), dtype=torch.float32, regime=regime,
            record=True,
        ) as runner:  # fmt: skip
            seen = {}
            if runner.role == "attention":
                print(f"{regime}: generating", flush=True)
                seen["completions"] = runner.generate(job["prompts"], max_new_tokens=job["max_new_tokens"])
            else:
                runner.serve()
            if runner.rank == topology.expert_ranks[0]:
                runner.routing().save(folder / f"{regime}.npz")
                seen["batches"] = runner.batch_sizes()
            (folder / f"{regime}-{runner.rank}.json").write_text(json.dumps(seen | {"stats": runner.stats()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
