"""Prove: bad input to the balancers is a `JanusError` with the right code on every backend, before any work, or works.

    python benchmarks/prove/sched_input.py [--sample]

Each case goes through `balance` and `Balancer` on every backend, the Triton kernel in its interpreter where there is no
GPU. "works" means the ids are those of the reference for the same numbers as contiguous int64. After each refusal the
same `Balancer` has to serve a good batch. Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1]))
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is imported

import numpy as np
import torch
from figures import figure, report

from janus import JanusError
from janus.sched import Balancer, balance
from janus.sched.backends import BACKENDS, METHODS
from janus.types import Placement

ON_GPU = torch.cuda.is_available()
DEVICE = {name: "cuda" if ON_GPU and name == "triton" else "cpu" for name in BACKENDS}
PLACEMENT = Placement([[0, 1, 2], [0, 3, 4], [1, 2, 5]], num_experts=6)
WIDE = Placement.contiguous(200, 1)
GOOD = np.array([[0, 1], [2, -1]])
CALLS = {"max_tokens": 4}


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes:
        name: for people.
        code: of the refusal, on every backend that `codes` does not name; "works" where nothing is wrong.
        ids: what is passed as topk_ids.
        codes: of single backends.
        options: of `Balancer`, and of `balance` where it has them.
        doors: which of the two take part.
        placement: in place of the usual one.
        layer: in place of 0.
    """

    name: str
    code: str
    ids: Any = field(default_factory=lambda: GOOD)
    codes: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    doors: tuple[str, ...] = ("balance", "Balancer")
    placement: Any = PLACEMENT
    layer: Any = 0


def batch(*rows: list[int], dtype: str = "i8") -> Any:
    return np.array(rows, dtype=dtype)


def cases() -> list[Case]:
    """All of them."""
    strided = np.array([[0, 9, 1, 9], [2, 9, -1, 9]])[:, ::2]
    only = ("Balancer",)
    return [
        Case("an id of E, as from a larger model", "sched.range", batch([0, 1], [6, 2])),
        Case("an id below -1", "sched.range", batch([0, 1], [-2, 2])),
        Case("an id beyond 32 bits", "sched.range", batch([0, 2**32])),
        Case("the largest uint64", "sched.range", batch([0, 2**64 - 1], dtype="u8"), {"triton": "sched.dtype"}),
        Case("floats", "sched.dtype", batch([0, 1], dtype="f4")),
        Case("booleans", "sched.dtype", batch([0, 1], dtype="?")),
        Case("a tensor of floats", "sched.dtype", torch.zeros(2, 2)),
        Case("int16", "works", batch([0, 1], [2, -1], dtype="i2"), {"triton": "sched.dtype"}),
        Case("too narrow for physical ids", "sched.dtype", batch([0, 1], dtype="i1"), placement=WIDE),
        Case("one dimension", "sched.shape", np.zeros(3, dtype="i8")),
        Case("three dimensions", "sched.shape", np.zeros((1, 2, 3), dtype="i8")),
        Case("a list", "sched.input", [[0, 1]]),
        Case("None", "sched.input", None),
        Case("an array that masks entries", "sched.input", np.ma.masked_array(GOOD, mask=[[1, 0], [0, 0]])),
        Case("strided", "works", strided, {"triton": "works or sched.contiguous"}),
        Case("column by column", "works", np.asfortranarray(GOOD), {"triton": "works or sched.contiguous"}),
        Case("17 experts per token", "works", np.zeros((2, 17), dtype="i8"), {"triton": "sched.limit"}),
        Case("more tokens than max_tokens", "sched.max_tokens", np.zeros((5, 2), dtype="i8"), doors=only),
        Case(
            "a tensor of another device",
            "sched.device",
            torch.empty((2, 2), dtype=torch.int64, device="meta"),
            doors=only,
        ),
        Case(
            "a tensor without data",
            "sched.input",
            torch.empty((2, 2), dtype=torch.int64, device="meta"),
            {"triton": "sched.device"},
            doors=("balance",),
        ),
        Case("a placement that is none", "sched.placement", placement=[[0, 1], [1, 0]]),
        Case(
            "a layer beyond the placement's", "placement.layer", placement=Placement([PLACEMENT.slots[0]], 6), layer=1
        ),
        Case("a layer that is no number", "placement.layer", layer="0"),
        Case("an unknown method", "sched.method", options={"method": "fastest"}),
        Case("max_tokens that is no number", "sched.max_tokens", options={"max_tokens": "8"}, doors=only),
        Case("a negative max_tokens", "sched.max_tokens", options={"max_tokens": -1}, doors=only),
        Case("a max_tokens that no memory holds", "sched.max_tokens", options={"max_tokens": 2**62}, doors=only),
        Case("a num_layers that no memory holds", "sched.option", options={"num_layers": 2**62}, doors=only),
        Case("a switch that is no truth value", "sched.option", options={"record_load": "yes"}, doors=only),
        Case("a device with no number", "sched.device", options={"device": "cuda:x"}, doors=only),
        Case("a device there is none of", "sched.device", options={"device": "cuda:99"}, doors=only),
        Case("a device that is no device", "sched.device", options={"device": "gpu"}, doors=only),
        *COST,
    ]


# a version without the method refuses both by its name
MISUSED = "sched.cost" if "cost" in METHODS else "sched.method"
COST = [
    Case("a cost for a method that has none", MISUSED, options={"cost": object()}),
    Case(
        "method 'cost' without a cost",
        MISUSED,
        codes={"triton": f"{MISUSED} or sched.backend"},
        options={"method": "cost"},
    ),
]


def on(ids: Any, backend: str) -> Any:
    """The batch where the backend runs; what has no data stays where it is."""
    if DEVICE[backend] == "cpu" or not isinstance(ids, (np.ndarray, torch.Tensor)) or getattr(ids, "is_meta", False):
        return ids
    if isinstance(ids, np.ma.MaskedArray):  # torch would drop the mask
        return ids
    return torch.from_numpy(ids).to(DEVICE[backend]) if isinstance(ids, np.ndarray) else ids.to(DEVICE[backend])


def outcome(call: Callable[[], Any], case: Case) -> str:
    """The code of the refusal, "works", or what went wrong."""
    try:
        got = call()
    except JanusError as error:
        return error.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    plain = np.ascontiguousarray(case.ids).astype(np.int64)
    want = balance(plain, case.placement, layer=case.layer, backend="reference").physical_ids
    return "works" if np.array_equal(np.asarray(got.cpu() if hasattr(got, "cpu") else got), want) else "wrong ids"


def through_balance(case: Case, backend: str) -> str:
    options = {"backend": backend, "layer": case.layer} | case.options
    return outcome(lambda: balance(on(case.ids, backend), case.placement, **options).physical_ids, case)


def through_balancer(case: Case, backend: str) -> str:
    """A refusal by a call must leave the balancer usable."""
    checked = {"check_ids": True} if backend == "triton" else {}
    options = {"backend": backend, "device": DEVICE[backend]} | CALLS | checked | case.options
    made: list[Balancer] = []

    def call() -> Any:
        made.append(Balancer(case.placement, **options))
        return made[0](on(case.ids, backend), case.layer)

    seen = outcome(call, case)
    if made and not case.options:
        good = Case("", "works", placement=case.placement)
        after = outcome(lambda: made[0](on(good.ids, backend), 0), good)
        seen = seen if after == "works" else f"{seen}, then {after}"
    return seen


DOORS = {"balance": through_balance, "Balancer": through_balancer}


def judged(case: Case) -> dict[str, Any]:
    """One figure: what every door on every backend said."""
    said = {(b, door): DOORS[door](case, b) for b in BACKENDS for door in case.doors}
    wrong = {at: code for at, code in said.items() if code not in case.codes.get(at[0], case.code).split(" or ")}
    bar = "; ".join([case.code, *(f"{backend}: {code}" for backend, code in case.codes.items())])
    note = f"{len(said)} calls" + "".join(f"; {door} on {b} said {code}" for (b, door), code in wrong.items())
    return figure(case.name, f"{len(said) - len(wrong)} of {len(said)}", bar, not wrong, "calls", note)


def unchecked() -> list[dict[str, Any]]:
    """Without a check on the device: bad ids count as -1, and are counted."""
    if "triton" not in BACKENDS:
        return []
    balancer = Balancer(PLACEMENT, backend="triton", device=DEVICE["triton"], **CALLS)
    got = balancer(on(batch([0, 6], [-7, 1]), "triton"), 0).tolist()
    want = balance(batch([0, -1], [-1, 1]), PLACEMENT, backend="reference").physical_ids.tolist()
    ok = got == want and balancer.stats.bad_ids.tolist() == [2]
    name = "triton without check_ids: bad ids become -1 and are counted"
    return [figure(name, f"{balancer.stats.bad_ids.tolist()}", "[2], ids of the reference", ok, "", f"{got}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="the same: it takes seconds")
    parser.parse_args()
    report([judged(case) for case in cases()] + unchecked())


if __name__ == "__main__":
    main()
