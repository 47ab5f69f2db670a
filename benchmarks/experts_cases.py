"""The experts of one MoE layer as the benchmarks run them: real sizes, cold weights, every way on the same module.

A layer that does not fit is cut to the slots of one instance: as many experts as fit, and only the rows that come to
them, one row per (token, expert) entry, which keeps the tokens per expert what they are in the whole layer.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from experts_sizes import COMPUTE, QUANTIZED, Held
from recordings import Routing, routing
from shapes import MODELS, Model
from torch import nn

from janus import JanusError, JanusMoELayer
from janus.experts.backends import COMPUTES
from janus.experts.layout import ExpertLayout

LAYER_BYTES = 3.3e9  # of one layer's experts at most; beyond it, the slots of one instance
WORKING_SET = 4e9  # bytes of distinct weights that calls rotate over, at least
TIMES_CACHE = 4  # and at least so many times the last-level cache
MEMORY_SHARE = 0.45  # of what is available, at most

FAMILIES = {  # model -> package in transformers, stem of the class names, names of F and E in the config
    "mixtral-8x7b": ("mixtral", "Mixtral", "intermediate_size", "num_local_experts"),
    "gpt-oss-20b": ("gpt_oss", "GptOss", "intermediate_size", "num_local_experts"),
    "gpt-oss-120b": ("gpt_oss", "GptOss", "intermediate_size", "num_local_experts"),
    "qwen3-30b-a3b": ("qwen3_moe", "Qwen3Moe", "moe_intermediate_size", "num_experts"),
    "qwen3-235b-a22b": ("qwen3_moe", "Qwen3Moe", "moe_intermediate_size", "num_experts"),
    "deepseek-v2": ("deepseek_v2", "DeepseekV2", "moe_intermediate_size", "n_routed_experts"),
    "deepseek-v3": ("deepseek_v3", "DeepseekV3", "moe_intermediate_size", "n_routed_experts"),
}
Ids = npt.NDArray[np.int64]
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Case(Held):
    """One model's layer in one storage, as much of it as one process holds.

    Example:
        >>> case = Case.of("mixtral-8x7b", "float32")
        >>> case.experts, case.whole, case.expert_bytes
        (4, False, 704643072)
    """

    @classmethod
    def of(cls, name: str, storage: str, limit: float = LAYER_BYTES) -> Case:
        """As many experts as fit into `limit` bytes in the dtype of the activations."""
        whole = cls(MODELS[name], storage, MODELS[name].experts)
        return cls(whole.model, storage, max(1, min(whole.experts, int(limit // whole.held_bytes))))

    @property
    def label(self) -> str:
        """What is held, for people."""
        return "whole layer" if self.whole else f"{self.experts} of {self.model.experts} experts, one row an entry"

    def batches(self, B: int, how_many: int, *, uniform: bool = False, seed: int = 1) -> tuple[str, list[Ids]]:
        """Where the routing comes from, and ids [n, k] over the experts held.

        Of a layer that is cut, n is the number of entries that come here and k = 1; batches without any are left out.
        Every batch takes other experts for those held, so that no popular one decides.
        """
        rng = np.random.default_rng(seed)
        label, draw = self._source(B, uniform, rng)
        found: list[Ids] = []
        while len(found) < how_many:
            ids, here = draw(), np.full(self.model.experts, -1)
            here[rng.permutation(self.model.experts)[: self.experts]] = np.arange(self.experts)
            kept = ids if self.whole else here[ids][here[ids] >= 0][:, None]
            if kept.size:
                found.append(kept)
        return label, found

    def _source(self, B: int, uniform: bool, rng: np.random.Generator) -> tuple[str, Callable[[], Ids]]:
        E, K = self.model.experts, self.model.top_k
        if uniform:
            return "uniform", lambda: np.argsort(rng.random((B, E)), axis=1)[:, :K].astype(np.int64)
        source = _routing(self.model)
        return source.label, lambda: source.batches(B, 1, seed=int(rng.integers(2**31)))[0]


@functools.cache
def _routing(model: Model) -> Routing:
    return routing(model)  # drawing a synthetic one takes a second


class Rotation:
    """Gives the experts of every call to ones that no call has read for as long as possible.

    The active experts of a batch are renamed: each layer has its experts in a random order, and calls go through it in a
    circle, layer after layer. Between two readings of an expert lie nearly all weights there are, so a cache
    smaller than these holds none of it, however popular the expert is in the routing.

    Args:
        layers: L.
        experts: held by each.
        seed: of the orders.

    Example:
        >>> rotation = Rotation(layers=2, experts=4)
        >>> dealt = [rotation.deal(np.array([[0, 3]])) for _ in range(4)]
        >>> [layer for layer, _ in dealt]
        [0, 1, 0, 1]
        >>> sorted([*dealt[0][1][0].tolist(), *dealt[2][1][0].tolist()])
        [0, 1, 2, 3]
    """

    def __init__(self, layers: int, experts: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.orders = [rng.permutation(experts) for _ in range(layers)]
        self.first = [0] * layers
        self.turn = 0

    def deal(self, ids: Ids) -> tuple[int, Ids]:
        """The layer of the next call, and its ids."""
        layer, self.turn = self.turn % len(self.orders), self.turn + 1
        order, first = self.orders[layer], self.first[layer]
        active, place = np.unique(ids, return_inverse=True)
        self.first[layer] = (first + len(active)) % len(order)
        chosen = order[(first + np.arange(len(active))) % len(order)]
        return layer, chosen[place].reshape(ids.shape).astype(np.int64)


@dataclass(frozen=True)
class Way:
    """One way to compute: a name for the table and a callable per layer.

    Attributes:
        name: "janus ..." or "transformers ...".
        calls: (x [n, H], ids [n, k], weights [n, k]) -> y [n, H], one per layer.
        copies: weights of so many experts are copied per entry of a batch.
    """

    name: str
    calls: list[Call]
    copies: int = 0

    def needs(self, entries: int, expert_bytes: int) -> int:
        """Bytes beyond the module that a call with so many entries takes for weights."""
        return self.copies * entries * expert_bytes


def cache_bytes() -> int:
    """Size of the last-level cache; 0 where the system does not say."""
    sizes = [_size(p.read_text()) for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=0)


def _size(text: str) -> int:
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text.strip()[-1:], 1)
    return int(text.strip().rstrip("KMG")) * unit


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def layers_wanted(layer_bytes: int, *, cache: int, available: int, working_set: float = WORKING_SET) -> int:
    """Layers to rotate over: `working_set` bytes or 4 caches, whichever is more, as far as memory goes; at least one.

    Example:
        >>> layers_wanted(1_200_000_000, cache=480 << 20, available=20_000_000_000)
        4
        >>> layers_wanted(1_200_000_000, cache=480 << 20, available=6_000_000_000)
        2
    """
    wanted = max(working_set, TIMES_CACHE * cache)
    return max(1, min(-(-int(wanted) // layer_bytes), int(MEMORY_SHARE * available) // layer_bytes))


def layers_of(case: Case, how_many: int, seed: int = 0) -> list[nn.Module]:
    """The family's own experts modules over distinct weights, which are slices of one block of memory."""
    first = skeleton(case.model, case.experts)
    generator = torch.Generator().manual_seed(seed)
    blocks = {}
    for name, p in first.named_parameters():
        block = torch.empty(how_many * case.experts, *p.shape[1:], dtype=COMPUTE[case.storage])
        one = torch.empty(p.shape[1:]).normal_(std=p.shape[-1] ** -0.5, generator=generator)
        blocks[name] = block.copy_(one)  # the same numbers at other addresses: drawing gigabytes takes minutes
    return split(case.model, blocks, case.experts)


def split(model: Model, blocks: dict[str, torch.Tensor], experts: int) -> list[nn.Module]:
    """Modules of `experts` experts each that share the blocks."""
    made = []
    for first in range(0, len(next(iter(blocks.values()))) // experts * experts, experts):
        module = skeleton(model, experts)
        for name, block in blocks.items():
            module.register_parameter(name, nn.Parameter(block[first : first + experts], requires_grad=False))
        made.append(module)
    return made


def skeleton(model: Model, experts: int) -> Any:
    """The experts module of the model's family with `experts` experts, on the meta device."""
    package, stem, inner, number = FAMILIES[model.name]
    module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    config_class = getattr(importlib.import_module(f"transformers.models.{package}"), f"{stem}Config")
    config = config_class(**{"hidden_size": model.hidden, inner: model.inner, number: experts})
    config._experts_implementation = "eager"
    with torch.device("meta"):
        return getattr(module, f"{stem}Experts")(config).eval()


def rivals(modules: list[nn.Module]) -> tuple[list[Way], dict[str, str]]:
    """Every implementation that transformers has and that runs on this machine, and why the others do not."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    names = ["eager", *sorted(name for name in ALL_EXPERTS_FUNCTIONS if name not in ("eager", "janus"))]
    found, refused = [], {}
    for name in names:
        way = Way(f"transformers {name}", [_through(m, name) for m in modules], int(name == "batched_mm"))
        if reason := _refusal(way.calls[0], modules[0]):
            refused[way.name] = reason
        else:
            found.append(way)
    return found, refused


def _through(module: Any, name: str) -> Call:
    def call(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        module.config._experts_implementation = name
        return module(x, ids, weights)

    return call


def _refusal(call: Call, module: nn.Module) -> str:
    hidden, like = ExpertLayout.of(module).hidden_size, next(module.parameters())
    x, ids = torch.zeros(1, hidden, dtype=like.dtype), torch.zeros(1, 1, dtype=torch.long)
    try:
        call(x, ids, torch.ones(1, 1, dtype=like.dtype))
    except Exception as error:
        return f"does not run here: {str(error).splitlines()[0][:120]}"
    return ""


def ours(modules: list[nn.Module], storage: str, asked: tuple[str, ...] = COMPUTES) -> tuple[list[Way], dict[str, str]]:
    """Every way of `JanusMoELayer` that runs here, the one that "auto" takes first, and why the others do not.

    Of a quantized storage that one alone.
    """
    if storage in QUANTIZED:
        return _stored(modules, storage)
    best = JanusMoELayer(modules[0]).compute
    found, refused = [], {}
    for name in sorted(asked, key=lambda name: name != best):
        try:
            found.append(Way(f"janus {name}", [JanusMoELayer(m, compute=name) for m in modules]))
        except JanusError as error:
            refused[f"janus {name}"] = str(error)
    return found, refused


def _stored(modules: list[nn.Module], storage: str) -> tuple[list[Way], dict[str, str]]:
    # One way only: each holds a copy of all experts, in 8 bits.
    if "quantize" not in inspect.signature(JanusMoELayer).parameters:
        return [], {f"janus {storage}": "this version stores no quantized experts"}
    layers = [JanusMoELayer(m, quantize=storage) for m in modules]
    return [Way(f"janus {layers[0].compute}", list(layers))], {}


def inputs(case: Case, ids: Ids, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, H] and routing weights [n, k] that sum to 1, in the dtype of the activations."""
    generator, dtype = torch.Generator().manual_seed(seed), COMPUTE[case.storage]
    x = torch.randn(len(ids), case.model.hidden, generator=generator).to(dtype)
    weights = torch.rand(ids.shape, generator=generator) + 0.1
    return x, (weights / weights.sum(dim=1, keepdim=True)).to(dtype)
