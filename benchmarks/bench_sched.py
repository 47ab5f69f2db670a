"""Bench: a_max and microseconds of every balancing method and backend, for a few model shapes.

    python benchmarks/bench_sched.py [--quick] [--json FILE]

All methods see the same batches in the same run; "greedy" is the paper's, the last three are baselines. A time is one
`Balancer` call (ids rewritten, nothing allocated), median and 10th..90th percentile over batches and repeats.
Popularity is drawn from a gamma(2) distribution: synthetic routing, no recording of these models is used.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from janus.sched import Balancer, place
from janus.sched.backends import METHODS
from janus.sched.popularity import popularity

# name: experts, top-k, instances, slots per instance
SHAPES = {
    "gpt-oss-20b 8x6": (32, 4, 8, 6),
    "qwen3-235b 16x12": (128, 8, 16, 12),
    "deepseek-v2 8x27": (160, 6, 8, 27),
    "deepseek-v3 32x10": (256, 8, 32, 10),
    "deepseek-v3 32x16": (256, 8, 32, 16),
}
BATCHES = (16, 64, 512)


def measure(balancer: Balancer, ids: Any, repeats: int) -> tuple[float, list[float]]:
    tops, times = [], []
    for x in ids:
        balancer(x, 0)  # warm
        tops.append(int(balancer.load.max()))
        for _ in range(repeats):
            start = time.perf_counter()
            balancer(x, 0)
            times.append(1e6 * (time.perf_counter() - start))
    return float(np.mean(tops)), [round(float(q), 1) for q in np.percentile(times, [10, 50, 90])]


def rows(quick: bool) -> Any:
    for name, (E, K, G, C) in SHAPES.items():
        counts = np.random.default_rng(0).gamma(2.0, size=E)
        placement, (layer,) = place(counts, G, C, top_k=K), popularity(counts, K)[0]
        for B in BATCHES[: 2 if quick else None]:
            ids = layer.batches(B, 10 if quick else 100, np.random.default_rng(1)).astype(np.int64)
            for method in METHODS:
                for backend in ("numba", "reference"):
                    few = ids if backend == "numba" else ids[:5]
                    balancer = Balancer(placement, method=method, backend=backend, max_tokens=B)
                    a_max, times = measure(balancer, few, 10 if backend == "numba" else 1)
                    if backend == "numba":
                        best = a_max
                    yield {"shape": name, "B": B, "method": method, "backend": backend, "a_max": best, "us": times}


def machine() -> dict[str, str]:
    import numba

    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")]
        if info.exists()
        else []
    )
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    versions = {
        "commit": commit,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }
    return {"cpu": models[0] if models else platform.processor(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer batches: seconds")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    options = parser.parse_args()
    print(machine(), "placement: janus; routing: synthetic")
    print(f"{'shape':18} {'B':>4} {'method':12} {'backend':10} {'a_max':>6}  us p10 / p50 / p90")
    done = []
    for row in rows(options.quick):
        done.append(row)
        low, middle, high = row["us"]
        print(
            f"{row['shape']:18} {row['B']:4} {row['method']:12} {row['backend']:10} {row['a_max']:6.2f}"
            f"  {low:.1f} / {middle:.1f} / {high:.1f}"
        )
    if options.json:
        lines = ",\n".join(json.dumps(row) for row in done)
        Path(options.json).write_text(f'{{"machine": {json.dumps(machine())}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
