"""The plain way to run chosen experts, entry by entry in float64; and experts of any layout to run.

Benchmarks use it too, on machines that have torch and nothing else: no transformers here.
"""

from __future__ import annotations

import torch
from torch import nn

from janus.experts.activation import Activation
from janus.experts.layout import ExpertLayout
from janus.experts.slots import ExpertSlots

SILU = Activation("silu")
GPT_OSS = Activation(
    "silu", interleaved=True, alpha=1.702, clamp="before", limit=0.7, shift=1.0
)  # a limit numbers meet
LAYOUTS = {  # all kinds there are: arguments of `layout`
    "gate and up": {},
    "interleaved, transposed, biased": {"act": GPT_OSS, "bias": True, "transposed": True},
    "transposed": {"transposed": True},
    "no gate": {"act": Activation("relu2", gated=False)},
}
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # rounding of the inputs of each product


class Family(nn.Module):
    """An experts module without weights, of the formula given."""

    def __init__(self, act):
        super().__init__()
        self._apply_gate = self.act_fn = act.apply
        self.limit, self.alpha = act.limit if act.clamp else 0.0, act.alpha


def layout(H, F, act=SILU, *, bias=False, transposed=False):
    up, pair = ("gate_up_proj", 2) if act.gated else ("up_proj", 1)
    shapes = {up: (pair * F, H), "down_proj": (H, F)}
    if transposed:
        shapes = {name: shape[::-1] for name, shape in shapes.items()}
    if bias:
        shapes |= {f"{up}_bias": (pair * F,), "down_proj_bias": (H,)}
    return ExpertLayout(shapes, up, act.gated, bias, transposed, Family(act))


def slots(made, S, dtype=torch.float32, *, quantize=None, seed=0, device="cpu", compute="triton"):
    """S slots of normal weights, scaled so that every layer keeps the size of its input."""
    g = torch.Generator().manual_seed(seed)
    out = ExpertSlots(made, range(S), dtype=dtype, quantize=quantize, compute=compute)
    for s in range(S):
        length = {name: shape[0 if made.is_transposed else -1] for name, shape in made.shapes.items()}
        out.fill(
            s,
            {
                name: torch.randn(shape, generator=g) * (1.0 if name.endswith("bias") else length[name] ** -0.5)
                for name, shape in made.shapes.items()
            },
        )
    return out.to(device)


def batch(T, K, S, H, dtype=torch.float32, *, seed=0, absent=0.2, device="cpu", ids=torch.int64):
    """Tokens, slots (distinct for a token where there are enough; -1 for some) and weights."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(T, H, generator=g).to(dtype)
    chosen = torch.rand(T, max(S, K), generator=g).argsort(1)[:, :K] % S
    chosen[torch.rand(T, K, generator=g) < absent] = -1
    return x.to(device), chosen.to(ids).to(device), torch.rand(T, K, generator=g).to(device)


def plain(out, x, ids, weights):
    """[T, H] in float64: what the slots `out` stand for, entry by entry."""
    x, ids, weights = x.cpu().double(), ids.cpu(), weights.cpu().double()
    y = torch.zeros_like(x)
    for s in range(out.num_slots):
        own = {name: w.cpu().double() for name, w in out.weights(s).items()}
        for t, k in (ids == s).nonzero().tolist():
            y[t] += weights[t, k] * out.layout.run(own, x[t : t + 1])[0]
    return y


def error(got, want):
    """Largest difference, relative to the largest number wanted; where all are zero, infinite unless there is none."""
    if not want.numel():
        return 0.0
    worst, scale = float((got.cpu().double() - want).abs().max()), float(want.abs().max())
    return worst / scale if scale else worst and float("inf")
