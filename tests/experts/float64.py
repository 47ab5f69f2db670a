"""The plainest reference of chosen slots: one entry after the other, in float64."""

import copy

import torch


def expert(slots, slot, x_N):
    """One slot on [N, H], before the routing weight, everything in float64."""
    layout = copy.copy(slots.layout)
    weights = {name: w.double() for name, w in slots.weights(slot).items()}
    return layout.run(weights, x_N.double())


def weighted_sum(slots, x_TH, slots_TK, weights_TK):
    """What `ExpertSlots.forward` computes, in float64 [T, H]."""
    y_TH = torch.zeros(x_TH.shape, dtype=torch.float64)
    for t, row in enumerate(slots_TK.tolist()):
        for k, slot in enumerate(row):
            if slot >= 0:
                y_TH[t] += weights_TK[t, k].double() * expert(slots, slot, x_TH[t : t + 1])[0]
    return y_TH


def error(y, want):
    """Largest difference, relative to the largest number wanted; where all are zero, infinite unless there is none."""
    if not want.numel():
        return 0.0
    worst, scale = float((y.double() - want).abs().max()), float(want.abs().max())
    return worst / scale if scale else worst and float("inf")
