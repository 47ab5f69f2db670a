"""Prove: the mixed-integer program finds what the exhaustive search finds; the decomposition against a joint program.

    python benchmarks/prove/scale_milp.py [--sample]

Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from figures import figure, progress, report  # noqa: E402  (the paths above come first)

from janus.scale import ActivationTable, Cluster, Hardware, LatencyModel, ModelSpec  # noqa: E402
from janus.scale.search.joint import Joint, Solved, enumerate_joint, solve_joint  # noqa: E402
from janus.scale.search.milp import Limits, solve  # noqa: E402
from janus.scale.search.reference import judge  # noqa: E402
from janus.scale.search.solve import Candidate, Problem, pick, search  # noqa: E402
from janus.scale.timing.prefill import Prefill  # noqa: E402
from janus.sched import balance, place  # noqa: E402
from janus.types import RoutingTrace  # noqa: E402

LARGEST = (10, 12)  # pools searched: 120 pairs per pair of GPU types
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def tables(seed: int) -> list[tuple[ModelSpec, int, ActivationTable]]:
    """Models of different shapes, each with the table of the pools that memory allows."""
    out = []
    for name, slots in (("olmoe-1b-7b", (12, 28)), ("gpt-oss-20b", (5, 16)), ("deepseek-v2-lite", (9, 24))):
        spec = ModelSpec.from_config(name)
        counts = np.random.default_rng(seed).zipf(1.5, (1, spec.experts)).clip(1, 1000)
        grid = [(n, c) for c in slots for n in range(-(-spec.experts // c), LARGEST[1] + 1)]
        options: dict[str, Any] = {"top_k": spec.top_k, "placing": "eplb", "samples": 4}
        table = ActivationTable.build(counts, grid, BATCHES, **options)
        out += [(spec, c, table) for c in slots]
    return out


def random_hardware(rng: np.random.Generator, name: str) -> Hardware:
    gib, bandwidth, flops = rng.uniform(8, 40), rng.uniform(5e11, 4e12), rng.uniform(1e14, 1e15)
    price = float(rng.integers(50, 900)) / 100
    return Hardware(name, gib * 2**30, bandwidth, flops, 2 * flops, rng.uniform(5e10, 5e11), int(rng.integers(1, 9)),
                    float(rng.integers(25, 800)), price)  # fmt: skip


def random_problems(
    rng: np.random.Generator, known: list[tuple[ModelSpec, int, ActivationTable]]
) -> tuple[Problem, ...]:
    """One or several types of GPU per pool, and everything that bends the search."""
    spec, slots, table = known[rng.integers(len(known))]
    clusters = []
    for i in range(int(rng.integers(1, 3))):
        gpus = int(rng.integers(2, 20)) if rng.random() < 0.3 else None
        clusters.append(Cluster(random_hardware(rng, f"gpu{i}"), gpus=gpus))
    demand = float(10 ** rng.uniform(1.5, 4.3))
    batch = int(rng.integers(1, 400)) if rng.random() < 0.2 else None
    prompts = Prefill(demand * rng.uniform(0.1, 4), 500.0) if batch is None and rng.random() < 0.2 else None
    shared = {
        "table": table, "slots": slots, "demand": None if batch else demand, "batch": batch,
        "slo_ms": float(rng.uniform(4, 80)), "context": float(10 ** rng.uniform(1.5, 4)), "max_attention": LARGEST[0],
        "max_experts": LARGEST[1], "max_batch": 512, "prefill": prompts, "percentile": float(rng.choice([50, 90, 99])),
        "context_cv": float(rng.choice([0, 0.5, 1])), "objective": str(rng.choice(["gpus", "usd"])),
    }  # fmt: skip
    pairs = [(a, e) for a in clusters for e in clusters]
    return tuple(Problem(LatencyModel.roofline(spec, a, expert_cluster=e), **shared) for a, e in pairs)


def said(c: Candidate | None, objective: str) -> tuple[float, int, float] | None:
    return c and (round(c.cost(objective), 6), c.gpus, round(c.tpot_ms, 9))


def agreement(count: int, solvers: tuple[str, ...]) -> list[dict[str, Any]]:
    rng, known = np.random.default_rng(5), tables(0)
    differ = refuted = feasible = evaluated = pairs = types = 0
    with progress("random instances", count) as step:
        for number in range(count):
            problems = random_problems(rng, known)
            every = tuple(c for p in problems for c in search(p))
            want = pick(every, problems[0].objective)
            seen, got, _ = solve(problems, Limits(solvers[number % len(solvers)]))
            differ += said(want, problems[0].objective) != said(got, problems[0].objective)
            types += len(problems) > 1
            if got is not None:
                feasible, evaluated, pairs = feasible + 1, evaluated + len(seen), pairs + len(every)
                refuted += not confirmed(problems, got)
            step(f"{differ} differ, {refuted} refuted")
    note = f"{feasible} feasible, {types} with several types of GPU, solvers {', '.join(solvers)}"
    share = 100 * evaluated / max(pairs, 1)
    return [
        figure(f"milp unlike exhaustive, of {count} instances", differ, "== 0", differ == 0, "", note),
        figure("returned plans the independent evaluator refutes", refuted, "== 0", refuted == 0, "", f"of {feasible}"),
        figure("pairs that milp evaluates", round(share, 1), "<= 60", share <= 60, "%", "of those exhaustive does"),
    ]


def confirmed(problems: tuple[Problem, ...], got: Candidate) -> bool:
    """The plain-loop reference, which counts batches up from one, finds the same batch and time and nothing broken."""
    problem = next(p for p in problems if p.kinds == got.kinds)
    want = judge(problem, got.n_a, got.n_e)
    return not want.rejected and want.batch == got.batch and abs(want.tpot_ms / got.tpot_ms - 1) < 1e-9


def small(rng: np.random.Generator) -> tuple[Joint, RoutingTrace, int]:
    """E <= 8, G <= 3, up to 5 batches of routed tokens."""
    E, K = int(rng.integers(3, 9)), int(rng.integers(1, 3))
    G, count, B = int(rng.integers(1, 4)), int(rng.integers(1, 6)), int(rng.integers(1, 6))
    C = int(rng.integers(-(-E // G), E + 1))
    weight = rng.dirichlet(np.ones(E))
    ids = np.stack([rng.choice(E, K, replace=False, p=weight) for _ in range(count * B)])
    batches = tuple(frozenset(np.unique(ids[i * B : (i + 1) * B]).tolist()) for i in range(count))
    fixed = rng.uniform(4, 12) / np.arange(1, 5)[:, None] + rng.uniform(0, 2, (4, G))
    joint = Joint(batches, E, C, fixed, float(rng.uniform(0.3, 3)), float(rng.uniform(5, 18)))
    return joint, RoutingTrace(ids[:, None, :], E), B


def decomposed(joint: Joint, trace: RoutingTrace, B: int) -> Solved | None:
    """What the planner does: for each pool the placement of `place`, the balancer on the batches, then the search."""
    best = None
    for n_e in range(1, joint.fixed_ms.shape[1] + 1):
        if n_e * joint.slots < joint.experts:
            continue
        placed = place(trace, n_e, joint.slots, batch_sizes=(B,))
        groups = np.split(trace.ids[:, 0], len(joint.batches))
        peak = float(np.mean([balance(ids, placed, backend="reference").a_max for ids in groups]))
        for n_a in range(1, joint.fixed_ms.shape[0] + 1):
            tpot = float(joint.fixed_ms[n_a - 1, n_e - 1]) + joint.expert_ms * peak
            key = (n_a + n_e, tpot)
            if tpot <= joint.slo_ms and (best is None or key < (best.n_a + best.n_e, best.tpot_ms)):
                best = Solved(n_a, n_e, tpot, ())
    return best


def joints(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(11)
    differ = more = feasible = 0
    slower = [1.0]
    with progress("joint programs", count) as step:
        for _ in range(count):
            joint, trace, B = small(rng)
            got, want, ours = solve_joint(joint), enumerate_joint(joint), decomposed(joint, trace, B)
            same = (got is None) == (want is None)
            if got and want:
                same &= got.n_a + got.n_e == want.n_a + want.n_e and abs(got.tpot_ms - want.tpot_ms) < 1e-6
                feasible += 1
                same_size = ours and ours.n_a + ours.n_e == want.n_a + want.n_e
                more += not same_size
                slower += [ours.tpot_ms / want.tpot_ms] if ours and same_size else []
            differ += not same
            step(f"{differ} differ")
    note = f"of {feasible} feasible; placement by janus.sched.place, which sees the tokens and not the batches"
    worst = max(slower)
    return [
        figure(
            f"joint program unlike enumeration, of {count}", differ, "== 0", differ == 0, "", f"{feasible} feasible"
        ),
        figure(
            "decomposition needs more GPUs than the joint program", more, "<= 2 %", more <= 0.02 * feasible, "", note
        ),
        figure("decomposition, worst TPOT / joint TPOT", round(worst, 3), "<= 1.1", worst <= 1.1, "", note),
    ]


def large(limit: int) -> list[dict[str, Any]]:
    """Four types of GPU for each pool: 16 pairs of types, where enumerating is what one would rather not."""
    spec, slots = ModelSpec.from_config("deepseek-v2-lite"), 9
    counts = np.random.default_rng(0).zipf(1.5, (1, spec.experts)).clip(1, 1000)
    grid = [(n, slots) for n in range(-(-spec.experts // slots), limit + 1)]
    options: dict[str, Any] = {"top_k": spec.top_k, "placing": "eplb", "samples": 2}
    table = ActivationTable.build(counts, grid, BATCHES, **options)
    rng = np.random.default_rng(3)
    clusters = [Cluster(random_hardware(rng, f"gpu{i}")) for i in range(4)]
    first = Problem(LatencyModel.roofline(spec, clusters[0]), table, slots, 8000.0, None, 30.0, 2000.0, limit, limit, 512,
                    None, 99.0, 0.6, "usd")  # fmt: skip
    pairs = [(a, e) for a in clusters for e in clusters]
    problems = tuple(replace(first, latency=LatencyModel.roofline(spec, a, expert_cluster=e)) for a, e in pairs)
    started = time.perf_counter()
    want = pick((c for p in problems for c in search(p)), "usd")
    exhaustive = time.perf_counter() - started
    started = time.perf_counter()
    _, got, proof = solve(problems, Limits())
    seconds = time.perf_counter() - started
    same = said(want, "usd") == said(got, "usd")
    ratio = seconds / exhaustive
    note = f"milp {seconds:.2f} s, exhaustive {exhaustive:.2f} s; {want and want.name}, {want and want.kinds}; {proof}"
    name = f"four types per pool, up to {limit} + {limit}: "
    found = [figure(f"{name}the same optimum", str(same), "True", same, "", note)]
    if limit > 12:  # below that either takes a fraction of a second
        found.append(figure(f"{name}time, milp / exhaustive", round(ratio, 2), "< 1", ratio < 1, "", note))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true")
    sample = parser.parse_args().sample
    figures = agreement(12 if sample else 500, ("HiGHS", "CBC"))
    figures += joints(8 if sample else 150)
    figures += large(12 if sample else 64)
    report(figures)


if __name__ == "__main__":
    main()
