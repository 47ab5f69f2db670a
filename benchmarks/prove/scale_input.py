"""Prove: damaged files and bad input give a `JanusError`, or an infeasible plan that names why; never anything else.

    python benchmarks/prove/scale_input.py [--sample]

Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import contextlib
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import fuzz  # noqa: E402  (the paths above come first)
import numpy as np  # noqa: E402
from figures import figure, report, say  # noqa: E402

from janus.errors import JanusError  # noqa: E402
from janus.scale import Cluster, Hardware, LatencyModel, ModelSpec, SavedPlan, ScalePlan, plan  # noqa: E402
from janus.types import RequestTrace, RoutingTrace, read_expert_counts  # noqa: E402

FILES = 10_000
MEMORY_BYTES = 6 * 2**30  # a load that asks for more dies here, and counts as a failure
CARD = Cluster("h100-sxm")
GOOD: dict[str, Any] = {
    "model": "olmoe-1b-7b", "cluster": CARD, "demand": 500, "slo": 50, "trace": [range(1, 65)], "context": 400,
    "max_attention": 2, "max_experts": 3, "max_batch": 64,
}  # fmt: skip


def planned(**changed: Any) -> Callable[[Path], ScalePlan]:
    return lambda folder: plan(**(GOOD | changed))


def written(name: str, data: bytes, load: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def attempt(folder: Path) -> Any:
        (folder / name).write_bytes(data)
        return load(folder / name)

    return attempt


def cases() -> list[tuple[str, str, Callable[[Path], Any]]]:
    """What is wrong, the code or the binding constraint it must give, and how it is tried."""
    nan, tiny = float("nan"), Cluster(Hardware("toy", 2**30, 1e12, 2e14, 4e14, 2e11))
    other = LatencyModel.roofline(ModelSpec.from_config("deepseek-v2-lite"), CARD)
    no_tokens = RoutingTrace(np.zeros((0, 16, 8), dtype=np.int16), 64)
    rate, lengths = fuzz.servegen()
    negative = rate.replace(b"0.02", b"-0.02")
    return [
        ("SLO that no pair meets", "infeasible: slo", planned(slo=0.01)),
        ("SLO of 0 ms", "slo.range", planned(slo=0)),
        ("SLO that is NaN", "slo.range", planned(slo=nan)),
        ("model larger than every pool", "infeasible: expert_slots", planned(slots=8)),
        ("requests larger than every pool", "infeasible: attention_memory", planned(context=1e8)),
        (
            "expert larger than the card",
            "scale.memory",
            planned(model="deepseek-v3", trace=[range(1, 257)], cluster=tiny),
        ),
        ("routing trace without a token", "routing.shape", planned(trace=no_tokens)),
        ("counts without a layer", "routing.counts", planned(trace=[])),
        ("counts that are all 0", "routing.counts", planned(trace=[[0] * 64])),
        ("counts with NaN", "routing.counts", planned(trace=[[nan] * 64])),
        ("negative counts", "routing.counts", planned(trace=[[-1] * 64])),
        ("routing of another model", "routing.model", planned(trace=[range(1, 33)])),
        ("latency of another model", "scale.latency", planned(latency=other)),
        ("demand that is NaN", "scale.range", planned(demand=nan)),
        ("negative demand", "scale.range", planned(demand=-500)),
        ("demand beyond every float", "scale.range", planned(demand=10**400)),
        ("context that is NaN", "scale.range", planned(context=nan)),
        ("batch of 0", "scale.range", planned(demand=None, batch=0)),
        ("unknown GPU", "hardware.name", lambda folder: Cluster("h1000")),
        ("unknown model", "model.name", planned(model="deepseek-v9")),
        ("empty routing file", "routing.file", written("r.npz", b"", RoutingTrace.load)),
        ("corrupt counts", "routing.file", written("c.npz", b"PK\x03\x04junk", read_expert_counts)),
        ("requests: only a header", "requests.file", written("a.csv", fuzz.AZURE.split(b"\n")[0], RequestTrace.load)),
        (
            "negative request rate",
            "requests.file",
            written("rate.csv", negative, lambda path: fuzz.served(path, fuzz.beside(path, lengths))),
        ),
        ("plan of a later format", "plan.file", written("p.json", b'{"format": "janus.plan/9"}', SavedPlan.load)),
        (
            "plan that is another noun",
            "plan.file",
            written("q.json", b'{"format": "janus.placement/1"}', SavedPlan.load),
        ),
    ]


def checked(name: str, want: str, attempt: Callable[[Path], Any], folder: Path) -> dict[str, Any]:
    try:
        found = attempt(folder)
        seen = f"infeasible: {found.binding}" if isinstance(found, ScalePlan) and not found.feasible else "accepted"
        note = found.verdict if isinstance(found, ScalePlan) else ""
    except JanusError as error:
        seen, note = error.code, error.message
    return figure(name, seen, want, seen == want, "", note[:160])


def fuzzed(count: int, folder: Path) -> list[dict[str, Any]]:
    """`count` damaged files, every kind in turn."""
    kinds, rng, canary = fuzz.seeds(folder), np.random.default_rng(2026), folder / fuzz.CANARY
    seen: Counter[str] = Counter()
    wrong, slowest, slow_kind = [], 0.0, ""
    for i in range(count):
        kind = kinds[i % len(kinds)]
        path = folder / "damaged"
        path.write_bytes(fuzz.damaged(kind, kinds, rng, canary))
        start = time.perf_counter()
        outcome = fuzz.outcome(kind, path)
        seconds = time.perf_counter() - start
        seen[outcome if outcome == "value" else "JanusError"] += not outcome.startswith("!")
        if seconds > slowest:
            slowest, slow_kind = seconds, kind.name
        if outcome.startswith("!"):
            wrong.append(f"{kind.name}: {outcome[1:]}")
            say(f"  {wrong[-1]}")
        if i % 1000 == 999:
            say(f"  {i + 1} damaged files")
    note = (
        f"of {count} files of {len(kinds)} kinds; {seen['JanusError']} refused, {seen['value']} still valid"
        + "".join(f"; {what}" for what in wrong[:3])
    )
    executed = int(canary.exists())
    return [
        figure("damaged files that gave neither a value nor a JanusError", len(wrong), "== 0", not wrong, "", note),
        figure("slowest load of a damaged file", round(slowest, 2), "<= 5", slowest <= 5, "s", slow_kind),
        figure("pickles in damaged files that were executed", executed, "== 0", not executed),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true")
    sample = parser.parse_args().sample
    with tempfile.TemporaryDirectory(prefix="janus-prove-") as name:
        folder = Path(name)
        figures = [checked(*case, folder) for case in cases()]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        figures += fuzzed(1000 if sample else FILES, folder)
    report(figures)


if __name__ == "__main__":
    main()
