"""Speed: two phases against direct, relaying against gathering, and how much of the busiest port's rate is used.

On the test network, 200 Mbit/s per node port, b = 64 rows of H = 5120 float32 per rank.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comm_cells import Group, directions, opened, run, start
from figures import figure, report, say
from testbed import Testbed, unavailable
from testbed_ranks import Ranks

from janus.comm.layout import Route

B, H, MBIT = 64, 5120, 200
TWO_PHASES = (Route("gather"), Route("spread", 2))
RELAY = Route("relay", 4)
PORT_BAR = 0.85


def times(ranks: Ranks, group: Group, routes: tuple[Route, ...], samples: int, b: int) -> dict[Route, list[float]]:
    """Seconds per layer, routes taking turns."""
    found: dict[Route, list[float]] = {route: [] for route in routes}
    run(ranks, group, 1, [list(route) for route in routes], 1, 5.0)
    for _ in range(samples):
        for route, timed in zip(routes, run(ranks, group, b, [list(r) for r in routes], 2, 8.0), strict=True):
            found[route].append(timed.layer)
    return found


def ratio(a: list[float], b: list[float]) -> tuple[float, str]:
    """Of the medians, with the spread of each."""
    words = [f"{statistics.median(t) * 1e3:.0f} ms ({min(t) * 1e3:.0f} to {max(t) * 1e3:.0f})" for t in (a, b)]
    return round(statistics.median(a) / statistics.median(b), 2), " / ".join(words)


def ports(ranks: Ranks, group: Group, route: Route, samples: int, b: int) -> list:
    """Bytes per second of the busiest port over its rate, phases added up, for the way out and the way home."""
    found = []
    seconds = directions(ranks, group, b, route, samples)
    for way, bytes_, took in zip(("out", "home"), group.phase_bytes(route, b), seconds, strict=True):
        share = bytes_ * 8 / (group.rate_mbit * 1e6) / took
        name = f"{group.topology} x{group.ranks_per_node} {route}: rate of the busiest port, {way}"
        note = f"{bytes_ / 1e6:.2f} MB in {took * 1e3:.0f} ms"
        found.append(figure(name, round(share, 3), f">= {PORT_BAR}", share >= PORT_BAR, note=note))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", action="store_true")
    sample = parser.parse_args().sample
    if reason := unavailable():
        report([figure("speed on the test network", "not measured", "root", True, note=reason)])
        return
    samples, b, figures = (2, 16, []) if sample else (7, B, [])
    with Testbed(nodes=8, rate_mbit=MBIT) as bed:
        for size, bar in ((2, 1.7), (4, 3.2)):
            group = Group(2, 2, size, H, MBIT)
            with opened(bed, group) as ranks:
                start(ranks, group, B, 0)
                found = times(ranks, group, (Route("direct"), *TWO_PHASES), samples, b)
                for route in TWO_PHASES:
                    value, note = ratio(found[Route("direct")], found[route])
                    name = f"direct / {route}, 2 + 2 nodes of {size}"
                    figures.append(figure(name, value, f">= {bar}", value >= bar, "x", note))
                for route in () if sample else (Route("direct"), *TWO_PHASES):
                    figures += ports(ranks, group, route, 3, b)
            say(f"nodes of {size} done")
        group = Group(1, 4, 1, H, MBIT)
        with opened(bed, group) as ranks:
            start(ranks, group, B, 0)
            found = times(ranks, group, (Route("gather"), Route("relay"), RELAY), samples, b)
            for route in (Route("relay"), RELAY):
                value, note = ratio(found[Route("gather")], found[route])
                figures.append(figure(f"gather / {route}, 1 + 4 nodes", value, ">= 1.6", value >= 1.6, "x", note))
            for route in () if sample else (Route("gather"), Route("relay"), RELAY):
                figures += ports(ranks, group, route, 3, b)
    report(figures)


if __name__ == "__main__":
    main()
