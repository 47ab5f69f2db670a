"""Prove: the exact balancer reaches the maximum-flow optimum on random and on recorded batches, and backends agree.

    python benchmarks/prove/sched_exact.py [--sample]

Every case runs on every backend. Optimal means: a maximum flow serves all activated experts with this a_max and cannot
with one less, and the ids really are such an assignment. The Triton kernel runs small random cases, in its
interpreter where there is no GPU. Recorded loads of DeepSeek-V3 take part where the folder of recordings is present.
Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is imported
os.environ["OMP_NUM_THREADS"] = "1"  # the cores are taken by processes

import sched_cases as cases
from figures import figure, progress, report, say
from recordings import DEEPSEEK, gpt_oss

from janus.sched import Assignment, balance
from janus.sched.backends import BACKENDS

HOST = ("numba", "reference")  # the last one is what the others are compared with
METHODS = ("exact", "greedy")
Unit = tuple[str, str, tuple[Any, ...]]  # group, function of SOURCES, its arguments

GROUPS = {
    "random": "E 4..256, G 1..32, K 1..8",
    "deepseek-v3": "recorded loads, 58 layers x 4 workloads, 3 pools, B 1..256",
    "domains": "recorded counts of OLMoE and Mixtral per text domain, B 1..64",
    "triton": "random, small, in the interpreter where there is no GPU; greedy on every fourth",
    "gpt-oss-20b": "recorded decode batches, 24 layers, 3 pools, B 1..192",
}


def random_cases(seed: int, n: int) -> Iterator[cases.Case]:
    return cases.random_cases(n, seed)


def small_cases(seed: int, n: int) -> Iterator[cases.Case]:
    """Small enough for an interpreter."""
    return cases.random_cases(n, seed, largest=24)


def gpt_oss_cases(batches: int, first: int, stride: int) -> Iterator[cases.Case]:
    return islice(cases.gpt_oss_cases(gpt_oss(), batches), first, None, stride)


SOURCES: dict[str, Callable[..., Iterator[cases.Case]]] = {
    "random": random_cases,
    "small": small_cases,
    "gpt-oss": gpt_oss_cases,
    "deepseek": lambda name, stride: cases.deepseek_cases(name, stride=stride),
    "domain": lambda name, stride: islice(cases.domain_cases(name), 0, None, stride),
}


def run_unit(unit: Unit) -> tuple[str, Counter[str], str]:
    """All cases of a unit: group, tally, and the first case that was wrong."""
    group, source, arguments = unit
    backends = ("triton", "reference") if group == "triton" else HOST
    tally, wrong = Counter[str](), ""
    for number, case in enumerate(SOURCES[source](*arguments)):
        # the interpreter takes 0.1 s and more for a batch; greedy is the start of exact, so some of it will do
        seen = run_case(case, backends, METHODS if group != "triton" or number % 4 == 0 else METHODS[:1])
        tally.update(seen)
        if not wrong and not all(seen[name] for name in ("optimal", "serves", "same")):
            wrong = f"{unit}, case {number}: {seen}"
    return group, tally, wrong


def run_case(case: cases.Case, backends: tuple[str, ...], methods: tuple[str, ...]) -> dict[str, int]:
    """One case, `methods` on all `backends`."""
    runs = {m: [run(case, m, backend) for backend in backends] for m in methods}
    exact = runs["exact"][0]
    greedy = runs["greedy"][0] if "greedy" in runs else run(case, "greedy", "numba")
    seen = {
        "cases": True,
        "optimal": cases.optimal(exact, case) and exact.lower_bound <= exact.a_max <= greedy.a_max,
        "serves": cases.serves(exact, case) and cases.serves(greedy, case),
        "same": all(cases.same_bits(first, other) for first, *others in runs.values() for other in others),
        "paths": cases.start_a_max(case) > exact.a_max,
        "better": exact.a_max < greedy.a_max,
    }
    return {name: int(value) for name, value in seen.items()}


def run(case: cases.Case, method: str, backend: str) -> Assignment:
    ids, placement, layer = case
    return balance(ids, placement, layer=layer, method=method, backend=backend)


def units(sample: bool) -> list[Unit]:
    """The work in pieces of a few seconds, those that take longest first."""
    n, chunks, small, stride = (60, 2, (6, 1), 29) if sample else (600, 20, (40, 8), 1)
    found: list[Unit] = []
    if "triton" in BACKENDS:
        found += [("triton", "small", (900 + i, small[0])) for i in range(small[1])]
    found += [("deepseek-v3", "deepseek", (name, stride)) for name in cases.deepseek_names()]
    found += [("random", "random", (i, n)) for i in range(chunks)]
    found += [("gpt-oss-20b", "gpt-oss", (12, i, 4 * stride)) for i in range(1 if sample else 4)]
    found += [("domains", "domain", (name, max(1, stride // 5))) for name in cases.domain_names()]
    return found


def run_all(work: list[Unit]) -> tuple[dict[str, Counter[str]], list[str]]:
    """Tallies by group, and what was wrong, from as many processes as there are cores."""
    tallies: dict[str, Counter[str]] = {}
    wrong = []
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawned) as pool, progress("exact", len(work)) as step:
        for done in as_completed([pool.submit(run_unit, unit) for unit in work]):
            group, tally, problem = done.result()
            tallies.setdefault(group, Counter()).update(tally)
            wrong += [problem] if problem else []
            step(group)
    return tallies, wrong


def figures_of(tallies: dict[str, Counter[str]], sample: bool) -> list[dict[str, Any]]:
    out = []
    for group, tally in sorted(tallies.items(), key=lambda item: list(GROUPS).index(item[0])):
        n, others = tally["cases"], "triton" if group == "triton" else "numba"
        note = f"{GROUPS[group]}; exact beat greedy in {tally['better']}, needed paths in {tally['paths']}"
        good = min(tally["optimal"], tally["serves"])
        out.append(figure(f"exact a_max == maximum-flow optimum, {group}", good, f"== {n}", good == n, "cases", note))
        name = f"{others} == reference, all fields, exact and greedy, {group}"
        out.append(figure(name, tally["same"], f"== {n}", tally["same"] == n, "cases"))
    random, least = tallies["random"], tallies["random"]["cases"] // 10
    out.append(
        figure("random cases that needed paths", random["paths"], f">= {least}", random["paths"] >= least, "cases")
    )
    if not sample:
        total = sum(tally["cases"] for group, tally in tallies.items() if group == "random")
        out.append(figure("random cases", total, ">= 10000", total >= 10_000, "cases"))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="some hundred cases, seconds")
    sample = parser.parse_args().sample
    if not cases.deepseek_names():
        say(f"recorded loads of DeepSeek-V3 absent: no {DEEPSEEK}")
    tallies, wrong = run_all(units(sample))
    for problem in wrong:
        say(f"WRONG {problem}")
    report(figures_of(tallies, sample))


if __name__ == "__main__":
    main()
