"""Which ways there are to compute the chosen slots; listing them imports nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from janus.errors import JanusError, known

if TYPE_CHECKING:
    import torch

    from janus.experts.slots import ExpertSlots

MODULES = {  # name -> module that has why_not(slots) and make(slots)
    "eager": "janus.experts.eager",
    "numba": "janus.experts.numba_backend",
    "mixed": "janus.experts.mixed",
    "triton": "janus.experts.device",
}
COMPUTES = tuple(MODULES)
PREFERRED = {"cpu": "mixed", "cuda": "triton"}  # by device; where it cannot run, eager does


class Engine(Protocol):
    """What `make(slots)` of a module in `MODULES` returns: one way to run the chosen slots of one `ExpertSlots`."""

    def __call__(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """As `ExpertSlots.forward`; arguments are checked, no gradient is asked for."""
        ...

    def needed(self, T: int, K: int) -> int:
        """Bytes that a call of T tokens with K choices takes beside the slots, its arguments and its output, at most."""
        ...


def choose(compute: str, slots: ExpertSlots) -> str:
    """The name of the way to run: as asked, or refused with the reason; ``"auto"`` takes the fastest there is.

    Raises:
        JanusError: ``experts.compute``.
    """
    known(compute, ("auto", *COMPUTES), "compute", "experts.compute")
    if compute == "auto":
        name = PREFERRED.get(slots.device.type, "eager")
        return name if name in MODULES and not why_not(name, slots) else "eager"
    if reason := why_not(compute, slots):
        raise JanusError("experts.compute", f"compute={compute!r} cannot run here: {reason}; choose 'auto' or 'eager'")
    return compute


def why_not(name: str, slots: ExpertSlots) -> str:
    """Why a way of `COMPUTES` cannot run these slots; empty when it can."""
    if name != "eager" and slots.layout.norm is not None:
        return f"{type(slots.layout.norm).__name__} stands behind each expert, and fused ways sum before it"
    if name != "eager" and (strided := [n for n, p in slots.named_parameters(recurse=False) if not _has_rows(p)]):
        return f"fused ways read rows as they lie, and those of {', '.join(strided)} are strided; make them contiguous"
    return importlib.import_module(MODULES[name]).why_not(slots)


def make(name: str, slots: ExpertSlots) -> Any:
    """The engine of a name that `choose` returned."""
    return importlib.import_module(MODULES[name]).make(slots)


def _has_rows(weights: torch.Tensor) -> bool:
    return weights.shape[-1] <= 1 or weights.stride(-1) == 1
