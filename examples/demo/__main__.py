"""The main job on real input: plan pools for DeepSeek-V2, then serve a small trained model over two pools.

    python examples/demo [--out out/demo]

The plan is for real requests (a sample of Azure's conversation trace) on H100 nodes. The served model is
`examples/tiny_moe`, 2 attention and 4 expert processes on this machine; its tokens are compared with the undivided model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import planning
import serving
from rich.console import Console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the pictures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=110)
    console.rule("1. plan: DeepSeek-V2 on H100 nodes, real requests")
    planning.show(console, out / "plan.png")
    console.rule("2. serve: a small trained MoE at 2A4E on this machine")
    equal = serving.show(console, out / "a_max.png")
    console.print(f"pictures: {out / 'plan.png'}, {out / 'a_max.png'}")
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
