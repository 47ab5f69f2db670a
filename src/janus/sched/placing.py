"""`place`: which replicas, on which instances, from a routing trace or from counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError, known
from janus.sched.baselines import BASELINES
from janus.sched.moving import check_previous, keep
from janus.sched.popularity import popularity
from janus.sched.replicas import check_slots
from janus.sched.searching import Progress, Search
from janus.sched.starting import Frame
from janus.types.checks import integer
from janus.types.placement import Placement
from janus.types.routing import RoutingTrace

METHODS = ("janus", "coactivation", "eplb")
MAX_SIDE = 2**12  # of experts, instances, slots per instance; keeps a mistyped number from filling the memory
MAX_BATCH = 2**16
MAX_SIZES = 64  # of different batch sizes: each still has 16 batches


def place(
    trace_or_counts: RoutingTrace | npt.ArrayLike,
    num_instances: int,
    slots_per_instance: int,
    *,
    method: str = "janus",
    top_k: int = 8,
    batch_sizes: Sequence[int] = (64,),
    node_size: int | None = None,
    previous: Placement | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Placement:
    """Choose replicas and their hosts for every layer; never two replicas of an expert on one instance.

    The same input and seed give the same map on every machine and any number of cores.

    Args:
        trace_or_counts: a `RoutingTrace`, or token counts [L, E], or [E] for one map that serves every layer.
        num_instances: G.
        slots_per_instance: C, with G * C >= E; slots beyond G replicas of every expert stay -1.
        method: ``"janus"``: replicas spread over many experts, then local search on the mean exact a_max over sampled
            batches. ``"coactivation"``: the paper's, the smallest co-activation pressure. ``"eplb"``: token load only.
        top_k: K of the batches sampled from counts; a trace brings its own.
        batch_sizes: tokens of the batches sampled, each size equally often (``"janus"`` only).
        node_size: a node is this many consecutive instances, and replicas of an expert are kept apart: R(e) replicas
            are on min(R(e), G / node_size) nodes; with G * C >= 2 E and two nodes or more every expert is on two, and
            the loss of any node loses no expert (``"janus"`` only).
        previous: the placement to be replaced; its G and C may differ. ``"janus"`` starts the search from it and
            changes only what pays; the baselines number instances and slots so that many keep their experts.
        seed: of the sampled batches and the changes tried (``"janus"`` only).
        progress: called with (layers done, layers in all, what) after every layer (``"janus"`` only).

    Raises:
        JanusError: ``sched.method``, ``sched.counts``, ``sched.slots``, ``sched.option``.

    Example:
        >>> place([8, 4, 2, 2], 2, 3, method="eplb").slots[0].tolist()  # experts 0 and 1 get the spare slots
        [[0, 1, 2], [0, 1, 3]]
    """
    known(method, METHODS, "method", "sched.method")
    G = integer(num_instances, "num_instances", "sched.option", 1, MAX_SIDE)
    C = integer(slots_per_instance, "slots_per_instance", "sched.option", 1, MAX_SIDE)
    sizes = _check_batch_sizes(batch_sizes)
    k, start = integer(top_k, "top_k", "sched.option", low=1), integer(seed, "seed", "sched.option")
    layers, uniform = popularity(trace_or_counts, k)
    num_experts = layers[0].num_experts
    check_slots(integer(num_experts, "the number of experts", "sched.counts", 1, MAX_SIDE), G * C)
    old = check_previous(previous, num_experts, len(layers), uniform)
    old_maps = None if old is None else [old.slots[old.layer(layer)] for layer in range(len(layers))]
    frame = Frame.of(G, C, num_experts, _check_nodes(node_size, G, method))
    report = _check_progress(progress)
    if method == "janus":
        _check_top_k(layers[0].top_k, num_experts)
        maps = Search(frame, sizes, start).all_layers(layers, old_maps, report)
    else:
        maps = [BASELINES[method](layer, (G, C)) for layer in layers]
        if old_maps is not None:  # instances are interchangeable: name them as before
            maps = [keep(new, was) for new, was in zip(maps, old_maps, strict=True)]
    return Placement(maps[0] if uniform else np.stack(maps), num_experts)


def _check_batch_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(sizes, (str, bytes)) or not hasattr(sizes, "__iter__"):
        raise JanusError("sched.option", f"batch_sizes must be a sequence of integers, got {sizes!r}; try (64,)")
    checked = tuple(integer(B, "each of batch_sizes", "sched.option", 1, MAX_BATCH) for B in sizes)
    if not 1 <= len(checked) <= MAX_SIZES:
        rule = f"batch_sizes must name at least one and at most {MAX_SIZES} batch sizes"
        raise JanusError("sched.option", f"{rule}, got {len(checked)}; name those that you serve most")
    return checked


def _check_nodes(node_size: int | None, G: int, method: str) -> int | None:
    if node_size is None:
        return None
    size = integer(node_size, "node_size", "sched.option", 1)
    if method != "janus":
        rule = "the baselines know no nodes"
        raise JanusError("sched.option", f"{rule}, got node_size={size} with method={method!r}; use method='janus'")
    if G % size:
        rule = f"node_size must divide num_instances={G}, so that all nodes are alike"
        raise JanusError("sched.option", f"{rule}, got {size}; choose one of {_divisors(G)} or leave it out")
    return size


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _check_progress(progress: Progress | None) -> Progress | None:
    if progress is not None and not callable(progress):
        rule = "progress must be callable: progress(done, total, what)"
        raise JanusError("sched.option", f"{rule}, got {type(progress).__name__}; leave it out for none")
    return progress


def _check_top_k(top_k: int, num_experts: int) -> None:
    if top_k > num_experts:
        rule = f"a token chooses at most the {num_experts} experts there are"
        raise JanusError("sched.option", f"{rule}, got top_k={top_k}; give the model's top_k")
