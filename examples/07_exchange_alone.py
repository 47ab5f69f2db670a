"""The exchange alone, in loops of your own: no runner and no model, just `janus.comm` between your processes.

Two attention and three expert processes time the routes between them, print what each would cost, and take the cheapest
from then on. While its rows are under way an attention process computes its shared expert. The "nodes" are processes of
this machine, so a message between two of them costs as much as one within.
"""

import os
import sys
import time

import torch

from janus import Exchange, Topology
from janus.runner.launch import launch

TOPOLOGY = Topology(attention=((0, 1),), experts=((2, 3), (4,)))
STEPS = [(64, 40), (1, 0), (17, 64)]  # tokens of each attention instance
H, LAYERS, MOST = 256, 4, 64


def attend(ex: Exchange, instance: int, weights_LEHH: torch.Tensor) -> None:
    if instance == 0:
        print(f"one layer of {STEPS[0]} tokens, out and home, as calibrated:\n{ex.explain(STEPS[0])}")
    sums_bH = torch.empty(MOST, H)  # taken once, used by every layer
    for counts in STEPS:
        x_bH = alone_bH = torch.randn(counts[instance], H)
        step = ex.begin(len(x_bH))
        shared_s = waited_s = 0.0
        for layer in range(LAYERS):
            pending = ex.dispatch_async(x_bH, layer=layer)  # x_bH stays as it is until wait() returns
            start = time.perf_counter()
            shared_bH = torch.relu(x_bH @ weights_LEHH[layer, 0])
            middle = time.perf_counter()
            routed_bH = ex.combine(pending.wait(), out=sums_bH[: len(x_bH)])
            shared_s, waited_s = shared_s + middle - start, waited_s + time.perf_counter() - middle
            x_bH = x_bH + shared_bH + routed_bH
            alone_bH = alone_bH + sum(torch.relu(alone_bH @ w_HH) for w_HH in weights_LEHH[layer])
        torch.testing.assert_close(x_bH, alone_bH, rtol=1e-4, atol=1e-4)  # as one process alone would have it
        times = f"shared expert {shared_s * 1e3:.1f} ms, then waited {waited_s * 1e3:.1f} ms"
        print(f"attention {instance}: {len(x_bH)} of {step.total} tokens over {step.regime}, right; {times}")


def serve(ex: Exchange, instance: int, weights_LEHH: torch.Tensor) -> None:
    room_BH = torch.empty(MOST * TOPOLOGY.n_attention, H)  # rows arrive in memory of ours
    while not ex.begin().closed:
        for layer in range(LAYERS):
            x_BH, handle = ex.receive(out=room_BH)
            ex.reply(torch.relu(x_BH @ weights_LEHH[layer, 1 + instance]), handle)


def main() -> None:
    """One rank."""
    torch.set_num_threads(1)
    seeded = torch.Generator().manual_seed(0)  # the same weights everywhere; number 0 is the shared expert
    weights_LEHH = torch.randn(LAYERS, 1 + TOPOLOGY.n_experts, H, H, generator=seeded) / H**0.5
    with Exchange(TOPOLOGY, hidden_size=H, dtype=torch.float32, max_tokens=MOST) as ex:
        ex.calibrate(seconds=1)
        ex.reset_traffic()
        act = attend if ex.role == "attention" else serve
        act(ex, TOPOLOGY.instance(ex.rank), weights_LEHH)
        sent = ", ".join(f"{t.messages} messages of {t.bytes} B {link}" for link, t in ex.traffic().items())
        print(f"{ex.role} {TOPOLOGY.instance(ex.rank)} sent {sent}")


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        ended = launch(
            [sys.executable, __file__], TOPOLOGY.world_size, deadline_s=100, on_line=lambda r, s, line: print(line)
        )
        sys.exit(any(e.exit_code for e in ended))
