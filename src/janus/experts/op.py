"""A layer as one opaque operation of torch: what `torch.compile` sees of it, without a graph break.

A compiled graph holds an integer, and looks the layer up when it runs: weights, placement and engine are those of that
moment. Other than a call by hand, an operation records no gradient; a compiled call that needs one is refused.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakValueDictionary

import torch

from janus.errors import JanusError


class Layer(Protocol):
    """What can be run by its key."""

    def run(self, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """One batch: [T, H], [T, K], [T, K] -> [T, H]."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """All weights."""
        ...


_KEYS = itertools.count(2)  # torch.compile makes graphs of their own for 0 and 1
_LAYERS: WeakValueDictionary[int, Layer] = WeakValueDictionary()


class Handle:
    """What a compiled graph knows a layer by; a copy of the layer needs one of its own.

    The key is a constant of a graph. Blocks that are compiled one by one thus have a graph each, unless
    ``torch._dynamo.config.allow_unspec_int_on_nn_module`` makes numbers like it inputs of graphs.

    Args:
        layer: kept only while others do.

    Attributes:
        key: of this layer in this process.
        lock: held by the call that runs; engines and balancers reuse their buffers.
    """

    def __init__(self, layer: Layer) -> None:
        self.key, self.lock = next(_KEYS), threading.Lock()
        _LAYERS[self.key] = layer


def traced(layer: Layer, key: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What `torch.compile` traces in place of a layer's forward; the checks of the call are made when the graph runs.

    Args:
        layer: that calls.
        key: of the layer's handle.
        hidden: [T, H].
        ids: [T, K].
        weights: [T, K].

    Returns:
        [T, H]. When the graph runs: `JanusError` ``layer.grad`` if a gradient was asked for, ``layer.gone`` if the
        layer is no more.
    """
    wants_grad = torch.is_grad_enabled() and _needs_grad(layer, hidden, weights)
    kind = hidden.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    run = torch.ops.janus.experts.default
    return run(hidden.detach(), ids, weights.detach(), key, autocast, wants_grad)


def _needs_grad(layer: Layer, hidden: torch.Tensor, weights: torch.Tensor) -> bool:
    return hidden.requires_grad or weights.requires_grad or any(p.requires_grad for p in layer.parameters())


def _run(
    hidden: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    key: int,
    autocast: torch.dtype | None,
    wants_grad: bool,
) -> torch.Tensor:
    if wants_grad:
        rule = "compiled experts record no gradient, and this call needs one"
        remedy = "call under torch.inference_mode() or torch.no_grad(), or put torch.compiler.disable around the layer"
        raise JanusError("layer.grad", f"{rule}; {remedy}")
    layer = _LAYERS.get(key)
    if layer is None:
        rule = f"a compiled graph runs the layer it was made from, and layer {key} is no more"
        raise JanusError("layer.gone", f"{rule}; keep the model while its graph is used, or compile again")
    if autocast is None:
        return layer.run(hidden, topk_ids, topk_weights)
    with torch.autocast(hidden.device.type, autocast):  # a compiled graph runs outside the caller's
        return layer.run(hidden, topk_ids, topk_weights)


def _shape_of_run(
    hidden: torch.Tensor,
    _topk_ids: torch.Tensor,
    _topk_weights: torch.Tensor,
    _key: int,
    _autocast: torch.dtype | None,
    _wants_grad: bool,
) -> torch.Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


_LIBRARY = torch.library.Library("janus", "FRAGMENT")
_LIBRARY.define(
    "experts(Tensor hidden, Tensor topk_ids, Tensor topk_weights, SymInt key, ScalarType? autocast, bool wants_grad)"
    " -> Tensor"
)
_LIBRARY.impl("experts", _run, "CompositeExplicitAutograd")
torch.library.register_fake("janus::experts", _shape_of_run, lib=_LIBRARY)
