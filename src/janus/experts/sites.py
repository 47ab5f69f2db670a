"""Where a model holds routed experts: found by the signature of their forward, whatever the class or attribute is called."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from torch import nn

from janus.errors import JanusError
from janus.types.checks import instance

EXPERTS_ARGUMENTS = (("hidden_states",), ("top_k_index", "router_indices"), ("top_k_weights", "routing_weights"))


@dataclass(frozen=True, eq=False)
class ExpertsSite:
    """Where one experts module of a model sits; reading it runs nothing.

    Attributes:
        name: path of the module that calls the experts (``"model.layers.3.mlp"``).
        layer_id: the model's own number of the layer.
        places: modules that hold the experts and under which attribute; more than one where layers share them.
    """

    name: str
    layer_id: int
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def attr(self) -> str:
        """Attribute that holds the experts in the module `name`."""
        return self.places[0][1]

    @property
    def experts(self) -> nn.Module:
        """The module that holds the routed experts (or what took its place)."""
        parent, attr = self.places[0]
        return parent.get_submodule(attr)

    def replace(self, module: nn.Module) -> None:
        """Put `module` in the experts' place."""
        for parent, attr in self.places:
            setattr(parent, attr, module)


def find_experts(model: nn.Module) -> tuple[ExpertsSite, ...]:
    """All experts modules of `model`, in order; one that sits in two places is found once, with both.

    Raises:
        JanusError: ``model.module`` if it is no module; ``model.no_experts`` if there are none, naming what comes
            closest and how it differs.
    """
    instance(model, nn.Module, "a model must be a live torch module", "model.module", "load it, e.g. from_pretrained")
    if is_experts(model):
        raise JanusError(
            "model.no_experts",
            f"{type(model).__name__} is an experts module and no model that calls one; use JanusMoELayer",
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    paths: dict[nn.Module, list[tuple[str, str]]] = {}
    for path, module in modules.items():
        if is_experts(module):
            name, _, attr = path.rpartition(".")
            paths.setdefault(module, []).append((name, attr))
    if not paths:
        raise JanusError("model.no_experts", _none_found(model))
    return tuple(
        ExpertsSite(found[0][0], layer_id(found[0][0]), tuple((modules[name], attr) for name, attr in found))
        for found in paths.values()
    )


def is_experts(module: nn.Module) -> bool:
    """Whether `module` computes routed experts: forward(hidden_states, top_k_index, top_k_weights)."""
    names = _arguments(module)[:3]
    return len(names) == 3 and all(name in known for name, known in zip(names, EXPERTS_ARGUMENTS, strict=True))


def count_experts(experts: nn.Module) -> int:
    """E of an experts module: the leading size that all its own parameters share.

    Raises:
        JanusError: ``model.module``, ``model.experts``.
    """
    remedy = "give one layer's experts, or use janus.convert on the whole model"
    instance(experts, nn.Module, "experts must be a torch module", "model.module", remedy)
    declared = getattr(experts, "num_experts", None)
    leading = {p.shape[0] if p.dim() else 0 for p in experts.parameters(recurse=False)}
    if len(leading) == 1 and declared in (None, *leading):
        return leading.pop()
    shapes = {name: tuple(p.shape) for name, p in experts.named_parameters()}
    raise JanusError(
        "model.experts",
        f"{type(experts).__name__}: every parameter of its own must have one leading expert dimension (num_experts = "
        f"{declared}), got {shapes}; this expert layout is not supported",
    )


def shared_parts(experts: nn.Module) -> dict[str, nn.Module]:
    """Modules with weights or buffers beside the experts' matrices, which all experts use (a norm behind them)."""
    return {
        name: part
        for name, part in experts.named_children()
        if any(True for _ in part.parameters()) or any(True for _ in part.buffers())
    }


def layer_id(name: str) -> int:
    """The number of the layer in a path: the first one in it, or 0."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(numbers[0]) if numbers else 0


def _arguments(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def _none_found(model: nn.Module) -> str:
    wanted = ", ".join(names[0] for names in EXPERTS_ARGUMENTS)
    text = f"{type(model).__name__} has no module whose forward takes ({wanted}); "
    near = _nearest(model)
    if near is None:
        return text + "Janus needs a Mixture-of-Experts model in the layout of transformers >= 5"
    return (
        f"{text}what comes closest is {type(near).__name__}, whose forward takes ({', '.join(_arguments(near))}); this "
        "family is not supported"
    )


def _nearest(model: nn.Module) -> nn.Module | None:
    # Matrices of all experts in one tensor say more than a name, a name more than a count of experts.
    def likeness(item: tuple[str, nn.Module]) -> tuple[bool, bool, bool]:
        path, module = item
        stacked = any(p.dim() == 3 for p in module.parameters(recurse=False))
        counted = isinstance(getattr(module, "num_experts", None), int)
        return counted and stacked, counted and path.endswith("experts"), counted

    found = max(((path, m) for path, m in model.named_modules() if path), key=likeness, default=None)
    return found[1] if found and any(likeness(found)) else None
