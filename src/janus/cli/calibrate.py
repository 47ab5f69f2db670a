"""`janus calibrate`: times of this machine, or of kernel tables, into a file that `janus plan --latency` reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from janus.cli.progress import progress
from janus.errors import JanusError
from janus.scale import Cluster, LatencyModel, ModelSpec


def calibrated(
    config: str,
    *,
    hardware: str,
    gpus_per_node: int | None,
    inter_node_gbps: float | None,
    tables: Path | None,
    device: str,
    budget_s: float,
    save: Path,
) -> LatencyModel:
    """Measure or fit, and write the file; refuses before the work what could not be written after it.

    Args:
        config: folder, config.json or the name of a shipped config.
        hardware: name of a preset; with `gpus_per_node` and `inter_node_gbps` the cluster of later plans.
        gpus_per_node: default the preset's.
        inter_node_gbps: per GPU, default the preset's.
        tables: kernel tables to fit, a file or a folder; None to measure.
        device: of torch, or ``"auto"``.
        budget_s: seconds to measure for.
        save: the file.

    Raises:
        JanusError: ``calibrate.output``, and whatever `LatencyModel.fit` and `LatencyModel.measure` refuse.
    """
    model = ModelSpec.from_config(config)
    cluster = Cluster(hardware, gpus_per_node=gpus_per_node, inter_node_gbps=inter_node_gbps)
    if not save.parent.is_dir():
        raise JanusError("calibrate.output", f"cannot write {save}: {save.parent} is no folder; make it first")
    if tables is not None:
        found = LatencyModel.fit(tables, model=model, cluster=cluster)
    else:
        with progress(f"measuring for about {budget_s:g} s") as advance:
            found = LatencyModel.measure(model, cluster, device=device, budget_s=budget_s, progress=advance)
    found.save(save)
    return found


def print_calibration(found: LatencyModel, save: Path, as_json: bool) -> None:
    """What each part of a step rests on, and the shares that were measured."""
    shares = asdict(found.efficiency)
    if as_json:
        said = {"model": found.model.name, "hardware": found.cluster.gpu.name, "saved": str(save)}
        print(json.dumps({**said, "efficiency": shares, "provenance": found.provenance}))
        return
    print(f"{found.model.name} on {found.cluster.gpu.name}, written to {save}")
    for part, text in found.provenance.items():
        print(f"  {part:10} {text}")
    print("  " + ", ".join(f"{name} {value:.4g}" for name, value in shares.items()))
