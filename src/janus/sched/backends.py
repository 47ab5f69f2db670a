"""Which backends there are; listing them imports nothing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol

from janus.errors import JanusError, known
from janus.sched.cost import check_cost

BACKENDS = ("reference", "numba", "triton")
METHODS = ("exact", "greedy", "cost", "tokens", "random", "round_robin")
TRITON_METHODS = ("exact", "greedy")
KERNEL_LIMITS = {
    "experts": 512,
    "instances": 128,
    "slots per instance": 4096,
    "experts per token": 16,
    "tokens": 16384,
}

Fill = Callable[..., int]


class Backend(Protocol):
    """What a module of a CPU backend offers; `reference` is the specification of both."""

    def fill(self, method: str, ids: Any, out: Any, tables: Any, work: Any) -> int:
        """Write physical ids and the tallies of one batch; the flat position of the first bad id, or -1."""
        ...

    def tally(self, tables: Any, work: Any, sums: Any, seen: Any) -> None:
        """Add the batch that `work` describes to the sums of its layer, and to the load seen, if that has room."""
        ...


def check_method(method: str, cost: object) -> str:
    """Return `method`, or refuse it by name, or for want or excess of `cost`."""
    known(method, METHODS, "method", "sched.method")
    check_cost(method, cost)
    return method


def check_without_cost(method: str, what: str, remedy: str) -> str:
    """Return `method` where nobody can give `cost`: ``"cost"`` is refused with the remedy."""
    if known(method, METHODS, what, "sched.method") == "cost":
        rule = f"{what} cannot be 'cost' here, because the times of an expert cannot be given"
        raise JanusError("sched.cost", f"{rule}; {remedy}, or choose 'exact'")
    return method


def choose(backend: str, method: str, device_type: str, *, may_copy: bool = False) -> str:
    """The name of the backend to run: as asked, or refused with the reason; ``"auto"`` takes the fastest there is.

    Args:
        backend: what the user asked for.
        method: a checked method.
        device_type: where the ids are: "cpu", "cuda".
        may_copy: a CPU backend may serve a device, by copies to the host and back.
    """
    known(backend, ("auto", *BACKENDS), "backend", "sched.backend")
    on_host = device_type == "cpu" or may_copy
    if backend == "auto":
        if on_host and (device_type != "cuda" or method not in TRITON_METHODS or _missing("triton")):
            return "reference" if _missing("numba") else "numba"
        backend = "triton"
    if backend == "triton":
        _check_triton(method, device_type)
    elif not on_host:
        rule = f"backend {backend!r} runs on the CPU, got device {device_type!r}"
        raise JanusError("sched.device", f"{rule}; use device='cpu', or backend 'triton' for the device")
    elif backend == "numba" and (reason := _missing("numba")):
        rule = f"backend 'numba' needs the package numba: {reason}"
        raise JanusError("sched.backend", f"{rule}; install numba, or choose 'reference'")
    return backend


def load(name: str) -> Any:
    """The module of a CPU backend, by a name that `choose` returned."""
    return importlib.import_module("janus.sched.reference" if name == "reference" else "janus.sched.numba_backend")


def _check_triton(method: str, device_type: str) -> None:
    if method not in TRITON_METHODS:
        rule = f"backend 'triton' has the methods {', '.join(map(repr, TRITON_METHODS))}, got {method!r}"
        raise JanusError("sched.backend", f"{rule}; use backend 'numba' with device='cpu'")
    if reason := _missing("triton"):
        raise JanusError("sched.backend", f"backend 'triton' needs the package triton: {reason}; choose 'numba'")
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        remedy = "choose 'numba', or set TRITON_INTERPRET=1 before triton is imported to run its (slow) interpreter"
        raise JanusError("sched.device", f"backend 'triton' runs on a GPU, got device 'cpu'; {remedy}")
    if device_type not in ("cpu", "cuda"):
        rule = "a balancer runs on device 'cpu' or 'cuda'"
        raise JanusError("sched.device", f"{rule}, got {device_type!r}; move topk_ids to one of them")


def _missing(package: str) -> str:
    """Why a package cannot be imported; empty when it can."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return str(error) or f"no package {package}"
    return ""
