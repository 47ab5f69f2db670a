"""A simulated service made by hand, for what draws and tells one."""

from dataclasses import dataclass, field

import numpy as np

from janus.types import Slo


@dataclass(frozen=True, eq=False)
class MadeDay:
    policy: str
    n_attention: np.ndarray
    n_experts: np.ndarray
    gpus: np.ndarray
    attainment: float = 1.0
    usd: float | None = None
    efficiency: float = 1.0
    colocated: bool = False
    window_s: float = 900.0
    slo: Slo = field(default_factory=lambda: Slo(50, 99))
    basis: dict = field(default_factory=lambda: {"model": "a model on a card", "routing": "recorded: x.npz"})

    @property
    def times_s(self):
        return self.window_s * np.arange(len(self.gpus))

    @property
    def demand(self):
        return 100.0 * np.arange(1, len(self.gpus) + 1)

    @property
    def tpot_ms(self):
        return np.append(np.linspace(30, 45, len(self.gpus) - 1), np.nan)  # nothing came out in the last window

    @property
    def attained(self):
        return np.full(len(self.gpus), self.attainment)

    @property
    def gpu_hours(self):
        return float(self.gpus.sum() * self.window_s / 3600)


def day(policy, attention=(1, 2, 3, 2), experts=(6, 6, 8, 6), **more):
    n_a, n_e = np.array(attention), np.array(experts)
    gpus = n_a if more.get("colocated") else n_a + n_e
    return MadeDay(policy, n_a, n_e, gpus.astype(float), **more)
