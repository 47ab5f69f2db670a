"""Batches and placements to check balancers on, random and recorded, and what is checked of each assignment."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "sched")]

from oracle import hard_case, is_optimum, random_ids, random_slots  # noqa: E402  (the paths above come first)
from recordings import DEEPSEEK  # noqa: E402

from janus.sched import Assignment, backends, place  # noqa: E402
from janus.sched.reference import start  # noqa: E402
from janus.sched.tables import LayerTables  # noqa: E402
from janus.types import Placement, RoutingTrace, read_expert_counts, sample  # noqa: E402

METHODS = tuple(method for method in backends.METHODS if method != "cost")  # the roofline method has its own proof

Ids = npt.NDArray[np.integer[Any]]
Case = tuple[Ids, Placement, int]  # a batch, the placement, its layer


def random_case(rng: np.random.Generator, *, largest: int = 256) -> Case:
    """E 4..largest, G 1..32, C from just enough to three times that, T 0..largest, K 1..8; every fourth one tight."""
    E, G = int(np.exp(rng.uniform(np.log(4), np.log(largest + 1)))), int(np.exp(rng.uniform(0, np.log(33))))
    least = -(-E // G)
    C = least if rng.random() < 0.25 else int(rng.integers(least, 3 * least + 2))
    sizes = [0, 1, 2, rng.integers(3, 17), rng.integers(min(17, largest), largest + 1)]
    T = int(rng.choice(sizes, p=[0.02, 0.08, 0.1, 0.4, 0.4]))
    ids = random_ids(rng, E, T, int(rng.integers(1, 9)), G)
    return ids.astype(rng.choice(["i4", "i8"])), Placement(random_slots(rng, E, G, C), E), 0


def hard(rng: np.random.Generator, *, most_instances: int = 32) -> Case:
    """A case in which the greedy start is often not optimal, so that the search for paths is put to work."""
    ids, slots = hard_case(rng, most_instances)
    return ids, Placement(slots, int(slots.max()) + 1), 0


def random_cases(n: int, seed: int, *, largest: int = 256) -> Iterator[Case]:
    """Every other case a hard one; `largest` bounds E and T of the others."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        yield random_case(rng, largest=largest) if i % 2 else hard(rng, most_instances=min(32, max(6, largest // 2)))


def from_counts(
    counts_LE: npt.NDArray[np.int64], top_k: int, pools: list[tuple[int, int]], sizes: list[int], seed: int = 0
) -> Iterator[Case]:
    """Batches of tokens drawn by the recorded popularity of every layer, on maps made from the same counts."""
    rng = np.random.default_rng(seed)
    trace = RoutingTrace.from_counts(counts_LE, top_k, tokens=4 * max(sizes), seed=seed)
    for pool in pools:
        placement = place(counts_LE, *pool, method="eplb")
        for B in sizes:
            ids_BLK = trace.sample(B, rng)
            yield from ((ids_BLK[:, row].astype(np.int64), placement, row) for row in range(len(counts_LE)))


def deepseek_names() -> list[str]:
    """The recorded workloads of DeepSeek-V3; none where the recording is absent."""
    return list(read_expert_counts(DEEPSEEK)) if DEEPSEEK.exists() else []


def deepseek_cases(name: str, *, stride: int = 1) -> Iterator[Case]:
    """Every layer of one workload, 58 x 256 experts, top-8."""
    counts_LE = read_expert_counts(DEEPSEEK)[name][::stride]
    yield from from_counts(counts_LE, 8, [(32, 12), (32, 16), (16, 20)], [1, 8, 16, 64, 256])


def domain_names() -> list[str]:
    """Models and text domains whose counts come with the package."""
    return list(read_expert_counts(sample("olmoe-mixtral-counts")))


def domain_cases(name: str) -> Iterator[Case]:
    """OLMoE, 64 experts, top-8, or Mixtral, 8 experts, top-2."""
    counts_LE = read_expert_counts(sample("olmoe-mixtral-counts"))[name]
    pools, top_k = ([(4, 3), (3, 4)], 2) if counts_LE.shape[1] == 8 else ([(8, 12), (16, 6)], 8)
    yield from from_counts(counts_LE, top_k, pools, [1, 2, 4, 8, 16, 64])


def gpt_oss_cases(trace: RoutingTrace, batches: int) -> Iterator[Case]:
    """Batches that were really in flight together, in every layer: one decode step of up to 192 requests."""
    rng = np.random.default_rng(0)
    for pool in ((8, 6), (8, 5), (16, 3)):
        placement = place(trace.counts(), *pool, method="eplb")
        for B in (1, 4, 16, 64, 192):
            for _ in range(batches):
                ids_BLK = trace.sample(B, rng, how="step")
                yield from ((ids_BLK[:, row].astype(np.int64), placement, row) for row in range(trace.num_layers))


# ---- what is checked


def same_bits(a: Assignment, b: Assignment) -> bool:
    """All fields but the backend's name."""
    fields = [f.name for f in dataclasses.fields(a) if f.name != "backend"]
    return all(np.asarray(getattr(a, f)).tobytes() == np.asarray(getattr(b, f)).tobytes() for f in fields)


def serves(got: Assignment, case: Case) -> bool:
    """Every entry goes to a replica of its expert, one replica per expert, and `load` counts what the ids say."""
    ids, placement, layer = case
    phy, row = np.asarray(got.physical_ids), placement.layer(layer)
    real = ids >= 0
    used = np.unique(phy[real])
    load = np.bincount(used // placement.slots_per_instance, minlength=placement.num_instances)
    return bool(
        (phy[~real] == -1).all()
        and (placement.phy2log[row][phy[real]] == ids[real]).all()
        and len(used) == len(np.unique(ids[real]))
        and (got.load == load).all()
        and got.a_max == load.max()
    )


def optimal(got: Assignment, case: Case) -> bool:
    """By maximum flow: `a_max` is possible, one less is not."""
    ids, placement, layer = case
    return is_optimum(ids, placement.slots[placement.layer(layer)], got.a_max)


def start_a_max(case: Case) -> int:
    """a_max of the greedy start of the exact method, before any path: where it is optimal the search had no work."""
    ids, placement, layer = case
    tables, E = LayerTables.build(placement, placement.layer(layer), "exact"), placement.num_experts
    replica = np.array(start(np.bincount(ids[ids >= 0], minlength=E).tolist(), tables, tie_by_tokens=True))
    hosts = replica[replica >= 0] // placement.slots_per_instance
    return int(np.bincount(hosts, minlength=1).max())
