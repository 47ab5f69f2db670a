"""Which known formula stands between the two projections of a family's experts, found by asking it for numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from janus.experts.sites import shared_parts

if TYPE_CHECKING:
    from janus.experts.layout import ExpertLayout


def _relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


# none is a lambda: a layer is pickled with its activation
CURVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": _relu2,
    "identity": _identity,
}
KINDS = tuple(CURVES)
CLAMPS = ("", "before", "after")
SLOPES = (1.0, 1.702)  # the second is the sigmoid's approximation of gelu
PROBES = 512  # pairs of gate and up
FARTHEST = 1e4  # a limit beyond it is no limit


@dataclass(frozen=True)
class Activation:
    """``act(gate) * (up + shift)``, or ``act(x)`` where there is no gate; what kernels can compute themselves.

    Attributes:
        kind: one of `KINDS`.
        gated: the first projection gives gate and up.
        interleaved: gate and up take turns (gate 0, up 0, gate 1, ...) instead of standing one after the other.
        alpha: slope of the sigmoid in ``"silu"``: ``x * sigmoid(alpha * x)``.
        clamp: ``"before"``: gate is capped at ``limit`` before the activation; ``"after"``: the activation's value is;
            either way up is held within ``-limit..limit``; ``""``: neither.
        limit: of the clamp.
        shift: added to up.

    Example:
        >>> Activation("relu").apply(torch.tensor([[2.0, -1.0, 3.0, 5.0]]))  # gates 2 and -1, ups 3 and 5
        tensor([[6., 0.]])
    """

    kind: str
    gated: bool = True
    interleaved: bool = False
    alpha: float = 1.0
    clamp: str = ""
    limit: float = math.inf
    shift: float = 0.0

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, 2F] -> [N, F] (without a gate [N, F] -> [N, F]) in the dtype of `hidden`."""
        if not self.gated:
            return self._curve(hidden)
        gate, up = (hidden[..., ::2], hidden[..., 1::2]) if self.interleaved else hidden.chunk(2, dim=-1)
        if self.clamp:
            up = up.clamp(-self.limit, self.limit)
        if self.clamp == "before":
            gate = gate.clamp(max=self.limit)
        curve = self._curve(gate)
        return (curve.clamp(max=self.limit) if self.clamp == "after" else curve) * (up + self.shift)

    def _curve(self, x: torch.Tensor) -> torch.Tensor:
        sloped = self.kind == "silu" and self.alpha != 1
        return x * torch.sigmoid(self.alpha * x) if sloped else CURVES[self.kind](x)


def recognise(layout: ExpertLayout) -> Activation | None:
    """The formula that gives what ``layout.activate`` gives on numbers far beyond every limit; None if none does.

    Limits and slopes are among the numbers the module keeps as attributes; how it is named plays no part. Parts with
    tensors of their own give none: what they compute may change, by training or loading.

    Example:
        >>> from types import SimpleNamespace
        >>> act = Activation("silu", clamp="before", limit=7.0)
        >>> recognise(SimpleNamespace(activate=act.apply, has_gate=True, width=8, template=SimpleNamespace(cap=7.0))) == act
        True
    """
    if isinstance(layout.template, nn.Module) and shared_parts(layout.template):
        return None
    with torch.no_grad():
        hidden = _probes(layout.width, layout.has_gate)
        try:
            theirs = layout.activate(hidden)
        except Exception:  # foreign code on numbers of ours: it is run as it is then, and says itself what is wrong
            return None
        if theirs.device != hidden.device or theirs.shape[-1] != layout.width:
            return None
        return next((act for act in _candidates(layout) if _same(act.apply(hidden), theirs)), None)


def _probes(width: int, gated: bool) -> torch.Tensor:
    """[N, width] or [N, 2 width]: near zero, where curves bend, and geometrically out to `FARTHEST`."""
    rows = -(-PROBES // width)
    far = torch.logspace(-2, math.log10(FARTHEST), PROBES // 4)
    near = torch.linspace(-6, 6, PROBES // 2)
    points = torch.cat([far, -far, near])
    generator = torch.Generator().manual_seed(0)
    columns = [points[torch.randperm(PROBES, generator=generator)] for _ in range(1 + gated)]
    return torch.cat(
        [column.repeat(-(-rows * width // PROBES))[: rows * width].view(rows, width) for column in columns], 1
    )


def _candidates(layout: ExpertLayout) -> Iterator[Activation]:
    numbers = _numbers(layout.template)
    slopes = list(dict.fromkeys((*SLOPES, *numbers)))
    clamps = [("", math.inf), *itertools.product(("before", "after"), numbers)] if layout.has_gate else [("", math.inf)]
    orders, shifts = ((False, True), (0.0, 1.0)) if layout.has_gate else ((False,), (0.0,))
    for (clamp, limit), shift, interleaved, kind in itertools.product(clamps, shifts, orders, KINDS):
        for alpha in slopes if kind == "silu" else (1.0,):
            yield Activation(kind, layout.has_gate, interleaved, alpha, clamp, limit, shift)


def _numbers(template: Any) -> list[float]:
    """Positive numbers among the attributes of the module and of its parts."""
    parts = list(template.modules()) if hasattr(template, "modules") else [template]
    found = [value for part in parts for value in vars(part).values() if type(value) in (int, float)]
    return sorted({float(value) for value in found if 0 < value < FARTHEST})


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    # float32 on both sides: rounding of a few operations, relative to the value
    return ours.shape == theirs.shape and torch.allclose(ours, theirs.to(ours), rtol=1e-5, atol=1e-6)
