"""Prove: a wrong call of a layer is a `JanusError` with the right code before anything runs, whatever runs the experts.

    python benchmarks/prove/experts_input.py [--sample]

Each case goes to layers of every way to compute and of three placements: experts in order, moved, replicated. On a GPU
the Triton kernels run there, elsewhere in the interpreter; a way that cannot run here is named. "works" means the sums
of a float64 reference. After each refusal the same layer has to serve a good call. Then come calls damaged at random, one
to three times over: each has to give a `JanusError`, or a result of the right shape, dtype and values. Progress goes to
stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1]))
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is imported

import numpy as np
import tiny
import torch
from figures import figure, report, say

from janus import JanusError, JanusMoELayer, Placement
from janus.experts.backends import MODULES

CALLS = 5_000
T, K, E, H = 5, 2, 6, 64
PLACEMENTS = {
    "in order": Placement.contiguous(E, 1),
    "moved": Placement([[5, 0, -1], [1, 4, -1], [2, 3, -1]], E),
    "replicated": Placement([[0, 1, 2, 3], [3, 4, 5, 0], [2, 1, 4, 5]], E),
}
# of float32 sums over 64 inputs, in another order than the reference; its outputs are about SCALE
TOLERANCE, SCALE = 1e-5, 10
Call = list[Any]


class Tagged(torch.Tensor):
    """A subclass that changes nothing."""


def put(at: int, change: Callable[[Any], Any]) -> Callable[[Call], Call]:
    """The call with one argument changed."""
    return lambda call: [change(value) if i == at else value for i, value in enumerate(call)]


def each(change: Callable[[Any], Any]) -> Callable[[Call], Call]:
    """The call with every argument changed."""
    return lambda call: [change(value) for value in call]


def with_entry(value: float) -> Callable[[Any], Any]:
    """The same numbers but for the entry in the middle."""

    def change(x: Any) -> Any:
        x = x.clone(memory_format=torch.contiguous_format)
        x.view(-1)[x.numel() // 2] = value
        return x

    return change


def every_other(x: Any) -> Any:
    return torch.stack([x, x], dim=-1)[..., 0]


# what is wrong, the code, how a good call is made wrong
CASES: list[tuple[str, str, Callable[[Call], Call]]] = [
    ("hidden with a batch dimension", "layer.shape", put(0, lambda x: x[None])),
    ("one row less of hidden", "layer.shape", put(0, lambda x: x[:-1])),
    ("hidden of another width", "layer.shape", put(0, lambda x: x[:, :-1])),
    ("one row less of ids", "layer.shape", put(1, lambda x: x[:-1])),
    ("ids without K", "layer.shape", put(1, lambda x: x[:, 0])),
    ("another K of weights", "layer.shape", put(2, lambda x: x[:, :1])),
    ("no dimension at all", "layer.shape", each(lambda x: x.reshape(-1)[0])),
    ("more choices than experts", "layer.shape", lambda c: [c[0], c[1].repeat(1, E), c[2].repeat(1, E)]),
    ("a list for hidden", "layer.shape", put(0, lambda x: x.tolist())),
    ("an array for ids", "layer.shape", put(1, lambda x: x.cpu().numpy())),
    ("None for weights", "layer.shape", put(2, lambda x: None)),
    ("a subclass of Tensor", "layer.tensor", put(0, lambda x: x.as_subclass(Tagged))),
    ("sparse ids", "layer.tensor", put(1, lambda x: x.to_sparse())),
    ("hidden in float64", "layer.dtype", put(0, lambda x: x.double())),
    ("hidden in bfloat16, weights in float32", "layer.dtype", put(0, lambda x: x.bfloat16())),
    ("complex hidden", "layer.dtype", put(0, lambda x: x.to(torch.complex64))),
    ("ids that are floats", "layer.dtype", put(1, lambda x: x.float())),
    ("ids that are truth values", "layer.dtype", put(1, lambda x: x.bool())),
    ("ids in uint64", "layer.dtype", put(1, lambda x: x.to(torch.uint64))),
    ("weights that are integers", "layer.dtype", put(2, lambda x: x.long())),
    ("hidden without data", "layer.device", put(0, lambda x: x.to("meta"))),
    ("ids on another device", "layer.device", put(1, lambda x: x.to("meta"))),
    ("everything on another device", "layer.device", each(lambda x: x.to("meta"))),
    ("an id of E, as from a larger model", "sched.range", put(1, with_entry(E))),
    ("an id below -1", "sched.range", put(1, with_entry(-2))),
    ("an id beyond 32 bits", "sched.range", put(1, with_entry(2**40))),
    ("-1: passed over", "works", put(1, with_entry(-1))),
    ("int32 ids", "works", put(1, lambda x: x.int())),
    ("uint8 ids", "works", put(1, lambda x: x.to(torch.uint8))),
    ("an expert twice for one token", "works", put(1, torch.zeros_like)),
    ("weights in bfloat16", "works", put(2, lambda x: x.bfloat16())),
    ("weights in float64", "works", put(2, lambda x: x.double())),
    ("strided", "works", each(every_other)),
    ("column by column", "works", each(lambda x: x.t().contiguous().t())),
    ("one row of hidden, expanded", "works", put(0, lambda x: x[:1].expand(len(x), -1))),
    ("Parameters", "works", lambda c: [torch.nn.Parameter(c[0]), c[1], torch.nn.Parameter(c[2])]),
    ("not a number in hidden", "works", put(0, with_entry(float("nan")))),
    ("infinite weight", "works", put(2, with_entry(float("inf")))),
    ("no token", "works", each(lambda x: x[:0])),
    ("no choice", "works", lambda c: [c[0], c[1][:, :0], c[2][:, :0]]),
]


def good(rng: np.random.Generator, device: str) -> Call:
    ids = np.stack([rng.permutation(E)[:K] for _ in range(T)])
    call = [rng.standard_normal((T, H)).astype(np.float32), ids, rng.random((T, K), dtype=np.float32)]
    return [torch.from_numpy(value).to(device) for value in call]


def reference(experts: Any, call: Call) -> torch.Tensor:
    """Token by token in float64: gate and up of each choice, silu, down, routing weight."""
    x, ids, weights = (value.detach().cpu().double() for value in call)
    y = torch.zeros_like(x)
    for t, k in np.ndindex(*ids.shape):
        if ids[t, k] >= 0:
            up, down = (p[int(ids[t, k])].double() for p in (experts.gate_up_proj, experts.down_proj))
            gate, value = (up @ x[t]).chunk(2)
            y[t] += weights[t, k] * (down @ (torch.nn.functional.silu(gate) * value))
    return y


def outcome(layer: JanusMoELayer, experts: Any, call: Call) -> str:
    """The code of the refusal, "works", or what went wrong."""
    try:
        with torch.no_grad():
            got = layer(*call)
    except JanusError as error:
        return error.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:160]
    if got.shape != call[0].shape or got.dtype != call[0].dtype:
        return f"wrong: {got.dtype} {tuple(got.shape)}"
    want = reference(experts, call)
    close = torch.isclose(got.cpu().double(), want, rtol=TOLERANCE, atol=TOLERANCE * SCALE, equal_nan=True)
    return "works" if bool(close.all()) else "wrong values"


def made(compute: str, experts: Any) -> dict[str, JanusMoELayer] | str:
    """A layer of each placement, or why this way cannot run here."""
    on_gpu = compute == "triton" and torch.cuda.is_available()
    options = {"compute": compute, "check_ids": True}
    try:
        layers = {name: JanusMoELayer(experts, p, **options) for name, p in PLACEMENTS.items()}
    except JanusError as error:
        return error.message
    return {name: layer.to("cuda" if on_gpu else "cpu") for name, layer in layers.items()}


def judged(
    name: str, code: str, change: Callable[[Call], Call], layers: dict[str, Any], experts: Any
) -> dict[str, Any]:
    """One figure: what every layer said, and whether it served a good call afterwards."""
    rng, said = np.random.default_rng(7), {}
    for at, layer in layers.items():
        call = good(rng, layer.slots.device.type)
        said[at] = outcome(layer, experts, change(call))
        after = outcome(layer, experts, call)
        said[at] = said[at] if after == "works" else f"{said[at]}, then {after}"
    wrong = {at: seen for at, seen in said.items() if seen != code}
    note = f"{len(said)} layers" + "".join(f"; {at} said {seen}" for at, seen in wrong.items())
    return figure(name, f"{len(said) - len(wrong)} of {len(said)}", code, not wrong, "layers", note)


def damaged(rng: np.random.Generator, device: str) -> tuple[Call, str]:
    """A good call damaged one to three times; what an earlier damage makes impossible is left out."""
    call, names = good(rng, device), []
    for i in rng.integers(0, len(CASES), size=rng.integers(1, 4)):
        name, _, change = CASES[i]
        try:
            call = change(call)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError, NotImplementedError):
            continue
        names.append(name)
    return call, " + ".join(names)


def fuzzed(count: int, layers: dict[str, Any], experts: Any) -> list[dict[str, Any]]:
    """`count` damaged calls, every layer in turn."""
    rng, seen, wrong = np.random.default_rng(2026), Counter[str](), []
    for i in range(count):
        at, layer = list(layers.items())[i % len(layers)]
        call, what = damaged(rng, layer.slots.device.type)
        said = outcome(layer, experts, call)
        seen[said] += 1
        if said != "works" and not said.startswith(("layer.", "sched.")):
            wrong.append(f"{at}: {what}: {said}")
    note = ", ".join(f"{said} {times}" for said, times in seen.most_common(9)) + "".join(f"; {w}" for w in wrong[:3])
    name = f"of {count} damaged calls, those that gave neither the right sums nor a JanusError"
    return [figure(name, len(wrong), "== 0", not wrong, "calls", note)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="fewer damaged calls")
    count = 300 if parser.parse_args().sample else CALLS
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    experts = tiny.build("mixtral", num_local_experts=E).model.layers[0].mlp.experts
    layers: dict[str, Any] = {}
    for compute in MODULES:
        found = made(compute, experts)
        if isinstance(found, str):
            say(f"{compute}: {found}")
            continue
        layers |= {f"{compute}, {name}": layer for name, layer in found.items()}
    report([judged(*case, layers, experts) for case in CASES] + fuzzed(count, layers, experts))


if __name__ == "__main__":
    main()
