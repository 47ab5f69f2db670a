"""The models that benchmarks speak of, by name: the sizes of their MoE layers, and pools that suit them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The routed experts of one model; checked against the model's own config by tests/test_benchmarks.py.

    Attributes:
        name: as the configs that come with Janus are named.
        experts: E.
        top_k: K.
        hidden: H.
        inner: F, of one expert.
        layers: L, MoE layers only.
        pools: sizes worth measuring: (G instances, C slots per instance and layer), with slots to spare for replicas.
    """

    name: str
    experts: int
    top_k: int
    hidden: int
    inner: int
    layers: int
    pools: tuple[tuple[int, int], ...]


MODELS = {
    model.name: model
    for model in (
        Model("mixtral-8x7b", 8, 2, 4096, 14336, 32, ((4, 3),)),
        Model("gpt-oss-20b", 32, 4, 2880, 2880, 24, ((8, 6),)),
        Model("gpt-oss-120b", 128, 4, 2880, 2880, 36, ((16, 12),)),
        Model("qwen3-30b-a3b", 128, 8, 2048, 768, 48, ((8, 24),)),
        Model("qwen3-235b-a22b", 128, 8, 4096, 1536, 94, ((16, 12),)),
        Model("deepseek-v2", 160, 6, 5120, 1536, 59, ((8, 27),)),
        Model("deepseek-v3", 256, 8, 7168, 2048, 58, ((32, 12), (32, 16))),
        Model("kimi-k2", 384, 8, 7168, 2048, 60, ((48, 12),)),
    )
}


@dataclass(frozen=True)
class Shape:
    """A model on a pool of expert instances.

    Example:
        >>> SHAPES["deepseek-v3 32x12"].slots
        384
    """

    model: Model
    instances: int
    slots_per_instance: int

    @property
    def name(self) -> str:
        """Model and pool."""
        return f"{self.model.name} {self.instances}x{self.slots_per_instance}"

    @property
    def slots(self) -> int:
        """R."""
        return self.instances * self.slots_per_instance


SHAPES = {shape.name: shape for model in MODELS.values() for shape in (Shape(model, G, C) for G, C in model.pools)}
