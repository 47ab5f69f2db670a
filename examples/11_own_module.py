"""JanusMoELayer inside a PyTorch module of your own: a router, a shared expert, and three tensors of expert weights."""

import torch
from torch import nn
from torch.nn import functional as F

import janus

EXPERTS, HIDDEN, WIDTH, TOP_K = 16, 64, 32, 2


class Block(nn.Module):
    """Top-2 of 16 routed experts, and one that every token passes."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.shared = nn.Sequential(nn.Linear(HIDDEN, WIDTH), nn.SiLU(), nn.Linear(WIDTH, HIDDEN))
        gate, up = torch.randn(2, EXPERTS, WIDTH, HIDDEN) / HIDDEN**0.5
        down = torch.randn(EXPERTS, HIDDEN, WIDTH) / WIDTH**0.5
        self.experts = janus.JanusMoELayer.from_tensors(gate, up, down, activation="silu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, ids = self.router(x).softmax(-1).topk(TOP_K)
        return self.shared(x) + self.experts(x, ids, weights)


torch.manual_seed(0)
block, x = Block().eval(), torch.randn(5, HIDDEN)
with torch.inference_mode():
    y = block(x)

    # the same, one expert after the other
    weights, ids = block.router(x).softmax(-1).topk(TOP_K)
    expected = block.shared(x)
    for token, (chosen, shares) in enumerate(zip(ids.tolist(), weights, strict=True)):
        for expert, share in zip(chosen, shares, strict=True):
            held = block.experts.slots.weights(expert)  # gate_up_proj [2 * WIDTH, HIDDEN], down_proj [HIDDEN, WIDTH]
            gate, up = (held["gate_up_proj"] @ x[token]).chunk(2)
            expected[token] += share * (held["down_proj"] @ (F.silu(gate) * up))

print(f"experts run by {block.experts.compute!r}; largest difference {(y - expected).abs().max():.1e}")
assert torch.allclose(y, expected, atol=1e-5)
