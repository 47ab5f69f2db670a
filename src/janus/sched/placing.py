"""`place`: which replicas, on which instances, from a routing trace or from counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError, known
from janus.sched.hosts import Load, Overlap, Pressure, assign_hosts
from janus.sched.judging import best_of
from janus.sched.moving import check_previous, keep
from janus.sched.popularity import Popularity, popularity
from janus.sched.replicas import check_slots, fill_spare
from janus.types.placement import IntArray, Placement
from janus.types.routing import RoutingTrace

METHODS = ("janus", "coactivation", "eplb")


def place(
    trace_or_counts: RoutingTrace | npt.ArrayLike,
    num_instances: int,
    slots_per_instance: int,
    *,
    method: str = "janus",
    top_k: int = 8,
    batch_sizes: Sequence[int] = (64,),
    node_size: None = None,
    previous: Placement | None = None,
    seed: int = 0,
) -> Placement:
    """Choose replicas and their hosts for every layer; never two replicas of an expert on one instance.

    Args:
        trace_or_counts: a `RoutingTrace`, or token counts [L, E], or [E] for one map that serves every layer.
        num_instances: G.
        slots_per_instance: C, with G * C >= E; slots beyond G replicas of every expert stay -1.
        method: ``"janus"``: of three candidates (replicas spread over many experts; and the two other methods) the
            one with the smallest mean exact a_max over sampled batches, per layer. ``"coactivation"``: the paper's,
            the smallest co-activation pressure. ``"eplb"``: token load only.
        top_k: K of the batches sampled from counts; a trace brings its own.
        batch_sizes: tokens of the batches sampled, each size equally often (``"janus"`` only).
        node_size: not in this version.
        previous: the placement to be replaced: instances and slots are numbered so that many keep their experts
            (the experts that share an instance stay as chosen). G and C may differ.
        seed: of the sampled batches (``"janus"`` only).

    Raises:
        JanusError: ``sched.method``, ``sched.counts``, ``sched.slots``, ``sched.option``.

    Example:
        >>> place([8, 4, 2, 2], 2, 3, method="eplb").slots[0].tolist()  # experts 0 and 1 get the spare slots
        [[0, 1, 2], [0, 1, 3]]
    """
    known(method, METHODS, "method", "sched.method")
    _check_options(num_instances, slots_per_instance, top_k, batch_sizes, node_size)
    layers, uniform = popularity(trace_or_counts, top_k)
    num_experts = layers[0].num_experts
    check_slots(num_experts, num_instances * slots_per_instance)
    old = check_previous(previous, num_experts, len(layers), uniform)
    shape = (num_instances, slots_per_instance)
    # a map per layer
    if method == "janus":
        _check_top_k(layers[0].top_k, num_experts)
        rng = np.random.default_rng(seed)
        maps = [_janus(layer, shape, batch_sizes, rng) for layer in layers]
    else:
        maps = [CANDIDATES[method](layer, shape) for layer in layers]
    # instances are interchangeable: name them as before
    if old is not None:
        maps = [keep(new, old.slots[old.layer(layer)]) for layer, new in enumerate(maps)]
    return Placement(maps[0] if uniform else np.stack(maps), num_experts)


def _janus(layer: Popularity, shape: tuple[int, int], sizes: Sequence[int], rng: np.random.Generator) -> IntArray:
    candidates = [spread(layer, shape, sizes), *(make(layer, shape) for make in CANDIDATES.values())]
    return best_of(candidates, layer, sizes, rng)


def spread(layer: Popularity, shape: tuple[int, int], batch_sizes: Sequence[int]) -> IntArray:
    """Replicas by activation probability / replicas**2, so that many experts have two before any has three.

    Hosts balance the expected activated slots; among near-equal ones those that share fewest experts already.
    """
    active = np.mean([layer.activation(B) for B in batch_sizes], axis=0)
    replicas = fill_spare(active, shape[0] * shape[1], shape[0], power=2)
    return assign_hosts(active / replicas, replicas, shape, Overlap(active / replicas, shape[0]))


def coactivation(layer: Popularity, shape: tuple[int, int]) -> IntArray:
    """Replicas by load; hosts keep the largest co-activation pressure small."""
    replicas = fill_spare(layer.counts, shape[0] * shape[1], shape[0], power=1)
    return assign_hosts(layer.counts / replicas, replicas, shape, Pressure(layer.coactivation(), shape[0]))


def eplb(layer: Popularity, shape: tuple[int, int]) -> IntArray:
    """Replicas by load; hosts balance the load."""
    replicas = fill_spare(layer.counts, shape[0] * shape[1], shape[0], power=1)
    return assign_hosts(layer.counts / replicas, replicas, shape, Load(layer.counts / replicas, shape[0]))


CANDIDATES: dict[str, Any] = {"coactivation": coactivation, "eplb": eplb}


def _check_options(G: int, C: int, K: int, sizes: Sequence[int], node_size: object) -> None:
    if isinstance(sizes, (str, bytes)) or not hasattr(sizes, "__iter__"):
        raise JanusError("sched.option", f"batch_sizes must be a sequence of integers, got {sizes!r}; try (64,)")
    named = [("num_instances", G), ("slots_per_instance", C), ("top_k", K), *(("batch_sizes", B) for B in sizes)]
    for name, value in named:
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise JanusError("sched.option", f"{name} must hold integers >= 1, got {value!r}")
    if not len(sizes):
        raise JanusError("sched.option", "batch_sizes must name at least one batch size, got none")
    if node_size is not None:
        raise JanusError("sched.option", f"node_size is not in this version, got {node_size!r}; leave it out")


def _check_top_k(top_k: int, num_experts: int) -> None:
    if top_k > num_experts:
        rule = f"a token chooses at most the {num_experts} experts there are"
        raise JanusError("sched.option", f"{rule}, got top_k={top_k}; give the model's top_k")
