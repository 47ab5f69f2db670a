"""Which backends there are; listing them imports nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from janus.errors import JanusError, known

BACKENDS = ("reference", "numba")
METHODS = ("exact", "greedy", "tokens", "random", "round_robin")

Fill = Callable[..., int]


def check_method(method: str, cost: object) -> str:
    """Return `method`, or refuse it by name."""
    if method == "cost" or cost is not None:
        got = f"method={method!r}, cost={cost!r}"
        rule = "the roofline method 'cost' (and cost=) is not in this version"
        raise JanusError("sched.method", f"{rule}; got {got}; choose one of {', '.join(map(repr, METHODS))}")
    return known(method, METHODS, "method", "sched.method")


def pick(backend: str) -> tuple[str, Fill]:
    """The name and the `fill` of a backend; ``"auto"`` takes numba where it can be imported."""
    if backend == "triton":
        raise JanusError(
            "sched.backend", "backend 'triton' is not in this version; choose 'auto', 'numba' or 'reference'"
        )
    known(backend, ("auto", *BACKENDS), "backend", "sched.backend")
    if backend != "reference":
        try:
            return "numba", importlib.import_module("janus.sched.numba_backend").fill
        except ImportError as error:
            if backend == "numba":
                rule = "backend 'numba' needs the package numba"
                raise JanusError("sched.backend", f"{rule}: {error}; install numba, or choose 'reference'") from error
    return "reference", importlib.import_module("janus.sched.reference").fill
