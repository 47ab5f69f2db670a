"""GPU: does another cut of the work pay? Each number of the kernel's `Launch` halved and doubled, one at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import on_gpu
from figures import figure, progress, report, spread

from janus.errors import JanusError
from janus.sched.device import DeviceEngine, Launch

SIZES = (16, 256, 4096)
REFUSED = (JanusError, ValueError, RuntimeError)  # a cut that the compiler or the GPU does not take


def variants() -> dict[str, Launch]:
    """The usual cut, and every field at half and at double."""
    usual = Launch()
    found = {"usual": usual}
    for field in dataclasses.fields(usual):
        number = getattr(usual, field.name)
        for value in (number // 2, number * 2):
            if value >= 1:
                found[f"{field.name}={value}"] = dataclasses.replace(usual, **{field.name: value})
    return found


def times(launch: Launch, placement: Any, batches: dict[int, Any]) -> dict[int, float]:
    """Median microseconds by batch size."""
    engine = DeviceEngine(
        placement, "exact", on_gpu.MAX_TOKENS, on_gpu.DEVICE, check_ids=False, record_load=False, launch=launch
    )
    return {B: spread(on_gpu.in_graph(lambda x: engine(x, 0, 0), ids))[1] for B, ids in batches.items()}


def main() -> None:
    sample = on_gpu.wants_sample(__doc__)
    placement, source = on_gpu.placed(on_gpu.MAIN[0])
    batches = {B: on_gpu.on_device(source.batches(B, on_gpu.CALLS)) for B in (SIZES[:1] if sample else SIZES)}
    todo = dict(list(variants().items())[: 3 if sample else None])
    figures: list[dict[str, Any]] = []
    seen: dict[str, dict[int, float]] = {}
    with progress("cut", len(todo)) as step:
        for name, launch in todo.items():
            try:
                seen[name] = times(launch, placement, batches)
                note = ", ".join(f"B={B} {us} ({us / seen['usual'][B]:.2f} x usual)" for B, us in seen[name].items())
                figures.append(figure(f"cut {name}", seen[name][min(batches)], "none", True, "us", note))
            except REFUSED as error:
                figures.append(figure(f"cut {name}", "refused", "none", True, "", str(error)[:120]))
            step(name)
    report([*figures, *(compared(seen, B) for B in batches)])


def compared(seen: dict[str, dict[int, float]], B: int) -> dict[str, Any]:
    """The usual cut against the best one: far above 1, another cut is worth changing to."""
    best = min(seen, key=lambda name: seen[name][B])
    times = round(seen["usual"][B] / seen[best][B], 2)
    return on_gpu.at_most(f"usual cut / best cut, B={B}", times, 1.15, "x", f"best: {best}")


if __name__ == "__main__":
    main()
